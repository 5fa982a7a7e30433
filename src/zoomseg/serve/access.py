"""Access to the server, and security headers of its pages.

- Without a token the server listens on its own machine alone, and answers only to that machine's names: a web
  page elsewhere could otherwise resolve its own name to this machine (DNS rebinding).
- Requests that change something are refused if a page of another origin sends them.
- Wrong tokens are answered at one per second in total, so that they cannot be guessed. If answers for a
  minute are already waiting, a wrong token is refused at once, so that waiting requests do not occupy all
  connections.
- Pages load nothing from elsewhere, and cannot be shown in a frame.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from anyio import sleep

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Refusal = tuple[int, str, dict[str, str]]
"""Status, text and headers of a response."""

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
COOKIE = "zoomseg"
"""How the name of the login cookie begins."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{0,5})?")
"""A host as browsers send it (RFC 3986, 3.2.2): name or address, and a port. Nothing else is passed on, as
address parsers raise errors on some other forms."""
WRONG_TOKEN_SECONDS = 1.0
"""Interval between the responses to two wrong tokens."""

MAX_WRONG_TOKENS = 60
"""Maximum number waiting for their responses."""

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self' data: blob:; worker-src 'self' blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Headers of every response. ``data:`` and ``blob:`` are created by the viewer itself: fonts, pictures,
workers."""


@dataclass(frozen=True)
class Access:
    """Access rules. ``token``: None if all users of this machine have access; ``hosts``: the names to which
    the server answers; None: to any, as the token protects it."""

    token: str | None
    hosts: frozenset[str] | None


def access(host: str, names: tuple[str, ...], token: str | None) -> Access:
    """The access rules of a server that listens at ``host``.

    Args:
        names: by which a reverse proxy reaches it.
        token: required of clients; necessary if the server can be reached from elsewhere.
    """
    if host in LOOPBACK or names:
        return Access(token, LOOPBACK | frozenset(name.lower() for name in names))
    return Access(token, None)


def needs_token(host: str, names: tuple[str, ...]) -> bool:
    """Whether users of other machines can reach a server that listens at ``host``."""
    return host not in LOOPBACK or bool(names)


class Guard:
    """ASGI middleware: passes requests allowed by ``Access``, and adds ``HEADERS`` to every response."""

    def __init__(self, app: App, access: Access) -> None:
        self._app = app
        self._access = access
        self._next_wrong = 0.0
        """Earliest time of the response to the next wrong token, by the monotonic clock."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """The interface of every ASGI application."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no websockets: the client receives 403
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            if refusal[0] == 401 and _tries_a_token(scope):
                refusal = await self._delayed(refusal)
            await _answer(send_with_headers, *refusal)
        else:
            await self._app(scope, receive, send_with_headers)

    async def _delayed(self, refusal: Refusal) -> Refusal:
        """The response in its turn; or a different one, if too many wait."""
        now = time.monotonic()
        turn = max(now, self._next_wrong) + WRONG_TOKEN_SECONDS
        if turn - now > MAX_WRONG_TOKENS * WRONG_TOKEN_SECONDS:
            return 429, "too many wrong tokens", {"retry-after": str(MAX_WRONG_TOKENS)}
        self._next_wrong = turn
        await sleep(turn - now)
        return refusal

    def _refusal(self, scope: Message) -> Refusal | None:
        """The response to a request that must not reach the application; otherwise None."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if host != "" and _HOST.fullmatch(host) is None:
            return 400, "the Host header holds no host", {}
        if self._access.hosts is not None and _host_name(host) not in self._access.hosts:
            how = "add it to its --allow-host, or to page.allow_hosts of a node"
            return 421, f"this server does not answer to that name; {how}", {}
        if scope["method"] not in SAFE_METHODS and not self._same_origin(headers):
            return 403, "sent by a page of another origin", {}
        if self._access.token is None:
            return None
        if scope["method"] == "GET" and scope["path"] == "/":
            entered = self._entered(scope, headers)
            if entered is not None:
                return entered
        if self._knows_token(scope, headers):
            return None
        how = "open the address that the server printed, or send the token as 'Authorization: Bearer'"
        return 401, f"a token is needed: {how}", {"www-authenticate": "Bearer"}

    def _same_origin(self, headers: Mapping[str, str]) -> bool:
        """Browsers state the origin of a page; clients that state none are not browsers."""
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site", "none") in ("none", "same-origin")
        found = re.sub(r"^https?://", "", origin)
        if found == origin or _HOST.fullmatch(found) is None:
            return False
        proxied = (self._access.hosts or frozenset()) - LOOPBACK
        return found == headers.get("host") or _host_name(found) in proxied

    def _entered(self, scope: Message, headers: Mapping[str, str]) -> Refusal | None:
        """Convert ``/?token=...`` to a cookie, and remove it from the address bar."""
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        given = dict(query).get("token")
        if given is None or not _equal(given, self._access.token):
            return None
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        secure = "; Secure" if headers.get("x-forwarded-proto", scope["scheme"]) == "https" else ""
        cookie = f"{_cookie_name(scope)}={_cookie(given)}; Path=/; HttpOnly; SameSite=Lax{secure}"
        return 303, "", {"location": "?" + rest if rest else "./", "set-cookie": cookie}

    def _knows_token(self, scope: Message, headers: Mapping[str, str]) -> bool:
        token = self._access.token or ""
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _equal(given.strip(), token):
            return True
        kept = _cookies(headers.get("cookie", "")).get(_cookie_name(scope))
        return kept is not None and _equal(kept, _cookie(token))


def _tries_a_token(scope: Message) -> bool:
    """Whether a request contains anything that could be a token."""
    headers = dict(scope["headers"])
    kept = _cookie_name(scope) in _cookies(headers.get(b"cookie", b"").decode("latin-1"))
    return kept or b"authorization" in headers or b"token=" in scope["query_string"]


def _cookie_name(scope: Message) -> str:
    """The server's port is part of it: browsers send a cookie to every port of a host, and several servers
    there, each with its own token, would replace each other's."""
    _, port = scope.get("server") or ("", None)
    return COOKIE if port is None else f"{COOKIE}-{port}"


def _cookies(header: str) -> dict[str, str]:
    """Values by name. Other programs on the same host set cookies, too, which may be any text: Python's
    parser gives up at the first one that it does not understand."""
    pairs = (pair.partition("=") for pair in header.split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _cookie(token: str) -> str:
    """The value stored by the browser: it gives access to this server without revealing the token."""
    return hashlib.sha256(b"zoomseg cookie " + token.encode()).hexdigest()


def _equal(given: str, known: str | None) -> bool:
    """Compare in a time that does not reveal how much was correct."""
    return known is not None and hmac.compare_digest(given.encode(), known.encode())


def _host_name(host: str) -> str:
    """Without the port and an address's brackets, in lower case; empty if it is no host."""
    found = _HOST.fullmatch(host)
    return "" if found is None else found[1].strip("[]").lower()


async def _answer(send: Send, status: int, text: str, headers: Mapping[str, str]) -> None:
    named = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store", **headers}
    listed = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": listed})
    await send({"type": "http.response.body", "body": (text + "\n").encode() if text else b""})
