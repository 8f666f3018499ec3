"""How the backup verbs read and write sizes, times, shares and kinds."""

from __future__ import annotations

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from stoker.backup.manifest import KINDS
from stoker.cli import backup_words, words


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("45m", 2700), ("12h", 43_200), ("30d", 2_592_000), ("2w", 1_209_600), ("1.5h", 5400)],
)
def test_times(text: str, seconds: float) -> None:
    assert words.duration(text) == seconds
    assert words.duration(f" {text.upper()} ") == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-1d", "1y", "nan", "1e9d", "9" * 400 + "d", "1d2h"])
def test_no_times(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="30d"):
        words.duration(text)


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0.1", 0.1), ("100%", 1), ("1", 1), (" 2.5 %", 0.025)])
def test_shares(text: str, share: float) -> None:
    assert words.share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "0", "0%", "101%", "2", "-1%", "nan", "inf", "ten"])
def test_no_shares(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="10%"):
        words.share(text)


def test_kinds_cover_all_that_a_snapshot_holds() -> None:
    assert backup_words.kinds(",".join(backup_words.KINDS)) == frozenset(KINDS)
    assert backup_words.kinds("model, job") == {"model", "registry", "jobs"}
    assert backup_words.kinds("secrets") == {"secrets", "configuration"}


@pytest.mark.parametrize("text", ["", ",", "model,x", "registry!"])
def test_no_kinds(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="models"):
        backup_words.kinds(text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (98_000_000, "98 MB"), (5e12, "5.0 TB")]
)
def test_sizes(size: float, text: str) -> None:
    assert words.octets(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (40, "40 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d"), (1e8, "1157 d")],
)
def test_ages(seconds: float, text: str) -> None:
    assert words.age(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.004, "0.00 s"), (9.5, "9.50 s"), (12.3, "12 s"), (200, "3 min 20 s")])
def test_durations(seconds: float, text: str) -> None:
    assert words.took(seconds) == text


@given(st.text())
def test_nothing_reaches_the_terminal_but_text(text: str) -> None:
    shown = words.printable(text)
    assert shown.isprintable()
    assert len(shown) <= 500
