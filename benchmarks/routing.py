"""What choosing an expert costs: seconds to train at start, microseconds a decision, by the length of the text.

python benchmarks/routing.py [--rounds 300]

The examples are made: six experts of 70 requests, and as many that are nobody's, from words of their own.
"""

from __future__ import annotations

import argparse
import sys
import time

import harness

TOPICS = {
    "billing": "invoice payment refund charge card price subscription account",
    "code": "function bug compiler python class error test library",
    "garden": "tomato rose water soil plant leaf tree seed",
    "travel": "flight hotel train ticket visa luggage beach museum",
    "food": "recipe soup bread oven salt dinner restaurant cheese",
    "health": "doctor fever headache pill sleep allergy dentist pain",
}
OUTSIDE = "galaxy emperor football opera volcano election dinosaur painter"
ASKED = "how do I pay the invoice for my subscription with another card, and why was the price of it raised in March? "
LENGTHS = (40, 200, 2_000, 200_000)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=300)


def requests(words: str) -> list[str]:
    nouns = words.split()
    openings = ("how do I find a", "what about the", "please help with my", "is there a", "tell me of the", "why the")
    count = len(nouns)
    pairs = [(first, nouns[(place + step) % count]) for place, first in enumerate(nouns) for step in range(1, count)]
    return [f"{openings[number % 6]} {first} and the {second}" for number, (first, second) in enumerate(pairs)]


def main() -> int:
    options = harness.arguments(__doc__, add)
    rounds = 20 if options.quick else options.rounds
    from stoker.routing.classifier import Classifier
    from stoker.routing.vectors import shipped

    begun = time.perf_counter()
    shipped()
    loaded = time.perf_counter() - begun
    begun = time.perf_counter()
    classifier = Classifier.train({name: requests(words) for name, words in TOPICS.items()}, {}, requests(OUTSIDE))
    trained = time.perf_counter() - begun
    report = harness.Report("routing", ("what", "median", "99th of 100"))
    report.rows.append(("read the network", f"{loaded:.2f} s", ""))
    report.rows.append((f"train on {7 * len(requests(OUTSIDE))} examples", f"{trained:.2f} s", ""))
    medians = {}
    for length in LENGTHS:
        text = (ASKED * (length // len(ASKED) + 1))[:length]
        times = []
        for number in range(rounds):
            begun = time.perf_counter()
            classifier.rank(f"{number} {text}")
            times.append(time.perf_counter() - begun)
        times.sort()
        medians[length] = harness.median(times)
        high = times[int(len(times) * 0.99)]
        report.rows.append(
            (f"decide on {length:,} characters", f"{medians[length] * 1e3:.2f} ms", f"{high * 1e3:.2f} ms")
        )
    report.notes.append("One thread. Of a text only the first 2,000 characters are read.")
    report.raw = {"load_s": loaded, "train_s": trained, "decide_s": {str(key): value for key, value in medians.items()}}
    if not options.quick:
        report.aims.append(harness.Aim("decide on 200 characters", medians[200] * 1e3, 1.0, "ms"))
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
