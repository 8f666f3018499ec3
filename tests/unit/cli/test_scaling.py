"""The simulation in benchmarks/: against queueing theory, against itself, and that it loses nothing."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[3] / "benchmarks"
ROOMS = (
    *("theory", "workload", "engine", "replica", "balance", "autoscale"),
    *("clients", "outcome", "cluster", "scenarios"),
)
ENDLESS = 10**9


@pytest.fixture
def sim(monkeypatch):
    """The rooms of the simulation, as a script beside them imports them."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return SimpleNamespace(**{name: importlib.import_module(f"scaling.{name}") for name in ROOMS})


@pytest.fixture
def queue(sim):
    """Runs a textbook's queue: work of a given spread, in seconds, at slots that do not notice each other."""

    def run(servers, busy, requests, *, places=ENDLESS, exponential=True, spec=None, seed=1, **setup):
        rng = np.random.default_rng(seed)
        times = sim.workload.poisson(rng, servers * setup.get("replicas", 1) * busy, requests)
        times *= requests / (
            servers * setup.get("replicas", 1) * busy * times[-1]
        )  # the dice's mean is not the question
        work = rng.exponential(1.0, requests) if exponential else np.ones(requests)
        work /= work.mean()
        kind = sim.workload.Work(prompt=0.0, answer=1.0, limit=1)
        trace = sim.workload.Trace(times, np.zeros(requests), work, np.zeros(requests, dtype=np.int64), kind)
        line = sim.replica.LineSpec(places, ENDLESS)
        spec = spec or sim.engine.independent(servers)
        return sim.cluster.simulate(sim.cluster.Setup(spec, line=line, timeout_s=math.inf, **setup), trace)

    return run


# -- against theory ------------------------------------------------------------------------------------------------


def test_the_formulas_agree_with_textbook_values(sim):
    assert sim.theory.erlang_b(10, 7.0) == pytest.approx(0.0787, abs=1e-4)
    assert sim.theory.erlang_c(1, 0.6) == pytest.approx(0.6)
    assert sim.theory.mmc_wait(1, 0.8, 1.0) == pytest.approx(4.0)
    assert sim.theory.mg1_wait(0.8, 1.0, 1.0) == pytest.approx(4.0)
    assert sim.theory.mmck_refused(3, 0, 2.0, 1.0) == pytest.approx(sim.theory.erlang_b(3, 2.0))


@pytest.mark.parametrize(("servers", "busy"), [(1, 0.5), (2, 0.5), (4, 0.5)])
def test_mean_wait_is_that_of_m_m_c_within_three_per_cent(sim, queue, servers, busy):
    waits = [queue(servers, busy, 100_000, seed=seed).served(100).wait_s.mean() for seed in range(3)]
    assert np.mean(waits) == pytest.approx(sim.theory.mmc_wait(servers, servers * busy, 1.0), rel=0.03)


def test_each_single_wait_is_that_of_kiefer_and_wolfowitz(sim, queue):
    servers, busy, requests = 5, 0.9, 5_000
    outcome = queue(servers, busy, requests, seed=8)
    order = np.argsort(outcome.number)
    arrived, work = outcome.arrived[order], (outcome.ended - outcome.started)[order]
    free, waits = [0.0] * servers, []
    for instant, seconds in zip(arrived.tolist(), work.tolist(), strict=True):
        free.sort()
        start = max(instant, free[0])
        free[0] = start + seconds
        waits.append(start - instant)
    assert np.allclose(outcome.wait_s[order], waits, atol=1e-5)
    assert max(waits) > 1
    assert work.mean() == pytest.approx(1.0, abs=1e-6)  # the fixture's work, neither stretched nor lost


def test_mean_wait_with_equal_work_is_that_of_pollaczek_and_khinchine(sim, queue):
    waits = [queue(1, 0.7, 60_000, exponential=False, seed=seed).served(100).wait_s.mean() for seed in range(3)]
    assert np.mean(waits) == pytest.approx(sim.theory.mg1_wait(0.7, 1.0, 0.0), rel=0.03)


