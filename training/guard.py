# ruff: noqa: INP001  # a script
"""Trains the guard's classifier and measures it by cross-validation.

    python training/guard.py attacks.jsonl... [--out WEIGHTS.npz] [--report docs/guard.md]

Every line of a file is a JSON object with `text`, `label` (1 attack, 0 harmless), `lang` and `source`. Rows of our own
(`guard_rows.jsonl` beside this script) are always learnt from and never measured on. The same files give the same
weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from guard_data import OWN, Row, composed, fold_of, groups, read
from guard_fit import Example, fit

from stoker.admission.guard.analysis import Analysis, analyse
from stoker.admission.guard.classifier import Classifier
from stoker.admission.guard.inspect import combined, knowledge

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE.parent / "src" / "stoker" / "admission" / "guard" / "weights.npz"
OWN_ROWS = HERE / "guard_rows.jsonl"
FOLDS = 5
FALSE_POSITIVES = 0.007
"""Share of harmless texts that score 0.5 or more in cross-validation; the constant `zero` is chosen for it."""
OWN_ATTACK, OWN_HARMLESS, COMPOSED = 0.2, 0.25, 0.05
"""What a row of our own weighs beside one of the others: attack, harmless text, attack put into a harmless text."""
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True, slots=True)
class Measured:
    """The outcome of cross-validation: for each row the score that a classifier gave it which had not seen its like."""

    rows: list[Row]
    scores: list[float]

    def rates(self, chosen: Callable[[Row], bool], threshold: float = 0.5) -> tuple[int, int, int, int]:
        """Attacks, attacks found, harmless texts, false positives among the chosen rows."""
        hits = [
            (row.attack, score >= threshold) for row, score in zip(self.rows, self.scores, strict=True) if chosen(row)
        ]
        attacks = [hit for attack, hit in hits if attack]
        harmless = [hit for attack, hit in hits if not attack]
        return len(attacks), sum(attacks), len(harmless), sum(harmless)

    def recall_at(self, rate: float) -> float:
        """Recall at the threshold that this share of harmless texts exceeds, 0..1."""
        harmless = sorted((s for row, s in zip(self.rows, self.scores, strict=True) if not row.attack), reverse=True)
        limit = harmless[int(rate * len(harmless))]
        attacks = [score for row, score in zip(self.rows, self.scores, strict=True) if row.attack]
        return sum(score > limit for score in attacks) / len(attacks)


class Trainer:
    """Takes texts apart once and learns from them as often as asked."""

    def __init__(self) -> None:
        self._words, self._rules = knowledge()
        self._known: dict[str, list[Analysis]] = {}

    def analysed(self, text: str) -> list[Analysis]:
        """The text taken apart."""
        if text not in self._known:
            self._known[text] = list(analyse(text, self._words, self._rules))
        return self._known[text]

    def learn(self, rows: Sequence[Row]) -> Classifier:
        """A classifier from these rows and from attacks composed of them; its scale is not set yet."""
        examples = []
        for row in [*rows, *composed(rows)]:
            pieces = self.analysed(row.text)
            examples += [Example(piece, row.attack, _weight(row) / len(pieces)) for piece in pieces]
        return fit(examples)

    def build(self, rows: Sequence[Row], own: Sequence[Row]) -> tuple[Classifier, Measured]:
        """The classifier to ship, and how the same recipe does on rows that it has not seen."""
        together = [*rows, *own]
        group = groups(together)
        fold = [fold_of(number, together, FOLDS) for number in group]
        measured: dict[int, tuple[Classifier, float]] = {}
        for current in range(FOLDS):
            held = [number for number in range(len(rows)) if fold[number] == current]
            unseen = {group[number] for number in held}
            classifier = self.learn([row for row, its in zip(together, group, strict=True) if its not in unseen])
            for number in held:
                pieces = self.analysed(rows[number].text)
                measured[number] = (classifier, max(classifier.logit(piece) for piece in pieces))
        harmless = [measured[number][1] for number, row in enumerate(rows) if not row.attack]
        zero = float(np.quantile(harmless, 1 - FALSE_POSITIVES))
        scores = [
            combined(replace(measured[number][0], zero=zero).squash(measured[number][1]), self.analysed(row.text))
            for number, row in enumerate(rows)
        ]
        return replace(self.learn(together), zero=zero), Measured(list(rows), scores)


def _weight(row: Row) -> float:
    if row.source != OWN:
        return 1.0
    if row.kind == "composed":
        return COMPOSED
    return OWN_ATTACK if row.attack else OWN_HARMLESS


def report(measured: Measured) -> str:
    """The outcome as Markdown."""
    rates = measured.rates(lambda _: True)
    at = (0.005, 0.01, 0.02, 0.05)
    lines = [
        f"At the shipped threshold 0.5: **recall {_share(*rates[:2])}** of {rates[0]} attacks,",
        f"**false positives {_share(*rates[2:])}** of {rates[2]} harmless texts.",
        "",
        "| False positives | " + " | ".join(f"{rate:.1%}" for rate in at) + " |",
        "|---|" + "---|" * len(at),
        "| Recall | " + " | ".join(f"{measured.recall_at(rate):.1%}" for rate in at) + " |",
    ]
    lines += _table("Source", measured, lambda row: row.source)
    lines += _table("Language", measured, lambda row: row.lang)
    return "\n".join(lines)


def _table(title: str, measured: Measured, key_of: Callable[[Row], str]) -> list[str]:
    lines = ["", f"| {title} | Attacks | Recall | Harmless | False positives |", "|---|---|---|---|---|"]
    for key in sorted(set(map(key_of, measured.rows))):
        attacks, found, harmless, wrong = measured.rates(lambda row, key=key: key_of(row) == key)  # type: ignore[misc]
        lines.append(f"| {key} | {attacks} | {_share(attacks, found)} | {harmless} | {_share(harmless, wrong)} |")
    return lines


def _share(total: int, part: int) -> str:
    return f"{part / total:.1%}" if total else "-"


def write_report(page: Path, text: str) -> None:
    """Puts the text between the page's two marks.

    Raises:
        ValueError: the page lacks a mark.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} lacks the lines {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> int:
    """Reads, trains, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.jsonl")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go")
    parser.add_argument("--report", type=Path, help="a page whose tables are renewed")
    options = parser.parse_args()
    try:
        rows = [row for file in options.files for row in read(file)]
        classifier, measured = Trainer().build(rows, read(OWN_ROWS))
        if options.report:
            write_report(options.report, report(measured))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    np.savez_compressed(options.out, **classifier.pack())
    sys.stdout.write(f"{report(measured)}\n\nwritten: {options.out} ({options.out.stat().st_size:,} bytes)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
