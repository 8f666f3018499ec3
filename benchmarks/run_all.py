"""Runs every benchmark and puts their tables into docs/benchmarks.md, between the markers that stand there.

    python benchmarks/run_all.py [--quick] [--only throughput,start] [--tables] [--llama-cpp-python PYTHON]

`--quick` only sees that everything works, in a few seconds each, and changes no document; `--tables` renews the
document from the results that are there. The exit status is 1 when a benchmark missed an aim or failed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCUMENT = HERE.parent / "docs" / "benchmarks.md"
NAMES = (
    *("throughput", "overhead", "start", "overload", "kills", "production"),
    *("observing", "faults", "scraped"),
    *("job_log", "job_kills", "job_faults", "job_fairness"),
    *("rollouts", "rollout_kills", "backups", "backup_faults"),
    *("scaling", "cluster"),
)
SCRIPTS = {"scaling": "simulate"}
"""Where the script is not called as its benchmark."""


def fill(document: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The document with each marked place holding its benchmark's table; places without a result stay as they are."""

    def replacement(found: re.Match[str]) -> str:
        result = results.get(found[1])
        if result is None:
            return found[0]
        return f"<!-- {found[1]} -->\n\n{result['table']}\n\n{origin(result)}\n\n<!-- /{found[1]} -->"

    return re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", replacement, document, flags=re.DOTALL)


def origin(result: Mapping[str, Any]) -> str:
    """One line on when and on what a result was measured."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured on {result['finished_at'][:10]}: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, Python {machine['python']}; {versions}."
    )


def results() -> dict[str, dict[str, Any]]:
    """Every result that is there, by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs every benchmark")
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds each")
    parser.add_argument("--only", default=",".join(NAMES), help="benchmarks to run")
    parser.add_argument("--tables", action="store_true", help="run nothing, renew the document")
    parser.add_argument("--llama-cpp-python", metavar="PYTHON", help="interpreter that has llama-cpp-python[server]")
    parser.add_argument("--litellm", metavar="PYTHON", help="interpreter that has litellm[proxy]")
    options = parser.parse_args()
    chosen = [] if options.tables else options.only.split(",")
    unknown = sorted(set(chosen) - set(NAMES))
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    failed = []
    for name in chosen:
        command = [sys.executable, str(HERE / f"{SCRIPTS.get(name, name)}.py")] + (["--quick"] if options.quick else [])
        if name == "throughput" and options.llama_cpp_python:
            command += ["--llama-cpp-python", options.llama_cpp_python]
        if name == "production" and options.litellm:
            command += ["--litellm", options.litellm]
        print(f"\n=== {name} ===", flush=True)
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(name)
    if not options.quick and DOCUMENT.exists():
        DOCUMENT.write_text(fill(DOCUMENT.read_text(encoding="utf-8"), results()), encoding="utf-8")
        print(f"tables: {DOCUMENT}")
    if failed:
        print(f"missed an aim or failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
