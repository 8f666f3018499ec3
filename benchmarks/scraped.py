"""What a real Prometheus saw of a run under load, beside what the clients saw themselves.

python benchmarks/scraped.py       (needs Prometheus: apt-get install prometheus)
"""

from __future__ import annotations

import sys

import harness
import told


def main() -> int:
    options = harness.arguments(__doc__)
    rows, status = told.rows_of("-m", "e2e", "-k", "prometheus_", "tests/e2e/test_prometheus.py")
    report = harness.Report("scraped", ("what", "clients", "Prometheus", "Prometheus / clients"))
    report.rows = [(row["fault"], row["clients"], row["prometheus"], row["ratio"]) for row in rows]
    report.raw = {"rows": rows, "status": status}
    first = next((float(row["ratio"]) for row in rows if row["fault"].startswith("time")), 0.0)
    report.aims.append(harness.Aim("time to first token, p95: off by", abs(first - 1) * 100, 10, "%"))
    return report.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
