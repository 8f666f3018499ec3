"""The dashboard of engine processes, and of the process in front of them."""  # noqa: INP001 - no package

from __future__ import annotations

from panels import ORANGE, RED, Json, Query, Row, dashboard, lines, states, table
from queries import ENGINE, EVERY, SERVER, YES_OR_NO, variables


def build() -> Json:
    """The dashboard."""
    return dashboard(
        "stoker-engine",
        "Stoker / Engines and process",
        "How engine processes fare, and the process in front of them.",
        variables("job", "instance", "model", "engine"),
        [_engines(), _life(), _gateway(), _process(), _versions()],
    )


def _engines() -> Row:
    return Row(
        "Engines",
        [
            states(
                "Takes requests",
                "Which engines took requests. One that is loading, doubted or away does not.",
                Query(f"stoker_engine_up{{{ENGINE}}}", "{{instance}} {{engine}}"),
                YES_OR_NO,
            ),
            lines(
                "Restarts",
                "Starts of an engine after its first one, in an hour.",
                Query(f"increase(stoker_engine_restarts_total{{{ENGINE}}}[1h])", "{{instance}} {{engine}}"),
                width=6,
            ),
            lines(
                "Ended by the watchdog",
                "Times in an hour that an engine was ended because it made no progress.",
                Query(f"increase(stoker_engine_watchdog_kills_total{{{ENGINE}}}[1h])", "{{instance}} {{engine}}"),
                width=6,
            ),
            lines(
                "Load time",
                "Time that an engine's last load took, its first token included.",
                Query(f"stoker_engine_load_seconds{{{ENGINE}}}", "{{instance}} {{engine}}"),
                unit="s",
                width=12,
            ),
            lines(
                "Memory",
                "Memory that an engine's process has resident; a mapped model file counts as far as it has been read.",
                Query(f"stoker_engine_memory_bytes{{{ENGINE}}}", "{{instance}} {{engine}}"),
                unit="bytes",
                width=12,
            ),
        ],
    )


def _life() -> Row:
    return Row(
        "Signs of life",
        [
            lines(
                "Canary latency",
                "Time that the last canary took: one token, made by an engine with nothing else to do.",
                Query(f"stoker_canary_latency_seconds{{{ENGINE}}}", "{{instance}} {{engine}}"),
                unit="s",
            ),
            lines(
                "Age of the last canary",
                "An engine with work needs none, so that this grows under load.",
                Query(f"time() - stoker_canary_last_success_timestamp_seconds{{{ENGINE}}}", "{{instance}} {{engine}}"),
                unit="s",
            ),
            lines(
                "Age of the last token",
                "Of whatever it was made for. It grows while an engine has nothing to do and canaries are turned off.",
                Query(f"time() - stoker_engine_last_token_timestamp_seconds{{{ENGINE}}}", "{{instance}} {{engine}}"),
                unit="s",
            ),
        ],
    )


def _gateway() -> Row:
    throttled = f"sum by (instance) (rate(stoker_cpu_throttled_seconds_total{{{SERVER}}}[{EVERY}]))"
    return Row(
        "Processors",
        [
            lines(
                "Event loop",
                "How late the event loop was, at worst, in the ten seconds before.",
                Query(f"stoker_event_loop_lag_seconds{{{SERVER}}}", "{{instance}}"),
                unit="s",
                steps=((0.5, ORANGE), (1, RED)),
            ),
            lines(
                "Held back by the quota",
                "Seconds in a second for which threads were held back, for each processor that is granted. The line is "
                "where the alert StokerCpuThrottled looks.",
                Query(f"{throttled} / sum by (instance) (stoker_cpu_quota_cores{{{SERVER}}})", "{{instance}}"),
                unit="short",
                steps=((0.25, ORANGE),),
            ),
            lines(
                "Load",
                "The host's load average over a minute, and the processors that are granted.",
                Query(f"stoker_host_load1{{{SERVER}}}", "{{instance}} load"),
                Query(f"stoker_cpu_quota_cores{{{SERVER}}}", "{{instance}} granted"),
            ),
        ],
    )


def _process() -> Row:
    return Row(
        "The process in front",
        [
            lines(
                "CPU",
                "Processors that the gateway process uses, without its engines.",
                Query(f"rate(process_cpu_seconds_total{{{SERVER}}}[{EVERY}])", "{{instance}}"),
            ),
            lines(
                "Memory",
                "Memory that the gateway process has resident, and what the host has left.",
                Query(f"process_resident_memory_bytes{{{SERVER}}}", "{{instance}} resident"),
                Query(f"stoker_host_memory_available_bytes{{{SERVER}}}", "{{instance}} left on the host"),
                unit="bytes",
            ),
            lines(
                "File descriptors",
                "Share of the file descriptors that the process may have; each connection takes one, each running "
                "request another.",
                Query(f"process_open_fds{{{SERVER}}} / process_max_fds{{{SERVER}}}", "{{instance}}"),
                unit="percentunit",
                steps=((0.8, ORANGE),),
                max=1,
            ),
            lines(
                "Garbage collections",
                "Runs of Python's garbage collector in a second, by generation; of the oldest there should be few.",
                Query(
                    f"sum by (instance, generation) (rate(python_gc_collections_total{{{SERVER}}}[{EVERY}]))",
                    "{{instance}} generation {{generation}}",
                ),
                unit="ops",
                width=12,
            ),
            lines(
                "Up since",
                "Time since the server's start.",
                Query(f"stoker_uptime_seconds{{{SERVER}}}", "{{instance}}"),
                unit="s",
                width=12,
            ),
        ],
    )


def _versions() -> Row:
    return Row(
        "Versions",
        [
            table(
                "Programs",
                "Versions of Stoker, of its engine's library and of Python.",
                Query(f"stoker_build_info{{{SERVER}}}"),
                *("instance", "version", "engine", "python"),
                width=24,
            )
        ],
    )
