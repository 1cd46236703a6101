"""What a request must satisfy before a page sees it, and the headers that every response carries.

Another web site must not read the dashboard through the user's browser: the Host header defeats DNS rebinding, Origin
and Sec-Fetch-Site defeat requests from other pages (Fetch Metadata, W3C 2021), and no CORS header is ever sent.
"""

import hmac
import ipaddress
import os
from collections.abc import Iterable
from urllib.parse import parse_qsl, unquote_to_bytes, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
MAX_HEADER_BYTES = 16_384
MAX_BODY_BYTES = 65_536
COOKIE = "fromscratch_token"
READING = ("GET", "HEAD")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware: refuses what does not come from the user's own browser.

    Args:
        names: host names under which the dashboard may be called, without port; a tunnel may change the port.
        token: what a browser must present once, as ``?token=``; None where only this machine can connect.
    """

    def __init__(self, app: ASGIApp, *, names: Iterable[str] = LOCAL_NAMES, token: str | None = None) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that no page may see; None if it may go through."""
        headers = Headers(scope=scope)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            return PlainTextResponse("the request's headers are too long", 431)
        if not self._is_allowed(headers.get("host", "")):
            return PlainTextResponse("this dashboard is not served under that host name", 403)
        if _is_foreign(scope["method"], headers):
            return PlainTextResponse("requests from other web sites are refused", 403)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES or "transfer-encoding" in headers:
            return PlainTextResponse("the request's body is too long, or of unknown length", 413)
        path = os.fsdecode(unquote_to_bytes(scope.get("raw_path") or scope["path"].encode()))
        if "\0" in path or "\\" in path or "//" in path or {".", ".."} & set(path.split("/")):
            return PlainTextResponse("no such page", 404)
        scope["path"] = path  # names of folders need not be UTF-8
        return self._ask_for_token(scope, headers) if self._token else None

    def _is_allowed(self, host: str) -> bool:
        name = _name_in(host)
        return name in self._names or (self._token is not None and _is_address(name))

    def _ask_for_token(self, scope: Scope, headers: Headers) -> Response | None:
        assert self._token is not None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(query).get("token")
        if given is None:
            given = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
            if _same(given, self._token):
                return None
        elif _same(given, self._token):
            rest = urlencode([item for item in query if item[0] != "token"])
            path = (scope.get("raw_path") or b"/").decode("latin-1")
            answer = RedirectResponse(f"{path}?{rest}" if rest else path, 303)
            answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict", path="/")
            return answer
        return PlainTextResponse("open the address with the token that 'fromscratch dashboard' printed", 401)


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return wrapped


def _is_foreign(method: str, headers: Headers) -> bool:
    """Whether a page of another site sent the request. Following a link from there to a page here is allowed."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        return True
    if origin is None and method not in READING:
        return True
    is_navigation = headers.get("sec-fetch-mode", "navigate") == "navigate" and method in READING
    return headers.get("sec-fetch-site", "none") in ("cross-site", "same-site") and not is_navigation


def _name_in(host: str) -> str:
    """The host name in a Host header, without port and brackets; empty if it is malformed."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower() if "@" not in host and "/" not in host else ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())
