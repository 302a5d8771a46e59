"""Chat templates, rendered in a separate process with limits on time and memory.

Templates are programs, and come with bases and adapters of strangers: `{% for %}` in `{% for %}` runs for ever, a text
doubled forty times fills the memory. One such process serves all templates of this one (`model.render`).
"""

import atexit
import contextlib
import json
import os
import pickle
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from qlora_gui.errors import UserError
from qlora_gui.system import kind, processes, signals

MODULE = "qlora_gui.models.render"
SECONDS = 3.0  # of computing, for one conversation; a usual template takes some milliseconds
MOST_MEMORY = 512 << 20  # bytes
MOST_TEXT = 16_000_000  # characters
READY = b"ready\n"
_START_SECONDS = 900.0  # on a machine that is very busy; a stop ends it before
_LOOK_SECONDS = 0.1
_CAN_WAIT = not kind.is_windows()  # Windows waits for no pipe: there it is ended by a timer
_WALL_SECONDS = 600.0 if _CAN_WAIT else 60.0  # for those of computing, on a machine that is busy
# For all conversations in total: a second for each would add up to days, without exceeding the limit of any.
_USUAL_SECONDS, _AT_FIRST = 0.2, 10.0
_SIZE = struct.Struct(">I")


class TemplateError(Exception):
    """An error that the template itself raised."""


class EndlessTemplate(BaseException):
    """A template that exceeded a limit; `str` says which. No Exception: code that tries out turns must let it through."""


class StoppedRendering(BaseException):
    """A stop that came while a template was rendered."""


@contextmanager
def bounded(whose: str) -> Iterator[None]:
    """Within, a template that exceeds its limits raises a UserError about `whose`."""
    try:
        yield
    except EndlessTemplate as error:
        raise UserError(f"{whose} {error}: choose another chat template.") from None


class Renderer:
    """The process that renders, started when it is first needed and again where it had to be ended.

    `interrupt` is called while waiting for it, and may raise to end that. Safe to share between threads.
    """

    def __init__(self) -> None:
        self.interrupt: Callable[[], None] = lambda: None
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._busy = threading.Lock()
        self._refused: dict[str, str] = {}  # templates that went beyond a limit once
        self._spent: dict[str, tuple[int, float]] = {}  # conversations and seconds by template

    def render(
        self,
        template: str,
        special_tokens: Mapping[str, Any],
        turns: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None,
        generation_prompt: bool,
        settings: Mapping[str, Any],
    ) -> str:
        """The text of a conversation. Raises TemplateError for what the template raises, EndlessTemplate, and whatever
        `interrupt` raises.
        """
        asked = {
            "template": template,
            "special_tokens": {name: _plain(token) for name, token in special_tokens.items()},
            "turns": list(turns),
            "tools": tools,
            "generation_prompt": generation_prompt,
            "settings": dict(settings),
        }
        with self._busy:
            self.interrupt()
            if template in self._refused:
                raise EndlessTemplate(self._refused[template])
            answer = self._asked(asked)
            if "too_much" in answer:
                self._refuse(template, str(answer["too_much"]))
        if "error" in answer:
            raise TemplateError(str(answer["error"]))
        return str(answer["text"])

    @contextmanager
    def interrupted_by(self, look: Callable[[], None]) -> Iterator[None]:
        """Within, `look` is called while waiting for a template; what it raises ends that."""
        before, self.interrupt = self.interrupt, look
        try:
            yield
        finally:
            self.interrupt = before

    def close(self) -> None:
        """End the process."""
        child, self._child, self._ready = self._child, None, False
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    if pipe:
                        pipe.close()

    def start(self) -> None:
        """Start the process, so that it is ready when it is needed; returns at once."""
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = subprocess.Popen(
                [sys.executable, "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=processes.environment(),
            )

    def _refuse(self, template: str, what: str) -> None:
        reason = {
            "time": f"did not finish within {SECONDS:g} s of computing: it is endless, or far too slow",
            "slow": f"takes more than {_USUAL_SECONDS:g} s of computing for a conversation, again and again: it is far too slow",
            "memory": f"needs more than {MOST_MEMORY >> 20} MB of memory for one conversation",
            "text": f"writes more than {MOST_TEXT:,} characters for one conversation",
        }.get(what, what)
        self._refused[template] = reason
        self.close()  # what is left of its memory
        raise EndlessTemplate(reason)

    def _asked(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What the process answers; `too_much` says which limit it went beyond, as the process can or by how it ended."""
        self.start()
        assert self._child and self._child.stdin
        body = pickle.dumps(asked)
        try:
            if not self._ready:
                if self._read(len(READY), _START_SECONDS) != READY:
                    raise RuntimeError("the process that renders chat templates did not start")
                self._ready = True
            with contextlib.suppress(BrokenPipeError):  # how it ended is found below
                self._child.stdin.write(_SIZE.pack(len(body)) + body)
                self._child.stdin.flush()
            head = self._read(_SIZE.size, _WALL_SECONDS)
            answer = self._read(_SIZE.unpack(head)[0], _WALL_SECONDS) if head else None
        except BaseException:  # it was interrupted: whatever it still says answers nothing any more
            self.close()
            raise
        if answer is None:
            return {"too_much": self._ended()}
        result: dict[str, Any] = json.loads(answer)
        return self._weighed(str(asked["template"]), float(result["seconds"])) or result

    def _weighed(self, template: str, seconds: float) -> dict[str, Any] | None:
        count, spent = self._spent.get(template, (0, 0.0))
        self._spent[template] = count, spent = count + 1, spent + seconds
        return {"too_much": "slow"} if spent > _AT_FIRST + count * _USUAL_SECONDS else None

    def _read(self, size: int, seconds: float) -> bytes | None:
        """So many bytes; None where the process ended before, or the time is over."""
        assert self._child and self._child.stdout
        stream, received, deadline = self._child.stdout, b"", time.monotonic() + seconds
        end_it = threading.Timer(seconds, self._child.kill)
        if not _CAN_WAIT:
            end_it.start()
        try:
            while len(received) < size:
                self.interrupt()
                if time.monotonic() > deadline:
                    return None
                if not _CAN_WAIT or select.select([stream], [], [], _LOOK_SECONDS)[0]:
                    piece = os.read(stream.fileno(), size - len(received))
                    if not piece:
                        return None
                    received += piece
            return received
        finally:
            end_it.cancel()

    def _ended(self) -> str:
        """Which limit a process exceeded that does not answer."""
        assert self._child
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._child.wait(0.5)
            if code != 0 and not signals.computed_too_long(code):
                return f"ended the process that renders it (exit code {code})"
        return "time"


def _plain(token: Any) -> Any:
    return [str(part) for part in token] if isinstance(token, (list, tuple)) else str(token)


RENDERER = Renderer()
atexit.register(RENDERER.close)
