"""What the probes say of faults that are really there, and when: the tests of health, told as a table.

python benchmarks/faults.py
"""

from __future__ import annotations

import sys

import harness
import told


def main() -> int:
    options = harness.arguments(__doc__)
    rows, status = told.rows_of("-p", "no:randomly", "tests/integration/server/test_health.py")
    report = harness.Report("faults", ("fault", "/health/live", "/health/ready", "/health"))
    report.rows = [(row["fault"], row["live"], row["ready"], row["report"].replace("|", "/")) for row in rows]
    report.notes.append("Seconds from the fault on, by probes that ask every 0.1 s and wait 1 s for an answer.")
    report.raw = {"rows": rows}
    report.aims.append(harness.Aim("claims that did not hold", float(status != 0), 0, ""))
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
