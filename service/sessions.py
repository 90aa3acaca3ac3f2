"""Sessions: a cookie that is signed and kept by nobody but the browser.

It names the account, the account's epoch, and a token that forms and scripts of the session's own pages send back. It
is good for some hours after the sign-in, however much it is used. Whether the account still is what it was is looked
up at every request.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from itsdangerous import BadData, SignatureExpired, URLSafeTimedSerializer
from starlette.requests import HTTPConnection
from starlette.responses import Response

from service.errors import Unauthorized
from service.models import Account

LONGEST = 1000  # characters of a cookie that is looked at


@dataclass(frozen=True, slots=True)
class Signed:
    """What a session's cookie says. token: against requests that other sites have a browser send."""

    account: int
    epoch: int
    token: str


class Sessions:
    """Writes and reads cookies. secret: what they are signed with. seconds: how long they are good for."""

    def __init__(self, secret: str, seconds: int) -> None:
        self.seconds = seconds
        signer = {"digest_method": hashlib.sha256, "key_derivation": "hmac"}
        self._codec = URLSafeTimedSerializer(secret, salt="concord.session", signer_kwargs=signer)

    def read(self, request: HTTPConnection) -> Signed | None:
        """What the request's cookie says; None without one that this service has signed. Raises Unauthorized once it
        is over."""
        value = request.cookies.get(name_of(request), "")
        if not value or len(value) > LONGEST:
            return None
        try:
            account, epoch, token = self._codec.loads(value, max_age=self.seconds)
        except SignatureExpired:
            raise Unauthorized("the session is over: sign in again") from None
        except (BadData, TypeError, ValueError):
            return None
        return Signed(account, epoch, token)

    def begin(self, request: HTTPConnection, response: Response, account: Account) -> None:
        """Have the response set the cookie of a new session, whatever the browser had before."""
        value = self._codec.dumps([account.id, account.epoch, secrets.token_urlsafe(24)])
        response.set_cookie(
            name_of(request),
            str(value),
            max_age=self.seconds,
            httponly=True,
            samesite="strict",
            secure=_secure(request),
        )


def end(request: HTTPConnection, response: Response) -> None:
    """Have the response drop the cookie."""
    response.delete_cookie(name_of(request), httponly=True, samesite="strict", secure=_secure(request))


def name_of(request: HTTPConnection) -> str:
    """The prefix has a browser take the cookie from this very host alone, and only over https."""
    return "__Host-concord" if _secure(request) else "concord"


def _secure(request: HTTPConnection) -> bool:
    return request.scope.get("scheme") in ("https", "wss")
