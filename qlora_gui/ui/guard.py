"""What stands before the page: who may ask from where, how much, and how often a password may be tried.

Gradio alone answers whatever Host a browser was made to believe in (DNS rebinding), takes simple cross-site posts, reads
bodies of any size before it asks for the login, and never slows down who guesses. Pure ASGI, for answers are streamed.
"""

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import cookie_parser

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Refusal = tuple[int, str]

MOST_UPLOAD = 2 << 30  # bytes of one upload
MOST_BODY = 8 << 20  # bytes of any other request: a prompt of 100,000 characters, and the form around it
MOST_LOGIN = 8 << 10
FREE_TRIES, LONGEST_PAUSE = 3, 30.0
_API = "/gradio_api"
_OPEN = {"/", "/login", "/login/", "/logout", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"} | {
    _API + path for path in ("/user", "/login_check", "/startup-events", "/theme.css", "/app_id")
}
_LOGIN = ("/login", "/login/")
_OPEN_BELOW = ("/assets/", "/static/", "/svelte/")
# Nothing of this page needs them: fetching addresses for the client, handing a cookie to scripts, foreign components.
_NEVER_BELOW = tuple(_API + path for path in ("/file=http", "/proxy=", "/token", "/custom_component/"))
_HEADERS = {
    b"x-frame-options": b"DENY",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"x-robots-tag": b"noindex",
}


class Login:
    """Gradio's `auth`: whether user and password are right, in the same time for every wrong one."""

    def __init__(self, user: str, password: str):
        self._digest = _digest(user, password)

    def __call__(self, user: str, password: str) -> bool:
        return hmac.compare_digest(self._digest, _digest(str(user), str(password)))


def _digest(user: str, password: str) -> bytes:
    return hashlib.sha256(f"{len(user)}:{user}:{password}".encode("utf-8", "surrogatepass")).digest()


