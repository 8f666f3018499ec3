"""The PromQL that dashboards share."""  # noqa: INP001 - a script's neighbour, no package

from __future__ import annotations

from panels import GREEN, ORANGE, RED, Json, variable

SERVER = 'job=~"$job", instance=~"$instance"'
"""The chosen servers, in an expression's braces."""
MODEL = f'{SERVER}, model=~"$model"'
ENGINE = f'{MODEL}, engine=~"$engine"'
ASKED_MODEL = f'{SERVER}, gen_ai_request_model=~"$model"'
"""The chosen models under OpenTelemetry's name for them."""
EVERY = "$__rate_interval"
DURATION = "gen_ai_server_request_duration_seconds"
FIRST_ANSWER = "gen_ai_server_time_to_first_token_seconds"
EACH_ANSWER = "gen_ai_server_time_per_output_token_seconds"
FAILED = "internal_error|overloaded|not_ready|engine_died|engine_error|deadline_exceeded|store_down|storage_full"
"""Codes of errors that are the server's, as in prometheus/stoker.rules.yml."""
YES_OR_NO = {0: ("no", RED), 1: ("yes", GREEN)}
CHECK = {0: ("ok", GREEN), 1: ("warn", ORANGE), 2: ("fail", RED)}


def rate(metric: str, selector: str, by: str = "") -> str:
    """A counter's growth in a second, over all that is selected or by labels."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{selector}}}[{EVERY}]))"


def total(metric: str, selector: str, by: str = "") -> str:
    """A gauge's sum over all that is selected, or by labels."""
    return f"sum{f' by ({by})' if by else ''} ({metric}{{{selector}}})"


def quantile(share: float, metric: str, selector: str, by: str = "") -> str:
    """A quantile of a histogram, over all that is selected or by labels."""
    return f"histogram_quantile({share:g}, {rate(f'{metric}_bucket', selector, f'le, {by}' if by else 'le')})"


def buckets(metric: str, selector: str) -> str:
    """How many values fell into each bucket of a histogram."""
    return f"sum by (le) (increase({metric}_bucket{{{selector}}}[{EVERY}]))"


def error_ratio(selector: str, by: str = "") -> str:
    """The share of the valid requests that failed; 0 where none did."""
    failed = rate(f"{DURATION}_count", f'{selector}, error_type=~"{FAILED}"', by)
    valid = rate(f"{DURATION}_count", f'{selector}, error_type=~"|{FAILED}"', by)
    return f"({failed} or 0 * {valid}) / {valid}"


def variables(*names: str) -> list[Json]:
    """The template variables of these names, in their order; each one's choice depends on those before."""
    known = {
        "job": variable("job", "Job", "label_values(stoker_build_info, job)"),
        "instance": variable("instance", "Instance", 'label_values(stoker_build_info{job=~"$job"}, instance)'),
        "model": variable("model", "Model", f"label_values(stoker_model_info{{{SERVER}}}, model)"),
        "engine": variable("engine", "Engine", f"label_values(stoker_engine_up{{{MODEL}}}, engine)"),
    }
    return [known[name] for name in names]
