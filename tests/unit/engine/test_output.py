"""What a child says is passed on with its severity, and a flood of it is not."""

from __future__ import annotations

import logging

import structlog
from structlog.testing import capture_logs

from stoker.engine.output import LOUD_LINES_A_SECOND, Output, level_of


def test_severities_of_llama_cpp() -> None:
    assert level_of("0.00.000.266 I srv          init: initializing ...") == logging.DEBUG
    assert level_of("0.00.213.408 W llama_context: n_ctx_seq (512) < n_ctx_train") == logging.WARNING
    assert level_of("0.00.213.408 E llama_model_load: error loading model") == logging.ERROR
    assert level_of("E 0.1 no time before the letter") == logging.DEBUG
    assert level_of("Traceback (most recent call last):") == logging.DEBUG
    assert level_of("0.00.001.976 W srv          init: security: no API key is set and CORS ...") == logging.DEBUG


def test_the_last_words_are_those_about_an_error() -> None:
    output = Output(structlog.get_logger())
    assert output.last_words() == "it said nothing"
    for line in (b"loading", b"error: no such file", b"bye\n", b"", b"  "):
        output.note(line)
    assert output.last_words() == "error: no such file"
    assert output.latest(2) == ["error: no such file", "bye"]


def test_a_flood_of_errors_is_lowered_to_debug_until_the_next_second() -> None:
    now = 100.0
    output = Output(structlog.get_logger(), lambda: now)
    with capture_logs() as lines:
        for _ in range(3 * LOUD_LINES_A_SECOND):
            output.note(b"0.1 E srv: broken")
        assert [line["log_level"] for line in lines].count("error") == LOUD_LINES_A_SECOND
        now += 1
        output.note(b"0.2 E srv: still broken")
    assert lines[-1]["log_level"] == "error"
