"""The dashboard to begin with: is it up, how do requests fare, and is there room left?"""  # noqa: INP001 - no package

from __future__ import annotations

from panels import GREEN, ORANGE, RED, Json, Query, Row, dashboard, lines, named, stat, states
from queries import (
    CHECK,
    DURATION,
    EACH_ANSWER,
    FIRST_ANSWER,
    SERVER,
    YES_OR_NO,
    error_ratio,
    quantile,
    rate,
    total,
    variables,
)

OBJECTIVE = 0.005


def build() -> Json:
    """The dashboard."""
    return dashboard(
        "stoker-overview",
        "Stoker / Overview",
        "Is it up, how do requests fare, and is there room left?",
        variables("job", "instance"),
        [_now(), _history(), _requests(), _speed(), _work(), _refusals(), _host()],
    )


def _now() -> Row:
    lights = {"mappings": named(YES_OR_NO), "steps": ((0, RED), (1, GREEN))}
    return Row(
        "Now",
        [
            stat("Up", "Whether Prometheus reaches every instance.", Query(f"min(up{{{SERVER}}})"), **lights),
            stat(
                "Ready",
                "Whether /health/ready succeeds everywhere: every model has an engine, and no queue is full.",
                Query(f"min(stoker_ready{{{SERVER}}})"),
                **lights,
            ),
            stat(
                "Error ratio",
                "Share of valid requests that failed by the server's fault; the objective allows 0.5 %.",
                Query(error_ratio(SERVER)),
                unit="percentunit",
                steps=((OBJECTIVE, ORANGE), (10 * OBJECTIVE, RED)),
                decimals=2,
            ),
            stat(
                "First token, p95",
                "Time within which 95 % of answers begin, stored ones included.",
                Query(quantile(0.95, FIRST_ANSWER, SERVER)),
                unit="s",
                steps=((2, ORANGE), (5, RED)),
            ),
            stat(
                "Tokens generated",
                "Tokens a second that engines make.",
                Query(rate("stoker_generation_tokens_total", SERVER)),
                decimals=1,
            ),
            stat(
                "Waiting",
                "Requests that wait for a slot now.",
                Query(total("stoker_requests_waiting", SERVER)),
                steps=((8, ORANGE), (48, RED)),
            ),
        ],
    )


def _history() -> Row:
    return Row(
        "Health",
        [
            states(
                "Health checks",
                "What the checks of /health found; of several instances the worst.",
                Query(f"max by (check) (stoker_health_check_status{{{SERVER}}})", "{{check}}"),
                CHECK,
            ),
            states(
                "Ready",
                "Which instances were ready.",
                Query(f"stoker_ready{{{SERVER}}}", "{{instance}}"),
                YES_OR_NO,
                width=6,
            ),
            states(
                "Store reached",
                "Which instances reached the store that they share; their own memory is always reached.",
                Query(f"stoker_store_up{{{SERVER}}}", "{{instance}}"),
                YES_OR_NO,
                width=6,
            ),
        ],
    )


def _requests() -> Row:
    ended = "stoker_requests_total"
    return Row(
        "Requests",
        [
            lines(
                "Requests by status",
                "Requests that ended, by HTTP status. 499: the client left. A stream that broke has 200 and an error.",
                Query(rate(ended, SERVER, "status"), "{{status}}"),
                unit="reqps",
                stacked=True,
            ),
            lines(
                "Error ratio",
                "Share of valid requests that failed by the server's fault, streams that broke included. 4xx are not "
                "valid. The line is the objective.",
                Query(error_ratio(SERVER), "failed"),
                unit="percentunit",
                steps=((OBJECTIVE, RED),),
            ),
            lines(
                "Errors by type",
                "Requests that ended with an error, by its code; callers' own mistakes included.",
                Query(rate(f"{DURATION}_count", f'{SERVER}, error_type!=""', "error_type"), "{{error_type}}"),
                unit="reqps",
                stacked=True,
            ),
            lines(
                "Requests by route",
                "Requests that ended, by path.",
                Query(rate(ended, SERVER, "route"), "{{route}}"),
                unit="reqps",
                stacked=True,
                width=12,
            ),
            lines(
                "Requests by model and reason",
                "Which model or expert was to answer, and how it was chosen.",
                Query(rate("stoker_routed_total", SERVER, "expert, reason"), "{{expert}} ({{reason}})"),
                unit="reqps",
                stacked=True,
                width=12,
            ),
        ],
    )


def _speed() -> Row:
    whole = f'{SERVER}, error_type=""'
    return Row(
        "Speed",
        [
            lines(
                "Time to first token",
                "From a request's arrival to the first piece of its answer, waiting included.",
                *(Query(quantile(share, FIRST_ANSWER, SERVER), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)),
                unit="s",
            ),
            lines(
                "Duration",
                "From a request's arrival to the end of its answer, of those without an error.",
                *(Query(quantile(share, DURATION, whole), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)),
                unit="s",
            ),
            lines(
                "Time per output token",
                "Time for each token after the first, of answers that an engine generated.",
                *(Query(quantile(share, EACH_ANSWER, SERVER), f"p{share * 100:g}") for share in (0.5, 0.95)),
                unit="s",
            ),
        ],
    )


