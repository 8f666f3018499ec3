"""What the probes say of faults that are really there, and when: the tests of health, told as a table.

python benchmarks/faults.py
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
TESTS = "tests/integration/server/test_health.py"


def main() -> int:
    options = harness.arguments(__doc__)
    with tempfile.TemporaryDirectory() as place:
        told = Path(place) / "told"
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", TESTS],
            cwd=ROOT,
            env={**os.environ, "STOKER_TEST_TABLE": str(told)},
            check=False,
        )
        rows = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    report = harness.Report("faults", ("fault", "/health/live", "/health/ready", "/health"))
    report.rows = [(row["fault"], row["live"], row["ready"], row["report"].replace("|", "/")) for row in rows]
    report.notes.append("Seconds from the fault on, by probes that ask every 0.1 s and wait 1 s for an answer.")
    report.raw = {"rows": rows}
    report.aims.append(harness.Aim("claims that did not hold", float(ended.returncode != 0), 0, ""))
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
