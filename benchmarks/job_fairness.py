"""How long people wait beside jobs: requests one after another, without jobs and while more jobs wait than can be done.

The engine is the stub with a fixed time for each token, so that one generation's time is known.

    python benchmarks/job_fairness.py [--requests 60]
"""

from __future__ import annotations

import argparse
import sys
import time

import httpx

import harness

TOKEN_MS, TOKENS, SLOTS = 10.0, 50, 4
GENERATION_S = TOKEN_MS * TOKENS / 1000
JOBS = 2000


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=60)


def ask(client: httpx.Client, requests: int) -> list[float]:
    """Seconds of each request, one after another."""
    times = []
    for number in range(requests):
        began = time.perf_counter()
        answer = client.post("/query", json={"text": f"people {number}", "max_tokens": TOKENS})
        answer.raise_for_status()
        times.append(time.perf_counter() - began)
    return times


def ended(client: httpx.Client) -> int:
    text = client.get("/metrics").text
    line = next((line for line in text.splitlines() if line.startswith('stoker_jobs{state="succeeded"}')), "x 0")
    return int(float(line.split()[-1]))


def main() -> int:
    options = harness.arguments(__doc__, add)
    requests = 5 if options.quick else options.requests
    model = {**harness.stub_model(options.model, TOKEN_MS), "plan": {"slots": SLOTS, "context": 1024}}
    with harness.gateway(model) as front, httpx.Client(base_url=front.url, timeout=60) as client:
        ask(client, 3)
        idle = ask(client, requests)
        for number in range(JOBS if not options.quick else 50):
            client.post("/jobs", json={"text": f"job {number}", "max_tokens": TOKENS}).raise_for_status()
        before, began = ended(client), time.perf_counter()
        beside = ask(client, requests)
        time.sleep(1.5)  # the gateway counts jobs once a second
        rate = (ended(client) - before) / (time.perf_counter() - began)
    report = harness.Report("job_fairness", ("requests", "p50", "p95"))
    for name, times in (("on an idle server", idle), ("beside a full queue of jobs", beside)):
        ranked = sorted(times)
        p95 = ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))]
        report.rows.append((name, f"{harness.median(times):.3f} s", f"{p95:.3f} s"))
        report.raw[name] = times
    extra = sorted(beside)[int(0.95 * len(beside))] - sorted(idle)[int(0.95 * len(idle))]
    report.notes.append(
        f"{SLOTS} slots, {TOKENS} tokens of {TOKEN_MS:g} ms: a generation takes {GENERATION_S:.2f} s. "
        f"Jobs ended meanwhile: {rate:.1f}/s."
    )
    if not options.quick:
        report.aims.append(harness.Aim("p95 beside jobs, longer by", extra / GENERATION_S, 1, "generations"))
        report.aims.append(harness.Aim("jobs done meanwhile", rate, 1, "/s", at_most=False))
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
