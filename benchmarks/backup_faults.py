"""Backups that are killed, and bits that are flipped in what they stored: the tests, told as a table.

python benchmarks/backup_faults.py
"""

from __future__ import annotations

import sys

import harness
import told

TESTS = (
    "tests/integration/backup/test_backup_killed.py",
    "tests/integration/backup/test_backup_verify.py",
    "tests/integration/backup/test_prune_faults.py",
)


def main() -> int:
    options = harness.arguments(__doc__)
    rows, status = told.rows_of("-p", "no:randomly", *TESTS)
    report = harness.Report("backup_faults", ("fault", "store", "found"))
    report.rows = [(row["fault"], row["store"], row["found"]) for row in rows]
    report.raw = {"rows": rows}
    report.aims.append(harness.Aim("claims that did not hold", float(status != 0), 0, ""))
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
