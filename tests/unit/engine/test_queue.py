"""The waiting line: bounds, order, fairness, and the meter of its speed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stoker.engine.queue import ServiceMeter, Ticket, WaitingLine, retry_after
from stoker.types import Priority

tenants = st.sampled_from(["a", "b", "c"])
tickets = st.builds(Ticket, st.integers(1, 500), tenants, st.sampled_from(list(Priority)))


def drain(line: WaitingLine) -> list[Ticket]:
    out = []
    while (ticket := line.pop()) is not None:
        out.append(ticket)
    return out


@given(st.lists(tickets, max_size=60), st.data())
def test_bookkeeping_is_exact_whatever_happens(arrivals: list[Ticket], data: st.DataObject) -> None:
    line = WaitingLine(max_requests=1000, max_tokens=10**9)
    inside: set[Ticket] = set()
    for ticket in arrivals:
        line.push(ticket)
        inside.add(ticket)
        action = data.draw(st.sampled_from(["nothing", "pop", "remove"]))
        if action == "pop":
            popped = line.pop()
            assert popped in inside
            inside.discard(popped)
        elif action == "remove":
            victim = data.draw(st.sampled_from(sorted(inside, key=id)))
            line.remove(victim)
            line.remove(victim)  # twice does no harm
            inside.discard(victim)
        assert len(line) == len(inside)
        assert line.tokens == sum(ticket.cost for ticket in inside)
    assert set(drain(line)) == inside
    assert len(line) == line.tokens == 0
    assert not line._finish
    assert not line._heap


@given(st.lists(tickets, max_size=40))
def test_interactive_goes_before_jobs(arrivals: list[Ticket]) -> None:
    line = WaitingLine(1000, 10**9)
    for ticket in arrivals:
        line.push(ticket)
    classes = [ticket.priority for ticket in drain(line)]
    assert classes == sorted(classes)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40))
def test_one_tenant_is_served_in_order_of_arrival(costs: list[int]) -> None:
    line = WaitingLine(1000, 10**9)
    arrivals = [Ticket(cost, "a") for cost in costs]
    for ticket in arrivals:
        line.push(ticket)
    assert drain(line) == arrivals


@given(st.integers(2, 50), st.integers(1, 100))
def test_a_crowd_of_one_tenant_delays_another_by_one_request(crowd: int, cost: int) -> None:
    line = WaitingLine(1000, 10**9)
    for _ in range(crowd):
        line.push(Ticket(cost, "greedy"))
    modest = Ticket(cost, "modest")
    line.push(modest)
    assert drain(line).index(modest) <= 1


def test_a_request_whose_engine_died_goes_first() -> None:
    line = WaitingLine(2, 100)
    first, second = Ticket(50, "a"), Ticket(50, "a")
    line.push(first)
    line.push(second)
    returned = Ticket(90, "b", served=True)
    line.push(returned)  # over both bounds: it had been accepted
    assert drain(line) == [returned, first, second]


def test_bounds() -> None:
    line = WaitingLine(max_requests=2, max_tokens=100)
    assert line.has_room(1000)  # alone, a large one may wait
    line.push(Ticket(60, "a"))
    assert not line.has_room(41)
    assert line.has_room(40)
    line.push(Ticket(40, "a"))
    assert not line.has_room(1)
    assert not WaitingLine(0, 100).has_room(1)


def test_meter_predicts_from_what_it_measured() -> None:
    meter = ServiceMeter()
    assert meter.wait(1000, 4) == 0.0
    for _ in range(50):
        meter.note(cost=100, seconds=2.0)
    assert abs(meter.wait(1000, 4) - 5.0) < 0.01  # 1000 tokens at 50 a second and slot, four slots
    for _ in range(100):
        meter.note(cost=100, seconds=4.0)
    assert abs(meter.wait(1000, 4) - 10.0) < 0.1  # and follows a change


@given(st.floats(-10, 1e6))
def test_retry_after_is_whole_seconds_within_bounds(seconds: float) -> None:
    wait = retry_after(seconds)
    assert wait == int(wait)
    assert 1 <= wait <= 120