def _work() -> Row:
    asked = "stoker_cache_lookups_total"
    hits = rate(asked, f'{SERVER}, outcome=~"hit|joined"')
    lookups = rate(asked, f'{SERVER}, outcome=~"hit|joined|miss"')
    return Row(
        "Work and cache",
        [
            lines(
                "Tokens a second",
                "Of prompts that engines were given, of what of them they had computed before, and of answers. Counted "
                "when a request ends.",
                Query(rate("stoker_prompt_tokens_total", SERVER), "prompts"),
                Query(rate("stoker_prompt_tokens_cached_total", SERVER), "prompts, computed before"),
                Query(rate("stoker_generation_tokens_total", SERVER), "answers"),
            ),
            lines(
                "Slots and queue",
                "Requests at engines, requests that wait, and the slots that there are.",
                Query(total("stoker_requests_running", SERVER), "running"),
                Query(total("stoker_requests_waiting", SERVER), "waiting"),
                Query(total("stoker_slots", SERVER), "slots"),
            ),
            lines(
                "Cache hit ratio",
                "Share of the answers that were not computed twice: stored ones, and generations that were joined.",
                Query(f"{hits} / {lookups}", "hit or joined"),
                unit="percentunit",
                max=1,
            ),
            lines(
                "Cache lookups by outcome",
                "Requests that the cache was asked for; bypass: neither looked up nor stored.",
                Query(rate(asked, SERVER, "outcome"), "{{outcome}}"),
                unit="reqps",
                stacked=True,
            ),
            lines(
                "Cache size",
                "Memory that stored answers take, and may take. Empty where Redis keeps them.",
                Query(total("stoker_cache_bytes", SERVER), "used"),
                Query(total("stoker_cache_limit_bytes", SERVER), "limit"),
                unit="bytes",
            ),
            lines(
                "Store errors",
                "Operations that the shared store failed at or was too slow for. The service goes on without it.",
                Query(rate("stoker_store_errors_total", SERVER, "operation, reason"), "{{operation}}: {{reason}}"),
                unit="ops",
                stacked=True,
            ),
        ],
    )


def _refusals() -> Row:
    guard = "stoker_guard_decisions_total"
    return Row(
        "Refusals",
        [
            lines(
                "Refusals by reason",
                "Requests that were turned away: the line was full or too long, the caller took more than its share, "
                "or the guard saw an attack.",
                Query(rate("stoker_queue_refused_total", SERVER), "queue"),
                Query(rate("stoker_rate_limited_total", SERVER, "scope"), "limit of: {{scope}}"),
                Query(rate(guard, f'{SERVER}, action="block"'), "guard"),
                unit="reqps",
                stacked=True,
            ),
            lines(
                "Guard",
                "Requests in which the guard found something, by what was done and the class of what was found.",
                Query(rate(guard, SERVER, "action, category"), "{{action}}: {{category}}"),
                unit="reqps",
                stacked=True,
            ),
            lines(
                "Leaks",
                "Answers that were cut off, by what they would have told.",
                Query(rate("stoker_guard_leaks_total", SERVER, "what"), "{{what}}"),
                unit="reqps",
                stacked=True,
            ),
        ],
    )


def _host() -> Row:
    used = total("stoker_memory_used_bytes", SERVER, "instance")
    limit = total("stoker_memory_limit_bytes", SERVER, "instance")
    return Row(
        "Host",
        [
            lines(
                "Memory",
                "Share in use of the memory that the cgroup grants, else of the host's. The lines are where /health "
                "warns and fails, unless it is told otherwise.",
                Query(f"{used} / {limit}", "{{instance}}"),
                unit="percentunit",
                steps=((0.9, ORANGE), (0.98, RED)),
                max=1,
            ),
            lines(
                "Memory in bytes",
                "What is granted, and what of it is in use.",
                Query(used, "{{instance}} used"),
                Query(limit, "{{instance}} granted"),
                unit="bytes",
            ),
            lines(
                "Disk",
                "Free space in the data directory's file system. The line is where /health warns, unless it is told "
                "otherwise.",
                Query(total("stoker_disk_free_bytes", SERVER, "instance"), "{{instance}}"),
                unit="bytes",
                steps=((1024**3, ORANGE),),
            ),
            lines(
                "Event loop",
                "How late the event loop was, at worst, in the ten seconds before.",
                Query(f"max by (instance) (stoker_event_loop_lag_seconds{{{SERVER}}})", "{{instance}}"),
                unit="s",
                steps=((0.5, ORANGE), (1, RED)),
            ),
            lines(
                "Load",
                "The host's load average over a minute, and the processors that are granted.",
                Query(f"max by (instance) (stoker_host_load1{{{SERVER}}})", "{{instance}} load"),
                Query(f"max by (instance) (stoker_cpu_quota_cores{{{SERVER}}})", "{{instance}} granted"),
            ),
            lines(
                "Log lines lost",
                "Lines that were not written, because what they go to is full or too slow.",
                Query(rate("stoker_log_lines_dropped_total", SERVER, "sink"), "{{sink}}"),
                unit="cps",
            ),
        ],
    )