@pytest.mark.parametrize("places", [0, 3, 12])
def test_a_bounded_line_refuses_as_m_m_c_k_does(sim, queue, places):
    refused = queue(4, 1.0, 80_000, places=places).share(sim.outcome.REFUSED)
    assert refused == pytest.approx(sim.theory.mmck_refused(4, places, 4.0, 1.0), rel=0.04)


@pytest.mark.parametrize("exponential", [True, False])
def test_a_divided_server_does_not_mind_the_spread_of_the_work(sim, queue, exponential):
    outcome = queue(1, 0.6, 60_000, exponential=exponential, spec=sim.engine.shared(300)).served(100)
    assert outcome.total_s.mean() == pytest.approx(sim.theory.shared_mean(0.6, 1.0), rel=0.03)


def test_the_power_of_two_choices(sim, queue):
    outcome = queue(1, 0.8, 60_000, replicas=200, balancer="two choices").served(60)
    assert outcome.total_s.mean() == pytest.approx(sim.theory.two_choices_mean(0.8, 1.0), rel=0.03)


def test_one_line_for_all_bounds_what_a_balancer_can_reach(sim, queue):
    best = sim.theory.mmc_wait(50, 50 * 0.9, 1.0)
    names = ("random", "round robin", "two choices", "least loaded")
    waits = [queue(1, 0.9, 30_000, replicas=50, balancer=name).served(60).wait_s.mean() for name in names]
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] >= 0.9 * best


# -- against itself ------------------------------------------------------------------------------------------------


def busy_cluster(sim, seed=5, **changes):
    """Everything at once: bursts, deaths, retries, deadlines, an autoscaler, remembered beginnings."""
    spec = sim.engine.EngineSpec((0.01, 0.016, 0.022, 0.03), prompt_s=0.002)
    work = sim.workload.Work(prompt=40, answer=60, prefix=100, keys=30)
    setup = {
        "replicas": 6,
        "balancer": "prefix affinity",
        "line": sim.replica.LineSpec(8),
        "timeout_s": 6.0,
        "start_s": 3.0,
        "patience": sim.clients.Patience(tries=3, jitter=0.5),
        "failures": (sim.cluster.Failure(20.0, 3), sim.cluster.Failure(40.0, 6)),
        "policy": sim.autoscale.Policy("requests", 4.0, most=12),
        "seed": seed,
        **changes,
    }
    trace = sim.workload.trace(seed, 14.0, 1500, work, sim.workload.Burst())
    return sim.cluster.simulate(sim.cluster.Setup(spec, **setup), trace), trace


@pytest.mark.parametrize("balancer", ["random", "round robin", "two choices", "least loaded", "prefix affinity"])
@pytest.mark.parametrize("views", [1, 3])
def test_every_attempt_has_one_fate(sim, balancer, views):
    outcome, trace = busy_cluster(sim, balancer=balancer, views=views)
    fates = [outcome.count(fate) for fate in range(4)]
    assert sum(fates) == outcome.arrivals == len(outcome.fate)
    assert all(fates), fates
    assert outcome.arrivals > len(trace)
    first = outcome.number[outcome.tries == 0]
    assert sorted(first.tolist()) == list(range(len(trace)))
    assert len(set(zip(outcome.number.tolist(), outcome.tries.tolist(), strict=True))) == outcome.arrivals


def test_without_deaths_and_retries_arrivals_are_served_refused_or_timed_out(sim):
    outcome, trace = busy_cluster(sim, failures=(), patience=sim.clients.GIVES_UP, replicas=2, policy=None)
    served, refused, timed_out, broken = (outcome.count(fate) for fate in range(4))
    assert served + refused + timed_out == len(trace) == outcome.arrivals
    assert broken == 0
    assert min(served, refused, timed_out) > 0


def test_instants_are_in_order_and_deadlines_hold(sim):
    outcome, _ = busy_cluster(sim)
    good = outcome.served()
    assert (good.wait_s >= 0).all()
    assert (good.first >= good.started).all()
    assert (good.ended >= good.first).all()
    assert (outcome.total_s <= 6.0 + 1e-9).all()


