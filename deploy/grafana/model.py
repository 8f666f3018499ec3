"""The dashboard of models: how quickly they answer, what they answered, and how full they are."""  # noqa: INP001

from __future__ import annotations

from panels import ORANGE, RED, Json, Query, Row, dashboard, heatmap, lines, table
from queries import (
    ASKED_MODEL,
    DURATION,
    EACH_ANSWER,
    FIRST_ANSWER,
    MODEL,
    buckets,
    error_ratio,
    quantile,
    rate,
    total,
    variables,
)

NAME = "gen_ai_request_model"


def build() -> Json:
    """The dashboard."""
    return dashboard(
        "stoker-model",
        "Stoker / Models",
        "How quickly models answer, what they answered, and how full they are.",
        variables("job", "instance", "model"),
        [_first_token(), _whole_answers(), _room(), _tokens(), _requests()],
    )


def _first_token() -> Row:
    computed = f'{ASKED_MODEL}, cache=~"miss|bypass"'
    return Row(
        "Time to first token",
        [
            heatmap(
                "Computed answers",
                "Time to the first token of answers that an engine generated for their caller, waiting included.",
                buckets(FIRST_ANSWER, computed),
            ),
            lines(
                "Computed answers, quantiles",
                "The same by model. The line is where the alert StokerSlowFirstToken looks.",
                *(
                    Query(quantile(share, FIRST_ANSWER, computed, NAME), f"{{{{{NAME}}}}} p{share * 100:g}")
                    for share in (0.5, 0.95, 0.99)
                ),
                unit="s",
                steps=((5, RED),),
                width=12,
            ),
            lines(
                "By how the cache served them",
                "hit: a stored answer. joined: somebody was being answered the same. miss, bypass: computed.",
                Query(quantile(0.95, FIRST_ANSWER, ASKED_MODEL, "cache"), "{{cache}} p95"),
                unit="s",
                width=12,
            ),
            lines(
                "By operation",
                "All answers, by what was asked for.",
                Query(
                    quantile(0.95, FIRST_ANSWER, ASKED_MODEL, "gen_ai_operation_name"), "{{gen_ai_operation_name}} p95"
                ),
                unit="s",
                width=12,
            ),
        ],
    )


def _whole_answers() -> Row:
    whole = f'{ASKED_MODEL}, error_type=""'
    return Row(
        "Whole answers",
        [
            heatmap(
                "Duration",
                "From a request's arrival to the end of its answer, of those without an error.",
                buckets(DURATION, whole),
            ),
            lines(
                "Duration, quantiles",
                "The same by model.",
                *(
                    Query(quantile(share, DURATION, whole, NAME), f"{{{{{NAME}}}}} p{share * 100:g}")
                    for share in (0.5, 0.95)
                ),
                unit="s",
                width=12,
            ),
            heatmap(
                "Time per output token",
                "Time for each token after the first, of answers that an engine generated and that came to their end.",
                buckets(EACH_ANSWER, ASKED_MODEL),
            ),
            lines(
                "Time per output token, quantiles",
                "The same by model.",
                *(
                    Query(quantile(share, EACH_ANSWER, ASKED_MODEL, NAME), f"{{{{{NAME}}}}} p{share * 100:g}")
                    for share in (0.5, 0.95)
                ),
                unit="s",
                width=12,
            ),
        ],
    )


def _room() -> Row:
    running, slots = total("stoker_requests_running", MODEL, "model"), total("stoker_slots", MODEL, "model")
    return Row(
        "Room",
        [
            lines(
                "Waiting",
                "Requests that wait for a slot.",
                Query(total("stoker_requests_waiting", MODEL, "model"), "{{model}}"),
            ),
            lines(
                "Time in the queue",
                "How long requests that went to an engine had waited for it.",
                *(
                    Query(quantile(share, "stoker_queue_seconds", MODEL, "model"), f"{{{{model}}}} p{share * 100:g}")
                    for share in (0.5, 0.95)
                ),
                unit="s",
            ),
            lines(
                "Waiting tokens",
                "Tokens that waiting requests will take at most, as estimated.",
                Query(total("stoker_waiting_tokens", MODEL, "model"), "{{model}}"),
            ),
            lines(
                "Slots in use",
                "Share of the slots of ready engines that requests hold.",
                Query(f"{running} / {slots}", "{{model}}"),
                unit="percentunit",
                max=1,
            ),
            lines(
                "KV cache in use",
                "Share of the KV cache that running requests have filled, of several instances the highest. The line "
                "is where the alert StokerKvCacheFull looks.",
                Query(f"max by (model) (stoker_kv_cache_utilization_ratio{{{MODEL}}})", "{{model}}"),
                unit="percentunit",
                steps=((0.9, ORANGE),),
                max=1,
            ),
            lines(
                "Refused by the queue",
                "Requests that the waiting line refused: it was full, or their deadline would have passed in it.",
                Query(rate("stoker_queue_refused_total", MODEL, "model"), "{{model}}"),
                unit="reqps",
            ),
        ],
    )


def _tokens() -> Row:
    prompts, known = "stoker_prompt_tokens_total", "stoker_prompt_tokens_cached_total"
    return Row(
        "Tokens",
        [
            lines(
                "Tokens of answers a second",
                "Tokens that engines generated. Counted when a request ends.",
                Query(rate("stoker_generation_tokens_total", MODEL, "model"), "{{model}}"),
            ),
            lines(
                "Tokens of prompts a second",
                "Tokens of prompts that engines were given. Counted when a request ends.",
                Query(rate(prompts, MODEL, "model"), "{{model}}"),
            ),
            lines(
                "Prompts computed before",
                "Share of the prompts' tokens that an engine had in its KV cache and did not compute again.",
                Query(f"{rate(known, MODEL, 'model')} / {rate(prompts, MODEL, 'model')}", "{{model}}"),
                unit="percentunit",
                max=1,
            ),
        ],
    )


def _requests() -> Row:
    ended = "stoker_requests_total"
    return Row(
        "Requests",
        [
            lines(
                "By route and status",
                "Requests that ended, by path and HTTP status. 499: the client left.",
                Query(rate(ended, MODEL, "route, status"), "{{route}} {{status}}"),
                unit="reqps",
                stacked=True,
                width=12,
            ),
            lines(
                "By model and cache",
                "Requests that ended, by how the cache served them.",
                Query(rate(ended, MODEL, "model, cache"), "{{model}} {{cache}}"),
                unit="reqps",
                stacked=True,
                width=12,
            ),
            lines(
                "Error ratio",
                "Share of valid requests that failed by the server's fault, streams that broke included.",
                Query(error_ratio(ASKED_MODEL, NAME), f"{{{{{NAME}}}}}"),
                unit="percentunit",
                steps=((0.005, RED),),
                width=12,
            ),
            table(
                "What is loaded",
                "Each model's version, and the SHA-256 of its file.",
                Query(f"stoker_model_info{{{MODEL}}}"),
                *("instance", "model", "version", "digest"),
            ),
        ],
    )
