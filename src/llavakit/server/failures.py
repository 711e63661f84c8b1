"""From our errors to HTTP statuses and the bodies of each dialect: one table."""

from __future__ import annotations

from typing import Any

from llavakit.core import errors
from llavakit.core.errors import LlavakitError, OverloadedError, RefusedError

__all__ = ["STATUS_BY_ERROR", "body_of", "headers_of", "status_of"]

STATUS_BY_ERROR: dict[type[LlavakitError], int] = {
    errors.RequestError: 400,
    errors.UnsupportedFieldError: 400,
    errors.ConfigError: 400,
    errors.ModelNotFoundError: 404,
    errors.AccessError: 401,
    errors.OverloadedError: 503,
    errors.CapacityError: 413,
    errors.MissingDependencyError: 501,
    errors.StoreError: 502,
    errors.WeightsError: 500,
    errors.NonFiniteError: 500,
    LlavakitError: 500,
}

# What clients of OpenAI look for, to shorten a conversation for instance.
_OPENAI_CODES = {"context-overflow": "context_length_exceeded", "model-not-found": "model_not_found"}


def status_of(error: LlavakitError) -> int:
    """Return the status of an error: that of its nearest ancestor in the table."""
    if isinstance(error, RefusedError):
        return error.status
    return next(STATUS_BY_ERROR[kind] for kind in type(error).__mro__ if kind in STATUS_BY_ERROR)


def headers_of(error: LlavakitError) -> dict[str, str]:
    """Return headers that go with an error."""
    if isinstance(error, OverloadedError):
        return {"Retry-After": str(error.retry_after_s)}
    if status_of(error) == 429:
        return {"Retry-After": "60"}
    return {"WWW-Authenticate": "Bearer"} if status_of(error) == 401 else {}


def body_of(error: LlavakitError, *, is_ollama: bool) -> dict[str, Any]:
    """Return the body of an error in a dialect. Faults of ours do not say what they are: that is for the log."""
    status = status_of(error)
    is_told = status < 500 or status in (501, 503)
    if is_told:
        message = str(error)
    elif isinstance(error, errors.StoreError):  # its text names folders of this machine
        message = "the server's model store or the Hub failed; its log says more"
    else:
        message = "the request failed inside the server"
    if is_ollama:
        return {"error": message}
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = "invalid_api_key" if status == 401 else _OPENAI_CODES.get(error.code, error.code)
    return {"error": {"message": message, "type": kind, "param": getattr(error, "param", None), "code": code}}