class Guard:
    """ASGI middleware inside Gradio's app. `hosts` are the names by which the page may be asked for, besides
    localhost, addresses in numbers (rebinding needs a name), and the share link's own.
    """

    def __init__(self, app: Any, hosts: Iterable[str] = ()):
        self.app = app
        self.hosts = {"localhost", *(host.lower() for host in hosts)}
        self.failures, self.closed_until = 0, 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] != "websocket":  # the page has none
                await self.app(scope, receive, send)
            return
        head = _Head(scope["headers"])
        refusal = self._refusal(scope, head)
        if refusal:
            await _answer(send, *refusal)
            return
        most = _most(scope["path"])
        await self.app(scope, _counted(receive, most), self._told(send, scope["path"]))

    def _refusal(self, scope: Scope, head: "_Head") -> Refusal | None:
        """Status and sentence for a request that is not let through."""
        path, method = scope["path"], scope["method"]
        host = _host_of(head.only("host"))
        if host is None or not self._is_ours(host, scope):
            return 421, "This page does not go by that name: open it by the address it printed, or add --allow-host."
        if not _same_site(head, path, method):
            return 403, "Requests from other sites are refused."
        if path.startswith(_NEVER_BELOW):
            return 404, "There is nothing here."
        if path in _LOGIN and method == "POST" and not self._may_try():
            return 429, "Too many wrong passwords: wait half a minute."
        if not (path in _OPEN or path.startswith(_OPEN_BELOW)) and not _logged_in(scope, head):
            return 401, "Log in first."
        return _too_much(head, path)

    def _is_ours(self, host: str, scope: Scope) -> bool:
        if host in self.hosts:
            return True
        try:
            ipaddress.ip_address(host.partition("%")[0])
            return True
        except ValueError:
            blocks = scope["app"].get_blocks() if "app" in scope else None
            shared = getattr(blocks, "share_url", None)
            return bool(shared) and host == urlsplit(shared).hostname

    def _told(self, send: Send, path: str) -> Send:
        """Counts wrong passwords, and adds what browsers shall keep to."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                if path in _LOGIN and message["status"] == 200:
                    self.failures = 0
                there = {name.lower() for name, _ in message["headers"]}
                kept = [
                    (name, _lax(value) if name.lower() == b"set-cookie" else value)
                    for name, value in message["headers"]
                ]
                message["headers"] = kept + [pair for pair in _HEADERS.items() if pair[0] not in there]
            await send(message)

        return sending

    def _may_try(self) -> bool:
        """Whether a password may be tried now. It counts as wrong until it was right, so that many at once gain nothing.

        For everybody together: what a request says of where it comes from can be made up.
        """
        if time.monotonic() < self.closed_until:
            return False
        self.failures += 1
        if self.failures >= FREE_TRIES:
            self.closed_until = time.monotonic() + min(2.0 ** min(self.failures - FREE_TRIES, 10), LONGEST_PAUSE)
        return True


class _Head:
    """Headers of a request."""

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]):
        self._all: dict[str, list[str]] = {}
        for name, value in pairs:
            self._all.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

    def only(self, name: str) -> str | None:
        """The one value of a header; None where there is none, or more than one."""
        found = self._all.get(name, [])
        return found[0] if len(found) == 1 else None

    def all(self, name: str) -> list[str]:
        return self._all.get(name, [])


def _host_of(value: str | None) -> str | None:
    """The name in a Host header or an origin, in lower case, without its port."""
    try:
        return urlsplit(f"//{value}").hostname if value else None
    except ValueError:
        return None


def _same_site(head: _Head, path: str, method: str) -> bool:
    """Whether a request comes from the page itself, from an address typed or followed, or from no browser at all."""
    site, origin = head.only("sec-fetch-site"), head.only("origin")
    if site in ("cross-site", "same-site") and not (path == "/" and _is_visit(head, method)):
        return False
    if origin is None:
        return not head.all("origin")
    return _is_origin(origin, head.only("host") or "")


def _is_origin(origin: str, host: str) -> bool:
    """Whether an Origin header names the host of the Host header, port included: cookies know no ports."""
    try:
        one = urlsplit(origin)
        usual = {"http": 80, "https": 443}[one.scheme]
        other = urlsplit(f"//{host}")
        return bool(one.hostname) and (one.hostname, one.port or usual) == (other.hostname, other.port or usual)
    except (ValueError, KeyError):
        return False


def _is_visit(head: _Head, method: str) -> bool:
    """Somebody follows a link to the page."""
    return (
        method in ("GET", "HEAD")
        and head.only("sec-fetch-mode") == "navigate"
        and head.only("sec-fetch-dest") == "document"
    )


def _logged_in(scope: Scope, head: _Head) -> bool:
    """Whether Gradio's own cookie is with the request, or no login is asked for."""
    app = scope.get("app")
    if app is None or getattr(app, "auth", None) is None:
        return True
    names = {f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}"}
    found = [cookie_parser(line) for line in head.all("cookie")]
    return any(cookies.get(name) in app.tokens for cookies in found for name in names)


def _most(path: str) -> int:
    if path.startswith(f"{_API}/upload"):
        return MOST_UPLOAD
    return MOST_LOGIN if path in _LOGIN else MOST_BODY


def _too_much(head: _Head, path: str) -> Refusal | None:
    """Refuse by the length that is announced; uploads must announce one, for a broken one stays on the disk."""
    length = head.only("content-length")
    if length is not None and not length.isdecimal():
        return 400, "The length of the request is no number."
    if length is not None and int(length) > _most(path):
        return 413, f"That is larger than the {_most(path) >> 20 or 1} MB allowed here."
    if head.all("transfer-encoding") and path.startswith(f"{_API}/upload"):
        return 411, "An upload must say how long it is."
    return None


def _counted(receive: Receive, most: int) -> Receive:
    """The same messages, until a body that announced no length is larger than allowed: then the client is gone."""
    seen = 0

    async def receiving() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > most:
                return {"type": "http.disconnect"}
        return message

    return receiving


def _lax(cookie: bytes) -> bytes:
    """Gradio lets other sites send its cookie; ours must not."""
    parts = cookie.split(b";")
    return b";".join(b" SameSite=lax" if part.strip().lower() == b"samesite=none" else part for part in parts)


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    if status == 429:
        headers.append((b"retry-after", str(int(LONGEST_PAUSE)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_HEADERS.items()]})
    await send({"type": "http.response.body", "body": body})
