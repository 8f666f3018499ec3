# ruff: noqa: RUF001  # Russian
"""How long the guard takes for a text, by its length, and the output filter for a token.

python benchmarks/guard.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from stoker.admission.guard.inspect import Guard
from stoker.admission.guard.output import OutputFilter

ENGLISH = (
    "Summarize this e-mail. Subject: moving the workshop. Hi Lena, the room on the second floor is taken on Thursday, "
    "so we meet in the library at ten. Please bring the printed agenda and tell the two new colleagues where to park. "
    "The invoice for the catering has arrived; could you forward it to accounting? If you need the old slides, they "
    "are in the archive. "
)
RUSSIAN = (
    "Кратко перескажи письмо. Лена, зал на втором этаже в четверг занят, поэтому собираемся в библиотеке в десять. "
    "Возьми, пожалуйста, напечатанную повестку и объясни новым коллегам, где стоянка. Счёт за обеды пришёл, "
    "передай его в бухгалтерию. "
)
PROMPT = " ".join(f"word{number}" for number in range(300))


def microseconds(action: Callable[[], object], runs: int) -> list[float]:
    """Sorted times of single runs."""
    action()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append((time.perf_counter() - start) * 1e6)
    return sorted(times)


def main() -> None:
    """Measures and prints."""
    start = time.perf_counter()
    guard = Guard.load()
    print(f"load: {(time.perf_counter() - start) * 1e3:.0f} ms")
    for name, text in (("English", ENGLISH), ("Russian", RUSSIAN)):
        for size in (100, 1_000, 10_000, 100_000):
            sample = (text * (size // len(text) + 1))[:size]
            times = microseconds(lambda sample=sample: guard.inspect(sample), max(10, 300_000 // max(size, 1_000)))
            p50, p99 = statistics.median(times), times[int(0.99 * len(times))]
            print(f"inspect {name}, {size:,} characters: p50 {p50:,.0f} us, p99 {p99:,.0f} us")
    for name, secrets, prompt in (
        ("one secret", ["sk-live-0123456789"], None),
        ("secret and prompt", ["sk-1234"], PROMPT),
    ):
        tokens = ENGLISH.split(" ") * 50
        answer = OutputFilter(secrets, prompt)
        start = time.perf_counter()
        for token in tokens:
            answer.feed(token + " ")
        print(f"output filter, {name}: {(time.perf_counter() - start) / len(tokens) * 1e6:.1f} us a token")


if __name__ == "__main__":
    main()
