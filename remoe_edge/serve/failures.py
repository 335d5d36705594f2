"""Errors as clients know them: a status, and a body in the form of the protocol that was spoken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remoe_edge.errors import InputError, ModelError, ReadError, RemoeError, UnsupportedError
from remoe_edge.serve.conversations import NotNow, NotReady
from remoe_edge.serve.fields import BadField

ANTHROPIC = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """Hold what went wrong, for a client."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None

    def body(self, path: str) -> dict[str, Any]:
        """Write it: in Anthropic's form on Anthropic's path, in OpenAI's everywhere else."""
        if path.startswith(ANTHROPIC):
            usual = "invalid_request_error" if self.status < 500 else "api_error"
            kind = _ANTHROPIC_TYPES.get(self.status, usual)
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_exceeded"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """Give the headers that go with it."""
        found = {}
        if self.retry_after_s is not None:
            found["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        if self.status in (408, 413):
            found["Connection"] = "close"
        return found


def failure_of(error: BaseException) -> Failure:
    """Tell a client what went wrong; of a fault of ours nothing that may hold what was asked."""
    if isinstance(error, NotNow):
        status = 503 if isinstance(error, NotReady) else 429
        return Failure(status, str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, BadField):
        return Failure(400, str(error), error.param, error.code)
    if isinstance(error, UnsupportedError):
        return Failure(400, str(error), code="unsupported")
    if isinstance(error, InputError):
        return Failure(400, str(error))
    if isinstance(error, ModelError):  # a template that fails, mostly of these messages
        return Failure(400, str(error), code="template_failed")
    if isinstance(error, ReadError):
        return Failure(500, str(error), code="storage")
    if isinstance(error, RemoeError):
        return Failure(500, str(error))
    return Failure(500, f"the server failed: {type(error).__name__}")