def test_one_seed_gives_one_result_and_another_one_another(sim):
    one, again, other = (busy_cluster(sim, seed=seed)[0] for seed in (5, 5, 6))
    assert np.array_equal(one.ended, again.ended)
    assert np.array_equal(one.fate, again.fate)
    assert one.replicas == again.replicas
    assert not np.array_equal(one.ended[:100], other.ended[:100])


# -- the engine ----------------------------------------------------------------------------------------------------


def test_a_prompt_slows_answers_down_and_a_remembered_beginning_is_free(sim):
    spec = sim.engine.EngineSpec((0.01, 0.01), prompt_s=0.002, batch=21)
    replica = sim.replica.Replica(0, spec, sim.replica.LineSpec())

    def attempt(**values):
        return sim.replica.Attempt(cost=100, tenant="", **values)

    first = attempt(prompt=50.0, prefix=50.0, beginning=7, answer=100.0)
    assert replica.offer(0.0, first) is None
    assert replica.due() == pytest.approx(0.2)
    assert replica.step(0.2) == []
    assert first.first == pytest.approx(0.2)
    second = attempt(prompt=20.0, prefix=50.0, beginning=7, answer=1.0)
    replica.offer(0.2, second)
    assert second.hit
    assert replica.due() == pytest.approx(0.2 + 0.05)  # 20 tokens of it beside one answer: 0.01 s and 20 * 0.002 s
    replica.step(replica.due())
    assert replica.step(replica.due()) == [second]
    assert replica.due() == pytest.approx(0.26 + 0.98)


def test_steps_are_linear_between_what_was_measured(sim):
    assert sim.engine.steps_between({1: 1.0, 2: 2.0, 4: 3.0}, 6) == (1.0, 2.0, 2.5, 3.0, 3.0, 3.0)


def test_a_request_that_cannot_be_in_time_is_refused_on_arrival(sim):
    replica = sim.replica.Replica(0, sim.engine.independent(1), sim.replica.LineSpec())

    def attempt(now, **values):
        return sim.replica.Attempt(cost=10, tenant="", arrived=now, **values)

    now = 0.0
    for _ in range(8):
        replica.offer(now, attempt(now))
        now = replica.due()
        replica.step(now)
    for _ in range(5):
        assert replica.offer(now, attempt(now)) is None
    assert replica.offer(now, attempt(now, deadline=now + 3.0)) == 1.0
    assert replica.offer(now, attempt(now, deadline=now + 30.0)) is None


# -- the balancers -------------------------------------------------------------------------------------------------


def test_least_loaded_keeps_its_buckets_when_replicas_come_and_go(sim):
    chance = importlib.import_module("random").Random(3)
    balancer = sim.balance.LeastLoaded(chance)
    replicas = [sim.replica.Replica(n, sim.engine.independent(1), sim.replica.LineSpec()) for n in range(12)]
    sent = []
    for turn in range(3000):
        kind = chance.random()
        if kind < 0.03 or not balancer.members:
            outside = [replica for replica in replicas if replica.number not in balancer.load]
            if outside:
                balancer.join(chance.choice(outside))
        elif kind < 0.05:
            balancer.leave(chance.choice(balancer.members))
        elif kind < 0.6:
            replica = balancer.choose(turn)
            assert balancer.load[replica.number] == min(balancer.load.values())
            balancer.began(replica)
            sent.append(replica)
        elif sent:
            balancer.ended(sent.pop(int(chance.random() * len(sent))))
        assert balancer.total == sum(balancer.load.values())


