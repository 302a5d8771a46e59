"""Requests of many threads, answered by one worker: what waits is asked together, so that it shares a batch."""

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_gui.errors import UserError
from qlora_gui.inference import protocol
from qlora_gui.inference.client import CompareClient
from qlora_gui.inference.protocol import Completion, Event, Load

MOST_WAITING = 64  # requests
_GATHER_SECONDS = 0.02  # what comes within this time of the first is asked together
_MOST_TOGETHER = 64  # completions
BASE = "base"  # another name of the first model
_STOPPED = "The answer was stopped from the page before it was whole: ask again."
Emit = Callable[[int, Event], None]


class Busy(Exception):
    """Too many requests wait already."""


@dataclass(frozen=True)
class Models:
    """What can be asked: a base and adapters, with the name of each column.

    Raises UserError where a name would mean two of them; the base also goes by `base`.
    """

    load: Load
    names: Sequence[str]

    def __post_init__(self) -> None:
        if twice := next((name for name in self.names if self.names.count(name) > 1), None):
            raise UserError(f"Two of the models would be called '{twice}': rename one of the folders.")
        if BASE in self.names[1:]:
            raise UserError(f"An adapter cannot be called '{BASE}' here, as the base goes by that: rename its folder.")


@dataclass(eq=False)
class Waiting:
    """A request on its way. `emit` is called with the number of a completion in it and its event, from another thread; with
    -1 and an `Error` where the whole request fails. `first` is its place in what is asked now, None while it waits.
    """

    models: Models
    completions: Sequence[Completion]
    emit: Emit
    since: float = field(default_factory=time.monotonic)
    first: int | None = None
    left: bool = False


class Batcher:
    """Asks a worker what requests want to know. Safe to use from many threads; one batch at a time."""

    def __init__(self, client: CompareClient):
        self.client = client
        self.columns: list[dict[str, Any]] = []  # the proofs of what was loaded last
        self._waiting: list[Waiting] = []
        self._asked: list[Waiting] = []
        self._lock = threading.Lock()
        self._working = False

    def ask(self, request: Waiting) -> None:
        """Have a request answered. Raises Busy."""
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                raise Busy
            self._waiting.append(request)
            if self._working:
                return
            self._working = True
        threading.Thread(target=self._work, daemon=True).start()

    def leave(self, request: Waiting) -> None:
        """Nobody waits for a request any more: what is asked of it is ended."""
        with self._lock:
            request.left = True
            if request in self._waiting:
                self._waiting.remove(request)
            if request in self._asked and request.first is not None:
                # under the lock: the next batch has the same numbers
                self.client.stop([*range(request.first, request.first + len(request.completions))])

    def load(self, models: Models, say: Callable[[str], None]) -> list[dict[str, Any]]:
        """Load what can be asked, before anybody asks; returns the proof of each column. Raises UserError."""
        for event in self.client.complete(models.load, []):
            if isinstance(event, protocol.Stage):
                say(event.text)
            elif isinstance(event, protocol.Loaded):
                self.columns = event.columns
        return self.columns

    def _work(self) -> None:
        time.sleep(_GATHER_SECONDS)
        while batch := self._next():
            try:
                self._answer(batch)
            except UserError as error:
                _fail(batch, protocol.Error(str(error), bug=False))
            except Exception as error:
                traceback.print_exc()
                _fail(batch, protocol.Error(f"{type(error).__name__}: {error}", bug=True))

    def _next(self) -> list[Waiting]:
        """The requests to ask together: those to the same models as the oldest, as many as go."""
        with self._lock:
            batch: list[Waiting] = []
            for request in self._waiting:
                count = sum(len(each.completions) for each in batch)
                fits = not batch or count + len(request.completions) <= _MOST_TOGETHER
                if fits and (not batch or request.models.load == batch[0].models.load):
                    request.first = count
                    batch.append(request)
            self._waiting = [request for request in self._waiting if request not in batch]
            self._asked = batch
            self._working = bool(batch)
            return batch

    def _answer(self, batch: list[Waiting]) -> None:
        of_number = [(request, place) for request in batch for place in range(len(request.completions))]
        completions = [completion for request in batch for completion in request.completions]
        for event in self.client.complete(batch[0].models.load, completions):
            if isinstance(event, protocol.Loaded):
                self.columns = event.columns
            elif isinstance(event, protocol.Answering):
                request, place = of_number[event.column]
                if request.left and isinstance(event, protocol.Began):  # it left before the worker knew of it
                    self.client.stop([event.column])
                if isinstance(event, protocol.Ended) and event.ended == "stopped" and not request.left:
                    request.emit(-1, protocol.Error(_STOPPED, bug=False))
                else:
                    request.emit(place, event)


def _fail(batch: Sequence[Waiting], error: protocol.Error) -> None:
    for request in batch:
        request.emit(-1, error)
