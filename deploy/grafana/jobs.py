"""The dashboard of jobs."""  # noqa: INP001 - a script's neighbour, no package

from __future__ import annotations

from panels import Json, Query, Row, dashboard, lines
from queries import EVERY, SERVER, variables


def build() -> Json:
    """The dashboard."""
    return dashboard(
        "stoker-jobs",
        "Stoker / Jobs",
        "What waits to be done later, what is done, and who was told.",
        variables("job", "instance"),
        [_queue(), _work()],
    )


def _queue() -> Row:
    return Row(
        "Queue",
        [
            lines(
                "Jobs by state",
                "Jobs that are kept. Replicas on one Redis all tell the same: it is their largest figure.",
                Query(f"max by (state) (stoker_jobs{{{SERVER}}})", "{{state}}"),
                width=12,
            ),
            lines(
                "Oldest job that could run",
                "For how long it has waited. It grows while the engines cannot keep up, or no worker runs.",
                Query(f"max(stoker_jobs_oldest_due_seconds{{{SERVER}}})", "oldest"),
                unit="s",
                width=12,
            ),
        ],
    )


def _work() -> Row:
    return Row(
        "Work",
        [
            lines(
                "Jobs at work",
                "Jobs that each server works on.",
                Query(f"stoker_jobs_held{{{SERVER}}}", "{{instance}}"),
                width=8,
            ),
            lines(
                "Attempts",
                "Attempts a second, by what came of them.",
                Query(f"sum by (outcome) (rate(stoker_job_attempts_total{{{SERVER}}}[{EVERY}]))", "{{outcome}}"),
                width=8,
            ),
            lines(
                "Webhooks",
                "Deliveries a second, by what came of them.",
                Query(f"sum by (outcome) (rate(stoker_webhook_deliveries_total{{{SERVER}}}[{EVERY}]))", "{{outcome}}"),
                width=8,
            ),
        ],
    )
