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
    for waiting in (line._interactive, line._jobs):
        assert not waiting.finish
        assert not waiting.heap


@given(st.lists(tickets, max_size=40))
def test_interactive_goes_before_jobs_that_have_no_share(arrivals: list[Ticket]) -> None:
    line = WaitingLine(1000, 10**9, job_share=0.0)
    for ticket in arrivals:
        line.push(ticket)
    classes = [ticket.priority for ticket in drain(line)]
    assert classes == sorted(classes)


shares = st.sampled_from([0.0, 0.01, 0.125, 0.3, 0.5, 0.9, 1.0])
steps = st.lists(st.one_of(st.just("pop"), st.just("pop"), tickets), max_size=120)


@given(shares, steps)
def test_jobs_get_their_share_of_turns_and_no_more(share: float, script: list[str | Ticket]) -> None:
    """Of any turns in a row in which both wait, jobs get their share, give or take one."""
    line = WaitingLine(1000, 10**9, share)
    waiting = dict.fromkeys(Priority, 0)
    contended: list[int] = []  # 1 for a turn that a job got while interactive requests waited, and 0 for the others
    for step in [*script, *["pop"] * 120]:
        if isinstance(step, Ticket):
            line.push(step)
            waiting[step.priority] += 1
        elif (ticket := line.pop()) is not None:
            if all(waiting.values()):
                contended.append(int(ticket.priority is Priority.JOB))
            else:
                assert waiting[ticket.priority]
            waiting[ticket.priority] -= 1
    for begin in range(len(contended)):
        for end in range(begin + 1, len(contended) + 1):
            assert sum(contended[begin:end]) <= 1 + share * (end - begin) + 1e-9


@given(st.sampled_from([0.01, 0.125, 0.3, 0.5, 1.0]), st.integers(1, 5))
def test_jobs_never_starve(share: float, jobs: int) -> None:
    """However many interactive requests come, each job goes within the turns that its share takes."""
    line = WaitingLine(10**6, 10**9, share)
    for _ in range(jobs):
        line.push(Ticket(1, "a", Priority.JOB))
    gone = turns = 0
    while gone < jobs:
        line.push(Ticket(1, "b"))
        ticket = line.pop()
        turns += 1
        gone += ticket is not None and ticket.priority is Priority.JOB
        assert gone >= int(share * turns + 1e-9) - 1 or gone == jobs
        assert turns <= (gone + 1) / share + 1


@given(shares, st.integers(1, 50))
def test_who_comes_now_and_then_waits_for_no_job(share: float, jobs: int) -> None:
    """Jobs that get all other turns have had their share: a single interactive request goes before all of them."""
    line = WaitingLine(1000, 10**9, min(share, 0.5))
    for number in range(jobs):
        line.push(Ticket(1, f"tenant {number % 3}", Priority.JOB))
    while len(line):
        single = Ticket(1, "a")
        line.push(single)
        assert line.pop() is single
        line.pop()


@given(st.sampled_from(list(Priority)), st.lists(st.tuples(st.integers(1, 500), tenants), max_size=40), shares)
def test_a_class_alone_goes_as_if_there_were_no_other(
    priority: Priority, arrivals: list[tuple[int, str]], share: float
) -> None:
    mixed, plain = WaitingLine(1000, 10**9, share), WaitingLine(1000, 10**9)
    for cost, tenant in arrivals:
        mixed.push(Ticket(cost, tenant, priority))
        plain.push(Ticket(cost, tenant))
    shown = [[(ticket.cost, ticket.tenant) for ticket in drain(line)] for line in (mixed, plain)]
    assert shown[0] == shown[1]


def test_jobs_take_no_room_from_others_and_count_in_their_wait() -> None:
    line = WaitingLine(max_requests=1, max_tokens=100, job_share=0.2)
    for _ in range(5):
        line.push(Ticket(1000, "a", Priority.JOB))
    assert line.has_room(1)
    assert line.tokens == 5000
    assert line.tokens_ahead == 0
    line.push(Ticket(80, "b"))
    assert not line.has_room(1)
    assert line.tokens_ahead == 80 + 20  # four turns in five are not for jobs


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
