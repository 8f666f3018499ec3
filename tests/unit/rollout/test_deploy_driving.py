"""Whole deploys, in a world of memory: good and bad ones, and those whose program is killed at every upgrade."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tests.deploys import Heard, Killed, World

from stoker.errors import OperatorError
from stoker.rollout import cluster_drive
from stoker.rollout.cluster import Deploy, Wish
from stoker.rollout.cluster_drive import Driver, Found, free
from stoker.rollout.cluster_values import Order, filled, idle_of, may_return, remembered, warmed


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(cluster_drive, "time", SimpleNamespace(time=made.time, sleep=made.sleep))
    return made


def planned(world: World, order: Order, *, back: bool = False) -> None:
    """What `stoker deploy start` and `rollback` do first."""
    found = Found(world)
    new = idle_of(found.full)
    deploy = Deploy(
        id=f"dep-{world.now:.0f}",
        old=found.full["active"],
        new=new,
        created=world.now,
        bake=0 if back else order.bake,
        load_within=order.load_within,
        gated=order.gate and not back,
        gate_was=found.values.get("gate") or {},
        was=remembered(found.full, new),
        back=back or may_return(found.deploy),
    )
    serving = world.slots()[deploy.old]
    if back:
        world.upgrade(warmed(found.values, found.full, deploy, serving), "back")
    else:
        world.upgrade(filled(found.values, found.full, order, deploy, serving), "fill")


def driven(world: World, wish: Wish | None = None) -> tuple[Deploy, Heard]:
    heard = Heard()
    return Driver(world, world, heard, wish, world.sleep).run(), heard


def deployed(world: World, image: str, **order: float | bool) -> tuple[Deploy, Heard]:
    planned(world, Order(image=image, **order))
    return driven(world)


def images(world: World) -> dict[str, str]:
    return dict(world.images)


def test_good(world: World) -> None:
    deploy, heard = deployed(world, "chat:2")
    assert heard.steps == ["loading", "baking", "succeeded"]
    assert (deploy.step, world.active, world.upgrades) == ("succeeded", "green", 3)
    assert world.wanted == {"blue": 0, "green": 1}
    assert images(world) == {"blue": "chat:1", "green": "chat:2"}
    # No request was without a slot that answers, and the switch was one.
    assert "".join(slot[0] for slot in world.active_by_time).strip("b").strip("g") == ""


def test_and_again_into_the_other_slot(world: World) -> None:
    deployed(world, "chat:2")
    deploy, _ = deployed(world, "chat:3")
    assert (deploy.old, deploy.new, world.active) == ("green", "blue", "blue")
    assert images(world) == {"blue": "chat:3", "green": "chat:2"}


def test_refused_by_the_gate(world: World) -> None:
    world.bad_gate = {"chat:2"}
    before = images(world)
    deploy, heard = deployed(world, "chat:2")
    assert heard.steps == ["loading", "refused"]
    assert "pass rate 8.3 %, at least 40 % wanted" in deploy.note
    assert set(world.active_by_time) == {"blue"}
    assert images(world) == before
    assert world.wanted == {"blue": 1, "green": 0}


def test_the_gate_may_be_left_out(world: World) -> None:
    world.bad_gate = {"chat:2"}
    assert deployed(world, "chat:2", gate=False)[0].step == "succeeded"


def test_never_starts(world: World) -> None:
    world.broken = {"chat:2"}
    deploy, _ = deployed(world, "chat:2")
    assert deploy.step == "failed"
    assert "CrashLoopBackOff" in deploy.note
    assert world.active == "blue"


def test_takes_too_long(world: World) -> None:
    world.load = 5000
    world.started["blue"] = 0
    deploy, _ = deployed(world, "chat:2", load_within=600.0)
    assert (deploy.step, "0 of 1 pods" in deploy.note) == ("failed", True)


@pytest.mark.parametrize("how", ["slow", "failing"])
def test_taken_back_when_it_is_worse(world: World, how: str) -> None:
    setattr(world, how, {"chat:2"})
    deploy, heard = deployed(world, "chat:2")
    assert heard.steps == ["loading", "baking", "returning", "rolled_back"]
    assert ("first token" if how == "slow" else "requests failed") in deploy.note
    assert (world.active, world.wanted) == ("blue", {"blue": 1, "green": 0})


def test_taken_back_when_its_pods_are_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(world, Order(image="chat:2"))

    def sleep(seconds: float) -> None:
        world.now += seconds
        if world.active == "green":
            world.dead = {"chat:2"}

    deploy = Driver(world, world, Heard(), None, sleep).run()
    assert deploy.step == "rolled_back"
    assert "no pod of green has been ready" in deploy.note


def test_figures_that_cannot_be_read_are_said(world: World) -> None:
    world.unreadable = True
    world.failing = {"chat:2"}
    deploy, heard = deployed(world, "chat:2")
    assert deploy.step == "succeeded"
    assert len([note for note in heard.notes if "only readiness is watched" in note]) == 1


def test_rollback_after_success_and_back_again(world: World) -> None:
    deployed(world, "chat:2")
    planned(world, Order(), back=True)
    deploy, _ = driven(world)
    assert (deploy.step, world.active, world.images["blue"]) == ("succeeded", "blue", "chat:1")
    planned(world, Order(), back=True)
    assert driven(world)[0].step == "succeeded"
    assert world.images[world.active] == "chat:2"


def test_rollback_after_a_refused_deploy_finds_what_served(world: World) -> None:
    deployed(world, "chat:2")
    world.bad_gate = {"chat:3"}
    assert deployed(world, "chat:3")[0].step == "refused"
    assert may_return(world.deploy)
    planned(world, Order(), back=True)
    driven(world)
    assert world.images[world.active] == "chat:1"


def test_nothing_to_go_back_to_at_first(world: World) -> None:
    world.bad_gate = {"chat:2"}
    deployed(world, "chat:2")
    assert not may_return(world.deploy)


@pytest.mark.parametrize("wish", ["abort", "rollback"])
def test_ended_by_hand(world: World, wish: Wish) -> None:
    planned(world, Order(image="chat:2"))
    assert driven(world, wish)[0].step == "aborted"
    assert (world.active, world.wanted["green"]) == ("blue", 0)


def test_the_users_gate_comes_back(world: World) -> None:
    world.upgrade({"gate": {"enabled": True, "set": "cases: []"}}, "by hand")
    deployed(world, "chat:2", gate=False)
    number = max(one.number for one in world.history() if one.status == "deployed")
    assert world.values(number)["gate"] == {"enabled": True, "set": "cases: []"}


@pytest.mark.parametrize("when", ["before", "pending", "half", "after"])
@pytest.mark.parametrize("upgrade", [2, 3])
@pytest.mark.parametrize("fault", ["none", "bad_gate", "slow"])
def test_killed_at_any_upgrade_and_resumed(world: World, when: str, upgrade: int, fault: str) -> None:
    if fault != "none":
        setattr(world, fault, {"chat:2"})
    planned(world, Order(image="chat:2"))
    world.kill_at = (when, upgrade)
    try:
        deploy, _ = driven(world)
    except Killed:
        world.kill_at = None
        free(world, Heard(), take_over=True, sleep=world.sleep)
        deploy, _ = driven(world)
    assert deploy.step == {"none": "succeeded", "bad_gate": "refused", "slow": "rolled_back"}[fault]
    assert world.active == ("green" if fault == "none" else "blue")
    assert world.wanted[world.active] == 1


def test_a_pending_upgrade_is_waited_for(world: World) -> None:
    planned(world, Order(image="chat:2"))
    world.kill_at = ("pending", 2)
    with pytest.raises(Killed):
        driven(world)
    heard, began = Heard(), world.now
    free(world, heard, take_over=False, sleep=world.sleep)
    assert world.now - began > cluster_drive.LONGEST_UPGRADE_S
    assert "--take-over" in heard.notes[0]
    assert "broken off" in heard.notes[-1]


def test_somebody_elses_upgrade_ends_it(world: World) -> None:
    planned(world, Order(image="chat:2"))
    driver = Driver(world, world, Heard(), None, world.sleep)
    world.upgrade(world.values(2), "by hand")
    with pytest.raises(OperatorError, match="somebody else"):
        driver.run()


def test_the_new_slot_is_as_large_as_the_old_one(world: World) -> None:
    world.upgrade({"autoscaling": {"enabled": True}, "slots": {"blue": {"replicas": 3}}}, "by hand")
    planned(world, Order(image="chat:2"))
    assert world.wanted == {"blue": 3, "green": 3}
    driven(world)
    number = max(one.number for one in world.history() if one.status == "deployed")
    assert world.values(number)["slots"]["green"]["replicas"] is None  # the autoscaler has it now
