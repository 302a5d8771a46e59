"""What stands before the page: who may ask from where, with what token, how much, and how often a password may be tried.

Gradio alone answers whatever Host a browser was made to believe in (DNS rebinding), takes simple cross-site posts, reads
bodies of any size before it asks for the login, never slows down who guesses, and without a login serves every program
and user of the machine. Pure ASGI, for answers are streamed.
"""

import asyncio
import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.requests import cookie_parser

from qlora_gui.ui.key import Key
from qlora_gui.ui.throttle import LONGEST_PAUSE, Throttle, whose

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Refusal = tuple[int, str]

MOST_UPLOAD = 2 << 30  # bytes of one upload
MOST_BODY = 8 << 20  # bytes of any other request: a prompt of 100,000 characters, and the form around it
MOST_LOGIN = 8 << 10
_API = "/gradio_api"
_OPEN = {"/", "/login", "/login/", "/logout", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"} | {
    _API + path for path in ("/user", "/login_check", "/startup-events", "/theme.css", "/app_id")
}
_LOGIN = ("/login", "/login/")
_STARTS = _API + "/startup-events"  # by which Gradio finds out whether it serves
_OPEN_BELOW = ("/assets/", "/static/", "/svelte/")
# Nothing of this page needs them: fetching addresses for the client, handing a cookie to scripts, foreign components.
_NEVER_BELOW = tuple(_API + path for path in ("/file=http", "/proxy=", "/token", "/custom_component/"))
_HEADERS = {
    b"x-frame-options": b"DENY",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"x-robots-tag": b"noindex",
}


_COOKIE_SECONDS = 400 * 86400  # seconds that a browser keeps a cookie of ours; no browser keeps one longer
_NO_TOKEN = "This page is for who started it: open the address printed in the terminal, which ends in its token."
_NO_TOKEN_PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    "<title>qlora_gui</title><body style='font:16px/1.5 system-ui,sans-serif;max-width:34em;margin:15vh auto;padding:0 1em'>"
    f"<h1 style='font-size:1.3em'>Not open yet</h1><p>{_NO_TOKEN}</p></body></html>"
)


class Login:
    """Gradio's `auth`: whether user and password are right, in the same time for every wrong one.

    `made` says that the password is one of 96 random bits, which no number of tries finds.
    """

    def __init__(self, user: str, password: str, made: bool = False):
        self._digest = _digest(user, password)
        self.made = made

    @property
    def name(self) -> str:
        """Tells this login from another one, also from the same user's with another password."""
        return self._digest.hex()

    def __call__(self, user: str, password: str) -> bool:
        return hmac.compare_digest(self._digest, _digest(str(user), str(password)))


def _digest(user: str, password: str) -> bytes:
    return hashlib.sha256(f"{len(user)}:{user}:{password}".encode("utf-8", "surrogatepass")).digest()