def test_affinity_keeps_its_place_and_its_bound(sim):
    balancer = sim.balance.PrefixAffinity(importlib.import_module("random").Random(3))
    replicas = [sim.replica.Replica(n, sim.engine.independent(1), sim.replica.LineSpec()) for n in range(10)]
    for replica in replicas:
        balancer.join(replica)
    homes = {key: balancer.choose(key).number for key in range(200)}
    assert len(set(homes.values())) == 10
    balancer.leave(replicas[0])
    assert all(balancer.choose(key).number == home for key, home in homes.items() if home != 0)
    for _ in range(100):
        balancer.began(balancer.choose(1))
    assert max(balancer.load.values()) <= math.ceil(1.25 * 100 / 9)


# -- the autoscaler and the clients --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "ready", "starting", "wanted"),
    [
        (0.80, 4, 0, 4),
        (0.87, 4, 0, 4),  # within a tenth
        (1.00, 4, 0, 5),
        (1.00, 4, 4, 8),  # those that start count as idle, so that growth is not asked for twice
        (0.40, 4, 0, 2),
        (0.01, 4, 0, 1),
    ],
)
def test_the_autoscaler_wishes_what_kubernetes_does(sim, metric, ready, starting, wanted):
    assert sim.autoscale.wish(metric, 0.8, ready, starting) == wanted


def test_the_autoscaler_grows_by_steps_and_shrinks_when_it_has_been_calm(sim):
    policy = sim.autoscale.Policy("cpu", 0.5, most=50, late_periods=1, calm_s=60)
    scaler = sim.autoscale.Autoscaler(policy)
    numbers, now = [2], 0.0
    for metric in (1.0,) * 4 + (0.1,) * 8:
        now += 15
        numbers.append(scaler.decide(now, metric, numbers[-1], 0))
    assert numbers[1] == 2  # the metric is a period old
    assert numbers[2:5] == [4, 8, 16]
    assert numbers[5:8] == [32, 32, 32]
    assert numbers[-1] < 32
    assert sim.autoscale.bounded(3, 100, policy) == 7


def test_clients_obey_back_off_and_give_up(sim):
    chance = importlib.import_module("random").Random(1)
    patient = sim.clients.Patience(tries=9)
    assert patient.wait(0, 7.0, chance) == 7.0
    assert patient.wait(2, None, chance) == 2.0
    assert patient.wait(8, None, chance) == 8.0
    assert patient.wait(9, 7.0, chance) is None
    spread = [sim.clients.OBEYS_SPREAD.wait(0, 10.0, chance) for _ in range(50)]
    assert 10 <= min(spread) < 12
    assert 18 < max(spread) <= 20


# -- the workload --------------------------------------------------------------------------------------------------


def test_arrivals_have_the_mean_that_was_asked_for(sim):
    rng = np.random.default_rng(1)
    burst = sim.workload.Burst(peak=3.0, share=0.2, seconds=5.0)
    calm, waves = sim.workload.poisson(rng, 10.0, 50_000), sim.workload.bursty(rng, 10.0, 50_000, burst)
    assert len(calm) / calm[-1] == pytest.approx(10, rel=0.02)
    assert len(waves) / waves[-1] == pytest.approx(10, rel=0.1)
    assert (np.diff(waves) >= 0).all()
    counts = [np.bincount(times.astype(int)) for times in (calm, waves)]
    assert counts[0].var() / counts[0].mean() == pytest.approx(1, rel=0.1)
    assert counts[1].var() / counts[1].mean() > 3


def test_lengths_have_the_mean_that_was_asked_for(sim):
    rng = np.random.default_rng(1)
    assert sim.workload.lognormal(rng, 80.0, 0.7, 50_000).mean() == pytest.approx(80, rel=0.02)
    keys = sim.workload.zipf(rng, 100, 1.0, 50_000)
    assert (keys == 0).mean() == pytest.approx(1 / sum(1 / n for n in range(1, 101)), rel=0.05)


def test_a_full_replica_answers_what_its_steps_allow(sim):
    spec = sim.engine.EngineSpec((0.01, 0.02, 0.03, 0.04))
    work = sim.workload.Work(prompt=0, answer=50, answer_spread=0.3, limit=500)
    assert sim.scenarios.capacity(spec, work) == pytest.approx(4 / 50 / 0.04, rel=0.03)
