"""The errors of the service, as one tree.

ServiceError              anything that becomes a response: message, HTTP status, code
├── Invalid          422  the input is wrong, and the message says which field and what was expected
├── TooLarge         413  the input is over a limit, and the message names the limit
├── Unauthorized     401  no key, or an unknown one
├── Forbidden        403  a known key without the role
├── NotFound         404
├── Conflict         409  late, duplicate or contradictory
├── Paused           429  too many failed sign-ins; `detail` says after how many seconds the next is looked at
├── Unavailable      503  the database cannot answer now; nothing was stored, and the same request may succeed later
└── EngineError      503  the engine could not answer; says whether to retry, and what to do about it
"""

from __future__ import annotations

from typing import Any, ClassVar


class ServiceError(Exception):
    """An error with a message for people, an HTTP status and a code for programs."""

    status_code: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(self, message: str, detail: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class Invalid(ServiceError):
    status_code = 422
    code = "invalid"


class TooLarge(ServiceError):
    status_code = 413
    code = "too_large"


class Unauthorized(ServiceError):
    status_code = 401
    code = "unauthorized"


class Forbidden(ServiceError):
    status_code = 403
    code = "forbidden"


class NotFound(ServiceError):
    status_code = 404
    code = "not_found"


class Conflict(ServiceError):
    status_code = 409
    code = "conflict"


class Paused(ServiceError):
    status_code = 429
    code = "paused"


class Unavailable(ServiceError):
    status_code = 503
    code = "unavailable"


class EngineError(ServiceError):
    """The engine did not answer, or not as it must.

    retryable: the same request may succeed later (connection lost, overloaded, restarting).
    hint: what a person can do about it.
    """

    status_code = 503
    code = "engine"

    def __init__(self, message: str, *, retryable: bool, hint: str = "") -> None:
        super().__init__(message, {"retryable": retryable, "hint": hint} if hint else {"retryable": retryable})
        self.retryable = retryable
        self.hint = hint