class Guard:
    """ASGI middleware inside Gradio's app. `hosts` are the names by which the page may be asked for, besides
    localhost, addresses in numbers (rebinding needs a name), and the share link's own.

    With a `key` and no `login` nothing is served without the token, but what Gradio's scripts and styles are. With a
    login, a browser that was in before, or that was opened with the token, is not held up by wrong passwords of others.
    """

    def __init__(self, app: Any, hosts: Iterable[str] = (), key: Key | None = None, login: Login | None = None):
        self.app = app
        self.hosts = {"localhost", *(host.lower() for host in hosts)}
        self.key, self.login = key, login
        self.mark = f"known to {login.name}" if login else "entered"
        self.throttle = Throttle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] != "websocket":  # the page has none
                await self.app(scope, receive, send)
            return
        head = _Head(scope["headers"])
        refusal = self._refusal(scope, head)
        if refusal is None and self._brings_token(scope):
            await self._let_in(scope, send)
            return
        if refusal is None and scope["path"] in _LOGIN and scope["method"] == "POST":
            refusal = await self._held_back(scope, head)
        if refusal:
            await _answer(send, *refusal, as_page=scope["path"] == "/")
            return
        most = _most(scope["path"])
        await self.app(scope, _counted(receive, most), self._with_headers(send, scope, head))

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
        if (path.startswith(_OPEN_BELOW) and ".." not in path) or path == _STARTS:
            return _too_much(head, path)
        if self.key and not self.login:
            if not (self._brings_token(scope) or self._is_known(scope, head) or self._has_token(head)):
                return 401, _NO_TOKEN
        elif path not in _OPEN and not _logged_in(scope, head):
            return 401, "Log in first."
        return _too_much(head, path)

    def _brings_token(self, scope: Scope) -> bool:
        """Whether this is a visit by the printed address."""
        if self.key is None or scope["path"] != "/" or scope["method"] not in ("GET", "HEAD"):
            return False
        return any(name == "token" and self.key.is_token(value) for name, value in _query(scope))

    def _has_token(self, head: "_Head") -> bool:
        """Whether a program sends the token along."""
        kind, _, given = (head.only("authorization") or "").partition(" ")
        return self.key is not None and kind.lower() == "bearer" and self.key.is_token(given.strip())

    def _is_known(self, scope: Scope, head: "_Head") -> bool:
        """Whether our cookie is with the request."""
        if self.key is None:
            return False
        name = _cookie_name(scope)
        return any(self.key.is_mark(self.mark, cookies[name]) for cookies in head.cookies() if name in cookies)

    def _known_cookie(self, scope: Scope) -> tuple[bytes, bytes]:
        assert self.key
        value = f"{_cookie_name(scope)}={self.key.mark(self.mark)}; Path=/; HttpOnly; SameSite=Lax; Max-Age={_COOKIE_SECONDS}"
        return b"set-cookie", value.encode()

    async def _let_in(self, scope: Scope, send: Send) -> None:
        """On to the same address without the token, which must not stay in a history, bookmark or picture."""
        rest = urlencode([(name, value) for name, value in _query(scope) if name != "token"])
        place = ("./?" + rest if rest else "./").encode()
        headers = [(b"location", place), (b"content-length", b"0"), (b"cache-control", b"no-store")]
        headers += [self._known_cookie(scope), *_HEADERS.items()]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _held_back(self, scope: Scope, head: "_Head") -> Refusal | None:
        """Let the try of a password wait for its turn, or refuse it.

        Whoever has our cookie has been in with this password before: it need not be kept from guessing it.
        """
        if self.login is None or self.login.made or self._is_known(scope, head):
            return None
        wait = self.throttle.ask(_whose(scope, head))
        if wait is None:
            return 429, "Too many wrong passwords: wait half a minute."
        await asyncio.sleep(wait)
        return None

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

    def _with_headers(self, send: Send, scope: Scope, head: "_Head") -> Send:
        """Adds what browsers shall keep to; who was logged in is known from then on."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                headers = [
                    (name, _lax(value) if name.lower() == b"set-cookie" else value)
                    for name, value in message["headers"]
                ]
                if scope["path"] in _LOGIN and scope["method"] == "POST" and message["status"] == 200 and self.login:
                    self.throttle.right(_whose(scope, head))
                    headers += [self._known_cookie(scope)] if self.key else []
                message["headers"] = headers + [pair for pair in _HEADERS.items() if pair[0] not in there]
            await send(message)

        return sending


class _Head:
    """Headers of a request."""

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]):
        self._all: dict[str, list[str]] = {}
        for name, value in pairs:
            self._all.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

    def only(self, name: str) -> str | None:
        """The one value of a header; None where there is none, or more than one."""
        values = self._all.get(name, [])
        return values[0] if len(values) == 1 else None

    def all(self, name: str) -> list[str]:
        return self._all.get(name, [])

    def cookies(self) -> list[dict[str, str]]:
        """The cookies of each Cookie header."""
        return [cookie_parser(line) for line in self.all("cookie")]


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _cookie_name(scope: Scope) -> str:
    """Cookies know no ports: two pages of one machine must not take each other's."""
    return f"qlora-page-{(scope.get('server') or ('', 0))[1]}"


def _whose(scope: Scope, head: _Head) -> str:
    return whose(str((scope.get("client") or ("",))[0]), head.all("x-forwarded-for"))


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
        source, ours = urlsplit(origin), urlsplit(f"//{host}")
        usual = {"http": 80, "https": 443}[source.scheme]
        return bool(source.hostname) and (source.hostname, source.port or usual) == (ours.hostname, ours.port or usual)
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
    return any(cookies.get(name) in app.tokens for cookies in head.cookies() for name in names)


def _most(path: str) -> int:
    if path.startswith(f"{_API}/upload"):
        return MOST_UPLOAD
    return MOST_LOGIN if path in _LOGIN else MOST_BODY


def _too_much(head: _Head, path: str) -> Refusal | None:
    """Refuse by the length that is announced; uploads must announce one, for a broken one stays on the disk."""
    length = head.only("content-length")
    if length is not None and not length.isdecimal():
        return 400, "The length of the request is not a number."
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


async def _answer(send: Send, status: int, text: str, as_page: bool = False) -> None:
    page = as_page and text == _NO_TOKEN
    body = (_NO_TOKEN_PAGE if page else text).encode()
    kind = b"text/html; charset=utf-8" if page else b"text/plain; charset=utf-8"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    if status == 429:
        headers.append((b"retry-after", str(int(LONGEST_PAUSE)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_HEADERS.items()]})
    await send({"type": "http.response.body", "body": body})
