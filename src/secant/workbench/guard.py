"""Access to the workbench: only for those who open the address that it printed, and only from its own page.

The address has a random token. The server exchanges it for a cookie that other sites' requests do not carry
(SameSite=Strict) and scripts can't read. Every request must name this server as its host, so that a page whose name
resolves to this computer (DNS rebinding) is refused. A request that changes anything must come from the workbench's own
origin, as JSON of bounded size. The page's content security policy allows only its own script, and forbids turning text
into HTML.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY = 256 * 1024
"""The most bytes in the body of a request."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""The content security policy of the workbench's page."""

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
"""Headers of every response; a route can set its own instead."""

REFUSED = "Open the address that secant serve printed: it has the token of this session.\n"


class Guard:
    """Lets only the workbench's own page through, and adds `HEADERS` to every response.

    Args:
        app: The application that it guards.
        token: The token.
        port: The port, which is part of the cookie's name: browsers share cookies between ports.
        origins: The origins of the workbench's own page.

    """

    def __init__(self, app: ASGIApp, token: str, port: int, origins: Iterable[str]) -> None:
        self._app, self._token, self._cookie = app, token, f"secant_{port}"
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it to the application.

        Args:
            scope: The request.
            receive: Receives its body.
            send: Sends the response.

        """
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if answer := self._refusal(scope):
            await answer(scope, receive, sending)
            return
        await self._app(scope, bounded(receive), sending)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that is not passed on: the cookie for a token, or the reason for a refusal."""
        headers = Headers(scope=scope)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
        if scope["path"] == "/" and scope["method"] == "GET" and self._is_token(given):
            found = RedirectResponse("/", 303)
            found.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
            return found
        if not self._is_token(self._carried(headers)):
            return PlainTextResponse(REFUSED, 403)
        if scope["method"] in ("GET", "HEAD"):
            return None
        if headers.get("origin") not in self._origins:
            return JSONResponse({"error": "Requests come from the workbench's own page; got another origin."}, 403)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return JSONResponse({"error": "A request is JSON; got another type. Send application/json."}, 415)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > BODY:
            return JSONResponse({"error": f"A request has at most {BODY} bytes; got more. Shorten the prompt."}, 413)
        return None

    def _carried(self, headers: Headers) -> str:
        """The token in a request's cookie."""
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return ""
        return found.value if found else ""

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


class TooLong(Exception):
    """A body has more bytes than are allowed."""


def bounded(receive: Receive) -> Receive:
    """Returns a receiver of bodies that have at most `BODY` bytes, whether or not the length was declared.

    Args:
        receive: Receives the body.

    Returns:
        The same function, except that it raises TooLong.

    """
    seen = 0

    async def receiving() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > BODY:
            raise TooLong
        return message

    return receiving
