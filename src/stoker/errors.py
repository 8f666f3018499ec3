"""One tree of errors; each knows its HTTP status, its machine-readable code, and whether and when to retry.

Routes render them in OpenAI's envelope or as RFC 9457 problems, the CLI prints them; neither invents a status.
A message says what happened, where, and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence


class StokerError(Exception):
    """Root of every error that Stoker raises on purpose.

    Args:
        message: what happened, where, and what to do next.
        param: the request field or configuration key at fault, if one is.
        retry_after: seconds after which the same request may succeed; None when retrying is pointless.
    """

    status: int = 500
    code: str = "internal_error"
    type: str = "server_error"
    headers: Sequence[tuple[bytes, bytes]] = ()
    """Of its HTTP answer, beside those that every error has."""

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class RequestError(StokerError):
    """The caller must change the request."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class ContextOverflow(RequestError):
    """Prompt and answer do not fit the model's context."""

    code = "context_length_exceeded"


class Unsupported(RequestError):
    """A well-formed request for something that this model or server does not do."""

    code = "unsupported"


class PayloadTooLarge(RequestError):
    """The body is larger than the configured limit."""

    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(RequestError):
    """The body is in an encoding that the server does not read."""

    status = 415
    code = "unsupported_media_type"


class NotFound(RequestError):
    """No such route or object."""

    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    """The route exists, with other methods."""

    status = 405
    code = "method_not_allowed"


class ModelNotFound(NotFound):
    """No model of that name is served here."""

    code = "model_not_found"


class Overloaded(StokerError):
    """The queue is full, or the deadline cannot be met: come back later."""

    status = 503
    code = "overloaded"
    type = "overloaded_error"


class NotReady(StokerError):
    """The model is loading, restarting, failed, or the server is stopping."""

    status = 503
    code = "not_ready"
    type = "overloaded_error"


class EngineDied(StokerError):
    """The engine process ended, or was ended, while it worked on the request."""

    status = 503
    code = "engine_died"
    type = "server_error"


class EngineError(StokerError):
    """The engine answered with something that is neither an answer nor the caller's fault."""

    status = 502
    code = "engine_error"
    type = "server_error"


class DeadlineExceeded(StokerError):
    """The request's deadline passed while it waited or ran."""

    status = 504
    code = "deadline_exceeded"
    type = "timeout_error"


class OperatorError(StokerError):
    """Something the operator must mend; the CLI prints it and exits with `exit_code`."""

    exit_code: int = 1


class ConfigError(OperatorError):
    """The configuration is wrong; the message names the key, the value and the remedy."""

    code = "config_error"
    exit_code = 2


class ModelFileError(OperatorError):
    """A model file is missing, truncated, corrupt or not GGUF."""

    code = "model_file_error"


class SourceError(OperatorError):
    """A model could not be fetched from where it was said to be."""

    code = "source_error"


class PlanError(OperatorError):
    """The model does not fit what the host grants; the message has the numbers."""

    code = "does_not_fit"


class StartupError(OperatorError):
    """The server could not start: a port in use, a directory that cannot be written, an engine that gives up."""

    code = "startup_failed"
