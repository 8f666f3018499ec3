"""`kill -9` of the server in each phase of a rollout, and how it went on: the tests, told as a table.

python benchmarks/rollout_kills.py
"""

from __future__ import annotations

import sys

import harness
import told


def main() -> int:
    options = harness.arguments(__doc__)
    rows, status = told.rows_of("-p", "no:randomly", "tests/integration/rollout/test_rollout_kills.py")
    columns = ("killed while", "first answer after the restart from", "outcome")
    report = harness.Report("rollout_kills", columns)
    report.rows = [(row["fault"], row["serves"], row["outcome"]) for row in rows]
    report.raw = {"rows": rows}
    report.aims.append(harness.Aim("claims that did not hold", float(status != 0), 0, ""))
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
