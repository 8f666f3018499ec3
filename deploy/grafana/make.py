"""Writes dashboards/*.json: `python deploy/grafana/make.py`.

With `--check` it changes nothing, names what is stale and exits with 1. One module a dashboard; a new one needs a line
in DASHBOARDS. What is changed in Grafana's editor is lost at the next run: change it here.
"""  # noqa: INP001 - a script for people, no package

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import engine
import jobs
import keeping
import model
import overview

DASHBOARDS = (overview, model, engine, jobs, keeping)
PLACE = Path(__file__).resolve().parent / "dashboards"


def files() -> dict[Path, str]:
    """What stands in which file."""
    built = (module.build() for module in DASHBOARDS)
    return {PLACE / f"{board['uid']}.json": json.dumps(board, indent=2) + "\n" for board in built}


def main() -> int:
    """Write or check; 1 when a check finds something stale."""
    parser = argparse.ArgumentParser(description="Writes Stoker's Grafana dashboards")
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 when something is stale")
    check = parser.parse_args().check
    wanted = files()
    stale = {path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text}
    for path in sorted(stale):
        if not check:
            path.write_text(wanted[path], encoding="utf-8")
        sys.stdout.write(f"{path.name}: {'is stale; run python deploy/grafana/make.py' if check else 'written'}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
