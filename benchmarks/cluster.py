"""Pods that come, go, are killed and switched under load on a real Kubernetes: the tests, told as a table.

python benchmarks/cluster.py        (docs/kubernetes.md says what `make test-cluster` needs)
"""

from __future__ import annotations

import sys

import harness
import told


def main() -> int:
    options = harness.arguments(__doc__)
    rows, status = told.rows_of("-p", "no:randomly", "-m", "e2e", "tests/e2e/kubernetes")
    report = harness.Report("cluster", ("what happened", "what callers and Kubernetes saw"))
    report.rows = [
        (row["fault"], "; ".join(f"{name.replace('_', ' ')}: {said}" for name, said in row.items() if name != "fault"))
        for row in rows
    ]
    report.notes.append(
        "An answer counts as whole when every event of its stream is there, with as many tokens as were asked for. "
        "`fresh` clients connect anew for each request, `kept` ones keep their connection."
    )
    report.raw = {"rows": rows}
    report.aims.append(harness.Aim("claims that did not hold", float(status != 0), 0, ""))
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
