"""How a rollout goes from phase to phase, how it is judged, what is kept of it, and whom a canary takes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.small_disk import small_disk

from stoker.config import RolloutConfig
from stoker.errors import StartupError
from stoker.rollout.record import (
    MOST_ATTEMPTS,
    NEXT,
    OUTCOMES,
    Options,
    Phase,
    Rollout,
    RolloutConflict,
    Step,
    Version,
    resumed,
)
from stoker.rollout.shelf import KEPT, Pin, Shelf, ShelfFull
from stoker.rollout.watch import Level, Watch, level, percentile, worse
from stoker.wayfinder import Trial

OLD, NEW, OTHER = (Version(f"m@{n}", str(n), str(n) * 64) for n in (1, 2, 3))
PHASES: tuple[Phase, ...] = get_args(Phase)
UNDER_WAY = tuple(NEXT)
LIMITS = RolloutConfig(min_requests=10, error_rate=0.1, latency_ratio=1.5)


def rollout(phase: Phase = "loading", **changes: Any) -> Rollout:
    options = Options(evaluation=None, promotion="auto", canary=0.0, canary_time=60, bake=600, gap=False)
    fields = {"id": "rol-0123456789abcdef", "model": "m", "before": OLD, "after": NEW, "options": options}
    return Rollout(**{**fields, "phase": phase, "steps": (Step(phase, 1.0),), **changes})


class TestPhases:
    @pytest.mark.parametrize("phase", OUTCOMES)
    def test_nothing_follows_an_outcome(self, phase: Phase) -> None:
        assert rollout(phase).ended
        for after in PHASES:
            with pytest.raises(RolloutConflict):
                rollout(phase).at(after)

    @given(st.lists(st.sampled_from(PHASES), max_size=12))
    def test_nobody_is_switched_back_silently(self, way: list[Phase]) -> None:
        """Once the new version serves, only an end may follow that says so."""
        now = rollout()
        for phase in way:
            if phase not in NEXT.get(now.phase, ()):
                continue
            before, now = now, now.at(phase)
            assert now.revision == before.revision + 1
            if before.switched:
                assert now.phase in {"retiring", "succeeded", "rolled_back"}

    def test_steps_are_bounded(self) -> None:
        now = rollout()
        for _ in range(200):
            now = now.at("loading")
        assert len(now.steps) == 64

    def test_it_survives_being_written_down(self) -> None:
        whole = rollout("canary", by="ops", until=5.5, evaluation={"verdict": {"passed": True}}, promoted=True)
        assert Rollout.parse(json.loads(json.dumps(whole.saved()))) == whole

    def test_the_api_names_the_evaluation_set_and_does_not_repeat_it(self) -> None:
        options = Options(
            evaluation={"name": "qa", "cases": [{}] * 9}, promotion="auto", canary=0, canary_time=1, bake=1, gap=False
        )
        assert rollout(options=options).document()["options"]["evaluation"] == "qa"


class TestRestart:
    @pytest.mark.parametrize("phase", [phase for phase in UNDER_WAY if phase not in {"baking", "retiring"}])
    def test_before_the_switch_it_begins_again_with_the_old_version(self, phase: Phase) -> None:
        now = resumed(rollout(phase, promoted=True), OLD)
        assert (now.phase, now.attempts, now.promoted) == ("loading", 2, True)

    @pytest.mark.parametrize("phase", [phase for phase in UNDER_WAY if phase not in {"baking", "retiring"}])
    def test_a_pin_without_its_phase_is_a_switch(self, phase: Phase) -> None:
        now = resumed(rollout(phase), NEW)
        assert now.phase == "baking"
        assert now.until is not None
        assert now.until > time.time() + 500

    def test_baking_goes_on_and_is_watched_for_a_while_at_least(self) -> None:
        late = resumed(rollout("baking", until=1.0), NEW)
        assert late.phase == "baking"
        assert late.until is not None
        assert late.until > time.time() + 20
        early = resumed(rollout("baking", until=time.time() + 300), NEW)
        assert early.until == pytest.approx(time.time() + 300, abs=5)

    def test_retiring_goes_on(self) -> None:
        assert resumed(rollout("retiring"), NEW).phase == "retiring"

    @pytest.mark.parametrize("phase", ["baking", "retiring"])
    def test_a_pin_of_the_old_version_is_a_rollback(self, phase: Phase) -> None:
        assert resumed(rollout(phase), OLD).phase == "rolled_back"

    @pytest.mark.parametrize("phase", UNDER_WAY)
    def test_a_third_version_ends_it(self, phase: Phase) -> None:
        assert resumed(rollout(phase), OTHER).ended

    def test_it_is_not_begun_for_ever(self) -> None:
        assert resumed(rollout(attempts=MOST_ATTEMPTS), OLD).phase == "failed"


class TestJudging:
    def test_few_requests_say_nothing(self) -> None:
        assert worse(Level(), Level(requests=9, failed=9), LIMITS) is None

    def test_errors_are_compared_with_the_old_version(self) -> None:
        bad = Level(requests=100, failed=15)
        assert "15 of 100 requests failed (15.0%)" in (worse(Level(), bad, LIMITS) or "")
        assert worse(Level(requests=100, failed=8), bad, LIMITS) is None

    def test_latency_is_compared_where_there_is_enough_of_it(self) -> None:
        old, slow = Level(requests=50, timed=50, ttft_p95=1.0), Level(requests=50, timed=50, ttft_p95=1.6)
        assert "1600 ms" in (worse(old, slow, LIMITS) or "")
        assert worse(Level(), slow, LIMITS) is None
        assert worse(old, Level(requests=50, timed=29, ttft_p95=9.0), LIMITS) is None

    def test_what_nobody_notices_is_no_reason(self) -> None:
        old, new = Level(requests=50, timed=50, ttft_p95=0.01), Level(requests=50, timed=50, ttft_p95=0.1)
        assert worse(old, new, LIMITS) is None

    @given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 500), st.integers(0, 500))
    def test_more_failures_are_never_better(self, requests: int, failed: int, more: int, old_failed: int) -> None:
        requests += failed + more
        old = Level(requests=600, failed=old_failed)
        if worse(old, Level(requests=requests, failed=failed), LIMITS) is not None:
            assert worse(old, Level(requests=requests, failed=failed + more), LIMITS) is not None

    @given(st.lists(st.floats(0, 100), min_size=1))
    def test_the_percentile_is_a_value_with_that_share_below(self, values: list[float]) -> None:
        found = percentile(values, 0.95)
        assert found in values
        assert sum(value <= found for value in values) >= 0.95 * len(values)

    def test_the_watch_is_bounded_and_keeps_what_is_in_use(self) -> None:
        watch = Watch()
        for number in range(100):
            watch.note("serving", failed=False, first_token_s=0.1)
            watch.note(f"digest {number}", failed=True, first_token_s=None)
        assert watch.level("serving").requests == 100
        assert watch.level("digest 0") == level(())
        for _ in range(6000):
            watch.note("serving", failed=False, first_token_s=None)
        assert watch.level("serving").requests == 5000


class TestShelf:
    def test_what_is_pinned_is_found_again(self, tmp_path: Path) -> None:
        Shelf(tmp_path).pin("m", Pin("m@1", NEW))
        Shelf(tmp_path).pin("n", Pin("n", OLD))
        assert Shelf(tmp_path).pins() == {"m": Pin("m@1", NEW), "n": Pin("n", OLD)}

    @pytest.mark.parametrize("content", ["{", "[]", '{"m": {"configured": "m@1"}}', '{"m": 3}', "null"])
    def test_damaged_pins_are_told(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "rollouts").mkdir()
        (tmp_path / "rollouts" / "pins.json").write_text(content)
        with pytest.raises(StartupError, match="restore it from a backup"):
            Shelf(tmp_path).pins()

    def test_rollouts_are_bounded_and_bad_ones_left_out(self, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path)
        for number in range(KEPT + 5):
            shelf.save(rollout("succeeded", id=f"rol-{number:016x}", created=float(number)))
        (tmp_path / "rollouts" / "rol-ffffffffffffffff.json").write_text('{"id": "rol-ffff')
        (tmp_path / "rollouts" / "other.json").write_text("{}")
        found = shelf.load()
        assert [one.created for one in found] == [float(n) for n in range(5, KEPT + 5)]
        assert len(list((tmp_path / "rollouts").glob("rol-0*"))) == KEPT

    def test_a_full_disk_is_told_in_words(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", "16k") as disk:
            shelf = Shelf(disk)
            shelf.save(rollout())
            (disk / "more").write_bytes(bytes(8192))
            with pytest.raises(ShelfFull, match="nothing was changed; make room"):
                shelf.save(rollout("warming", reason="long" * 2000))
            assert [one.phase for one in shelf.load()] == ["loading"]


class TestTrial:
    @given(st.text(min_size=1), st.floats(0, 1))
    def test_a_caller_is_always_on_the_same_side(self, who: str, share: float) -> None:
        trial = Trial(None, share, "salt")  # type: ignore[arg-type]
        assert trial.takes(who) == trial.takes(who)
        if trial.takes(who):
            assert Trial(None, min(share * 1.5, 1.0), "salt").takes(who)  # type: ignore[arg-type]

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
    def test_the_share_is_as_said(self, share: float) -> None:
        trial = Trial(None, share, "rol-1")  # type: ignore[arg-type]
        taken = sum(trial.takes(f"user {number}") for number in range(4000))
        assert taken / 4000 == pytest.approx(share, abs=0.03)
