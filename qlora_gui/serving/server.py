"""The endpoint's routes: /v1/models, /v1/chat/completions, /v1/completions. Plain Starlette, for a server or below the page."""

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from qlora_gui.inference import protocol
from qlora_gui.serving import requests
from qlora_gui.serving.address import is_number
from qlora_gui.serving.batching import MOST_WAITING, Batcher, Busy, Models, Waiting
from qlora_gui.serving.requests import ApiError, Asked
from qlora_gui.serving.responses import Response as Answer

MOST_BODY = 8 << 20  # bytes
MOST_SECONDS = 600.0  # that a request may wait for others before it is begun
_LOOK_SECONDS = 0.5  # between looks at whether somebody still waits
_Event = tuple[int, protocol.Event]


class _Json(JSONResponse):
    """JSON in ASCII: what is quoted of a request may hold half a surrogate pair, which UTF-8 has no bytes for."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


class Endpoint:
    """What answers requests: `models` can change at any time, None while nothing is served.

    With a `key` every request must bring it (`Authorization: Bearer`). `hosts` are the names by which it may be asked for,
    None for any: whoever stands before it has looked already.
    """

    def __init__(
        self, batcher: Batcher, models: Models | None = None, key: str = "", hosts: Iterable[str] | None = None
    ):
        self.batcher, self.models, self.key = batcher, models, key
        self.hosts = None if hosts is None else {host.lower() for host in hosts}
        self.say: Callable[[str], None] = lambda text: print(text, flush=True)
        self._told: set[str] = set()
        self._since = int(time.time())
        routes = [
            Route("/v1/models", self._list),
            Route("/v1/models/{name:path}", self._show),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._text, methods=["POST"]),
        ]
        faults: dict[Any, Any] = {ApiError: _as_json, ClientDisconnect: _gone, 404: _no_such_place, 405: _no_such_place}
        self.app = Starlette(routes=routes, exception_handlers=faults)

    def _ready(self, request: Request) -> Models:
        """Raises ApiError for who may not ask, and while nothing is served."""
        host = (request.url.hostname or "").lower()
        if self.hosts is not None and host not in self.hosts and not is_number(host):  # rebinding needs a name
            raise ApiError(421, f"This endpoint does not go by the name '{host}': add it with --allow-host.")
        if "origin" in request.headers and self.hosts is not None:
            raise ApiError(403, "Requests from web pages are refused.")
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if self.key and not (kind.lower() == "bearer" and _same(given.strip(), self.key)):
            raise ApiError(
                401, "The API key is missing or wrong: send it as Authorization: Bearer KEY.", None, "invalid_api_key"
            )
        if self.models is None:
            raise ApiError(503, "Nothing is served now: switch it on in Compare.")
        return self.models

    async def _list(self, request: Request) -> Response:
        models = self._ready(request)
        return _Json({"object": "list", "data": [self._about(name) for name in models.names]})

    async def _show(self, request: Request) -> Response:
        models, name = self._ready(request), request.path_params["name"]
        return _Json(self._about(models.names[requests.column_of(name, models.names)]))

    def _about(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._since, "owned_by": "qlora_gui"}

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, requests.chat)

    async def _text(self, request: Request) -> Response:
        return await self._answer(request, requests.text)

    async def _answer(self, request: Request, read: Callable[[Any, Any], Asked]) -> Response:
        models = self._ready(request)
        body = await _body(request)
        asked = read(body, models.names)
        for name in requests.passed_over(body):
            if name not in self._told and len(self._told) < 100:
                self._told.add(name)
                self.say(f"A request gives {name!r}, which is not read here")
        events: asyncio.Queue[_Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(number: int, event: protocol.Event) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(events.put_nowait, (number, event))

        waiting = Waiting(models, asked.completions, emit)
        try:
            self.batcher.ask(waiting)
        except Busy:
            raise ApiError(429, f"{MOST_WAITING} requests wait already: ask again later.") from None
        finished = False
        try:
            first = await self._first(request, events)
            answer = Answer(asked, self._fingerprint(asked))
            if asked.stream:
                finished = True  # the stream ends it
                return StreamingResponse(
                    self._stream(waiting, answer, events, first), media_type="text/event-stream", headers=_UNCACHED
                )
            while True:
                _take(answer, *first)
                if answer.is_whole:
                    finished = True
                    return _Json(answer.whole())
                first = await _next(request, events)
        finally:
            if not finished:
                self.batcher.leave(waiting)

    async def _first(self, request: Request, events: "asyncio.Queue[_Event]") -> _Event:
        """The first event: until then a stream can still be refused. Raises ApiError."""
        deadline = time.monotonic() + MOST_SECONDS
        event = await _next(request, events, deadline)
        _raise_if_refused(event[1])
        return event

    async def _stream(
        self, waiting: Waiting, answer: Answer, events: "asyncio.Queue[_Event]", event: _Event
    ) -> AsyncIterator[str]:
        """Server-sent events; who leaves cancels it."""
        try:
            for piece in answer.beginning():
                yield _line(piece)
            while True:
                _take(answer, *event)
                for piece in answer.pieces(event[0]):
                    yield _line(piece)
                if answer.is_whole:
                    break
                event = await events.get()
            for piece in answer.last():
                yield _line(piece)
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _line(error.body)
        finally:
            if not answer.is_whole:
                self.batcher.leave(waiting)

    def _fingerprint(self, asked: Asked) -> str:
        """Of the base, and of the adapter that answers."""
        column = asked.completions[0].column
        if column >= len(self.batcher.columns):
            return ""
        proof = self.batcher.columns[column]
        return "-".join(str(proof[name])[:16] for name in ("base_fingerprint", "sha256") if proof.get(name))


class Beside:
    """ASGI middleware: what is asked for below /v1/ goes to the endpoint, all else to the app."""

    def __init__(self, app: Any, endpoint: Endpoint):
        self.app, self.endpoint = app, endpoint

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        below = scope["type"] == "http" and scope["path"].startswith("/v1/")
        await (self.endpoint.app if below else self.app)(scope, receive, send)


_UNCACHED = {"cache-control": "no-store", "x-accel-buffering": "no"}


def _take(answer: Answer, number: int, event: protocol.Event) -> None:
    _raise_if_refused(event)
    if isinstance(event, protocol.Answering):
        answer.take(number, event)


def _raise_if_refused(event: protocol.Event) -> None:
    if isinstance(event, protocol.Refused):
        raise ApiError(400, event.message, None, "context_length_exceeded" if event.too_long else None)
    if isinstance(event, protocol.Error):
        raise ApiError(500 if event.bug else 503, event.message)


async def _next(request: Request, events: "asyncio.Queue[_Event]", deadline: float | None = None) -> _Event:
    """The next event. Raises ClientDisconnect when nobody waits for it any more, ApiError past the deadline (monotonic)."""
    while True:
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(events.get(), _LOOK_SECONDS)
        if await request.is_disconnected():
            raise ClientDisconnect
        if deadline is not None and time.monotonic() > deadline:
            raise ApiError(503, f"Others have been answered for {MOST_SECONDS:.0f} seconds: ask again later.")


async def _body(request: Request) -> Any:
    """The JSON of a request. Raises ApiError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "Send JSON, with the header Content-Type: application/json.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY:
            raise ApiError(413, f"The request is larger than the {MOST_BODY >> 20} MB allowed here.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The request is not JSON: {error}.") from None


def _line(content: Any) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _as_json(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {"retry-after": "5"} if error.status in (429, 503) else {}
    headers |= {"www-authenticate": "Bearer"} if error.status == 401 else {}
    return _Json(error.body, error.status, headers)


async def _no_such_place(request: Request, error: Exception) -> Response:
    status = int(getattr(error, "status_code", 404))
    fault = ApiError(status, f"There is no {request.method} {request.url.path} here.")
    return _Json(fault.body, status)
