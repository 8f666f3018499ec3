"""The dashboard of what keeps a server whole: new versions of models, and copies of everything."""  # noqa: INP001 - no package

from __future__ import annotations

from panels import GREEN, ORANGE, RED, Json, Panel, Query, Row, dashboard, lines, named, stat, states, table
from queries import SERVER, YES_OR_NO, variables

HOUR, DAY = 3600, 86_400
PASSED = {0: ("failed", RED), 1: ("passed", GREEN)}


def build() -> Json:
    """The dashboard."""
    return dashboard(
        "stoker-keeping",
        "Stoker / Rollouts and backups",
        "How versions change, and whether what is here could be had again.",
        variables("job", "instance"),
        [_now(), _backups(), _rollouts()],
    )


def _now() -> Row:
    return Row(
        "Could it be restored",
        [
            _age(
                "Newest snapshot",
                "Age of the newest good snapshot; of several servers, where it is the oldest.",
                "stoker_backup_last_success_timestamp_seconds",
                ((36 * HOUR, ORANGE), (72 * HOUR, RED)),
            ),
            stat(
                "Repository",
                "Whether every server could read its repository at its last look.",
                Query(f"min(stoker_backup_repository_up{{{SERVER}}})"),
                mappings=named({0: ("away", RED), 1: ("there", GREEN)}),
                noValue="none",
            ),
            stat(
                "Snapshots",
                "Snapshots that the repository holds; of several servers, where there are the fewest.",
                Query(f"min(stoker_backup_snapshots{{{SERVER}}})"),
                decimals=0,
                noValue="none",
            ),
            stat(
                "Last recovery drill",
                "What the last drill found: a server was restored, started and asked questions.",
                Query(f"min(stoker_backup_drill_last_result{{{SERVER}}})"),
                mappings=named(PASSED),
                noValue="none so far",
            ),
            _age(
                "Last good recovery drill",
                "Time since a drill last succeeded.",
                "stoker_backup_drill_last_success_timestamp_seconds",
                ((35 * DAY, ORANGE), (90 * DAY, RED)),
            ),
            stat(
                "Failed attempts",
                "Attempts of the schedule that failed in a day; each one is tried again up to three times.",
                Query(f'sum(increase(stoker_backup_runs_total{{{SERVER}, outcome="failed"}}[1d]))'),
                steps=((1, ORANGE), (3, RED)),
                decimals=0,
                noValue="no schedule",
            ),
        ],
    )


def _backups() -> Row:
    return Row(
        "Backups",
        [
            lines(
                "Size",
                "What the newest snapshot holds, and what of that had to be sent: models that were there are not sent "
                "again.",
                Query(f"stoker_backup_last_size_bytes{{{SERVER}}}", "{{instance}} holds"),
                Query(f"stoker_backup_last_sent_bytes{{{SERVER}}}", "{{instance}} sent"),
                unit="bytes",
            ),
            lines(
                "Time to make it",
                "How long the newest snapshot took.",
                Query(f"stoker_backup_last_duration_seconds{{{SERVER}}}", "{{instance}}"),
                unit="s",
            ),
            lines(
                "Attempts",
                "Attempts of the schedule in a day, by what came of them.",
                Query(f"sum by (outcome) (increase(stoker_backup_runs_total{{{SERVER}}}[1d]))", "{{outcome}}"),
            ),
            states(
                "Repository over time",
                "Whether the repository could be read.",
                Query(f"stoker_backup_repository_up{{{SERVER}}}", "{{instance}}"),
                YES_OR_NO,
            ),
            lines(
                "Age of the newest snapshot",
                "It falls to nothing with each new one. The line is where StokerBackupTooOld fires.",
                Query(f"time() - stoker_backup_last_success_timestamp_seconds{{{SERVER}}}", "{{instance}}"),
                unit="s",
                steps=((36 * HOUR, ORANGE),),
                width=12,
            ),
        ],
    )


def _rollouts() -> Row:
    return Row(
        "Rollouts",
        [
            states(
                "Under way",
                "Which version was on its way in, and the phase that it was in. Empty while nothing changes.",
                Query(f"stoker_rollout_phase{{{SERVER}}}", "{{model}} {{version}}: {{phase}}"),
                {1: ("under way", GREEN)},
                width=24,
            ),
            lines(
                "Time in the phase",
                "For how long the rollout has been in its phase. The line is where StokerRolloutStuck fires.",
                Query(f"stoker_rollout_phase_seconds{{{SERVER}}}", "{{instance}} {{model}}"),
                unit="s",
                steps=((2 * HOUR, ORANGE),),
            ),
            lines(
                "How they ended",
                "Rollouts that ended within a day, by how.",
                Query(f"sum by (outcome) (increase(stoker_rollouts_total{{{SERVER}}}[1d]))", "{{outcome}}"),
            ),
            table(
                "Versions",
                "What each server answers with now.",
                Query(f"stoker_model_info{{{SERVER}}}"),
                "instance",
                "model",
                "version",
                "digest",
                width=8,
            ),
        ],
    )


def _age(title: str, text: str, timestamp: str, steps: tuple[tuple[float, str], ...]) -> Panel:
    """How long ago something was."""
    return stat(title, text, Query(f"max(time() - {timestamp}{{{SERVER}}})"), unit="s", steps=steps, noValue="none")
