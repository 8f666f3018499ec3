"""What a real Prometheus saw of a run under load, beside what the clients saw themselves.

python benchmarks/scraped.py       (needs Prometheus: apt-get install prometheus)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import harness

ROOT = Path(__file__).resolve().parent.parent
TESTS = "tests/e2e/test_prometheus.py"


def main() -> int:
    options = harness.arguments(__doc__)
    with tempfile.TemporaryDirectory() as place:
        told = Path(place) / "told"
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", "e2e", "-k", "prometheus_", TESTS]
        ended = subprocess.run(command, cwd=ROOT, env={**os.environ, "STOKER_TEST_TABLE": str(told)}, check=False)
        rows = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    report = harness.Report("scraped", ("what", "clients", "Prometheus", "Prometheus / clients"))
    report.rows = [(row["fault"], row["clients"], row["prometheus"], row["ratio"]) for row in rows]
    report.raw = {"rows": rows, "status": ended.returncode}
    first = next((float(row["ratio"]) for row in rows if row["fault"].startswith("time")), 0.0)
    report.aims.append(harness.Aim("time to first token, p95: off by", abs(first - 1) * 100, 10, "%"))
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
