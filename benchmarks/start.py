"""Seconds from `stoker serve` to ready, with the model on disk and its pages in the file cache.

python benchmarks/start.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import sys
import time

import harness


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7)


def main() -> int:
    options = harness.arguments(__doc__, add)
    rounds = 1 if options.quick else options.rounds
    whole: list[float] = []
    bare: list[float] = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        with harness.gateway(harness.real_model(options.model)) as front:
            whole.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            with harness.bare_engine(front):
                bare.append(time.perf_counter() - begun)
    # The first start fills the file cache and compiles bytecode.
    whole, bare = whole[1:], bare[1:]
    report = harness.Report("start", ("from start to ready", "median", "lowest and highest"))
    for name, found in (("stoker serve", whole), ("the engine process alone", bare)):
        report.rows.append((name, f"{harness.median(found):.2f} s", f"{min(found):.2f} to {max(found):.2f} s"))
    report.notes.append(f"{rounds} starts of each, alternating, after one that does not count.")
    report.raw = {"stoker_s": whole, "engine_s": bare}
    if not options.quick:
        report.aims.append(harness.Aim("from stoker serve to ready", harness.median(whole), 3.5, "s"))
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
