"""What queueing theory says in closed form, for the systems that are simple enough.

A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in automatic telephone
exchanges", 1917; F. Pollaczek 1930, A. Khinchine 1932 for M/G/1; M. Mitzenmacher, "The power of two choices in
randomized load balancing", 1996.
"""

from __future__ import annotations


def erlang_b(servers: int, load: float) -> float:
    """Share of arrivals that find all `servers` busy and leave (M/G/c/c); `load` = rate * mean service time."""
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = load * blocked / (number + load * blocked)
    return blocked


def erlang_c(servers: int, load: float) -> float:
    """Share of arrivals that must wait (M/M/c); `load` < `servers`."""
    blocked = erlang_b(servers, load)
    return servers * blocked / (servers - load * (1 - blocked))


def mmc_wait(servers: int, rate: float, service_s: float) -> float:
    """Mean seconds in the line of M/M/c."""
    load = rate * service_s
    return erlang_c(servers, load) * service_s / (servers - load)


def mg1_wait(rate: float, service_s: float, variation: float) -> float:
    """Mean seconds in the line of M/G/1 (Pollaczek, Khinchine); `variation` is the service time's standard deviation
    by its mean: 0 for equal ones, 1 for exponential ones.
    """
    busy = rate * service_s
    return busy * service_s * (1 + variation**2) / (2 * (1 - busy))


def mmck_refused(servers: int, places: int, rate: float, service_s: float) -> float:
    """Share of arrivals that M/M/c refuses whose line has `places`."""
    load = rate * service_s
    weights = [1.0]
    for number in range(1, servers + places + 1):
        weights.append(weights[-1] * load / min(number, servers))
    return weights[-1] / sum(weights)


def shared_mean(rate: float, work_s: float) -> float:
    """Mean seconds from arrival to end where one server divides itself equally (M/G/1 processor sharing): whatever the
    spread of the work.
    """
    return work_s / (1 - rate * work_s)


def two_choices_mean(busy: float, service_s: float) -> float:
    """Mean seconds from arrival to end in very many servers, of which each arrival joins the shorter of two lines."""
    return service_s * sum(busy ** (2.0**level - 2) for level in range(1, 12))
