"""The page's side of the compare worker: starts it, asks it, notices when it died. Never imports torch."""

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any

from qlora_gui import plain_files
from qlora_gui.errors import UserError
from qlora_gui.inference.sampling import Decoding
from qlora_gui.runs import base_names, gpus
from qlora_gui.runs.launch import child_environment
from qlora_gui.runs.store import Run, check_base
from qlora_gui.system import processes

MODULE = "qlora_gui.inference.worker"
IDLE_SECONDS = 900.0
Conversation = list[dict[str, Any]]


class CompareClient:
    """One worker process, started when first asked and ended after `idle_seconds` without a question.

    Safe to share between threads: one load or answer at a time.
    """

    def __init__(self, idle_seconds: float = IDLE_SECONDS):
        self._idle_seconds = idle_seconds
        # Not an RLock: a page's generator may be taken up by another thread for every piece.
        self._busy = threading.Lock()
        self._pipe = threading.Lock()  # a stop comes from another thread than the question
        self._last_load: dict[str, Any] | None = None
        self._child: subprocess.Popen[str] | None = None
        self._log: IO[bytes] | None = None
        self._idle: threading.Timer | None = None

    @property
    def is_loaded(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int | None:
        """The worker's process, for whoever wants to look at its memory."""
        return self._child.pid if self._child and self.is_loaded else None

    def columns(
        self,
        base_model: str,
        revision: str,
        adapters: Sequence[Path],
        say: Callable[[str], None] | None = None,
        quant_type: str = "nf4",
        double_quant: bool = True,
        chosen: bool = False,
    ) -> list[dict[str, Any]]:
        """Load base and adapters; returns one dict per column: name, adapter (None for the base) and proof.

        `chosen` says that a person named the base, so that it may differ from the base that the adapters name.

        Raises UserError for what a person can fix, RuntimeError for a bug in the worker; that names the log file
        which keeps the traceback. After an error there are no columns.
        """
        request = {
            "do": "load",
            "base_model": base_model,
            "revision": revision,
            "quant_type": quant_type,
            "double_quant": double_quant,
            "adapters": [str(folder) for folder in adapters],
            "chosen": chosen,
        }
        with self._busy:
            self._last_load = None
            loaded = self._load(request, say)
            self._last_load = request
        return loaded

    def answer(
        self, conversations: Sequence[Conversation], decoding: Decoding, tools: Sequence[Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Ask every column its conversation: yields prompt, text and column events, then done.

        `conversations` has one list of messages per column, in the order of `columns`; the last call of `columns` counts,
        whichever thread made it. `tools` are what the answers may call, as a template takes them. A worker that died
        or was idle too long is started anew with the columns it had.
        Raises as `columns` does.
        """
        request = {"do": "answer", "conversations": list(conversations), "decoding": decoding.model_dump()}
        request |= {"tools": list(tools)} if tools else {}
        yield from self._asked(request)

    def evaluate(
        self,
        examples: Sequence[Mapping[str, Any]],
        foreign: Sequence[Mapping[str, Any]],
        general: str,
        max_length: int,
        max_new_tokens: int,
        system_prompt: str = "",
        control: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Measure examples under every column: yields the events of inference/evidence.py, then done.

        `foreign` are examples whose answers belong to other prompts, `general` a text in no template; both may be empty.
        `control` lets special tokens spelled out in the examples be what they spell.
        Raises as `columns` does.
        """
        request = {
            "do": "evaluate",
            "examples": list(examples),
            "foreign": list(foreign),
            "general": general,
            "max_length": max_length,
            "max_new_tokens": max_new_tokens,
            "system_prompt": system_prompt,
            "control": control,
        }
        yield from self._asked(request)

    def _asked(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with self._busy:
            if not self.is_loaded and self._last_load:
                self._load(self._last_load, None)
            yield from self._ask(request, "done")

    def stop(self) -> None:
        """End the answers that are being written; their text so far stands."""
        if self.is_loaded:
            self._send({"do": "stop"})

    def close(self) -> None:
        """End the worker and free its memory."""
        child, self._child = self._child, None
        if self._idle:
            self._idle.cancel()
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe:
                    pipe.close()
        if self._log:
            self._log.close()
            self._log = None

    def _load(self, request: dict[str, Any], say: Callable[[str], None] | None) -> list[dict[str, Any]]:
        columns: list[dict[str, Any]] = []
        with closing(self._ask(request, "columns")) as events:
            for event in events:
                if event["kind"] == "stage" and say:
                    say(event["text"])
                elif event["kind"] == "columns":
                    columns = event["columns"]
        return columns

    def _ask(self, request: dict[str, Any], last: str) -> Generator[dict[str, Any]]:
        """Send a request; yield its events up to the first of kind `last`."""
        if self._idle:
            self._idle.cancel()
        if not self.is_loaded:
            self._start()
        finished = False
        try:
            self._send(request)
            for event in self._events():
                finished = event["kind"] in (last, "error")
                if event["kind"] == "error":
                    raise UserError(event["message"]) if not event["bug"] else self._bug(event["message"])
                yield event
                if finished:
                    return
            raise self._death()
        finally:
            if not finished and self.is_loaded:
                self._drain(last)
            self._rest()

    def _events(self) -> Iterator[dict[str, Any]]:
        """The worker's events, until it ends."""
        child = self._child
        try:
            for line in child.stdout if child and child.stdout else ():
                yield json.loads(line)
        except ValueError:  # half a line of a worker that was killed, or its pipe was closed by `close`
            return

    def _drain(self, last: str) -> None:
        """Nobody listens any more: stop the answer and read its rest, so that the next one starts clean."""
        self.stop()
        for event in self._events():
            if event["kind"] in (last, "error"):
                return

    def _start(self) -> None:
        self.close()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - nameless: nothing stays behind, however this process ends
        self._child = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            encoding="utf-8",
            env=child_environment() | gpus.environment(),
            **processes.apart(),  # a Ctrl+C is for the page
        )

    def _send(self, request: dict[str, Any]) -> None:
        child = self._child
        if child is None or child.stdin is None:
            return
        line = json.dumps(request) + "\n"
        try:
            with self._pipe:
                child.stdin.write(line)
                child.stdin.flush()
        except (OSError, ValueError):  # it is dead; whoever reads its events says so
            return

    def _bug(self, message: str) -> RuntimeError:
        """An error of the worker's own; what it has logged, with the traceback, is saved to a file that the error names."""
        with tempfile.NamedTemporaryFile("wb", prefix="qlora-gui-compare-", suffix=".log", delete=False) as file:
            file.write(self._logged().encode())
        return RuntimeError(f"{message.splitlines()[0]} (more in {file.name})")

    def _logged(self) -> str:
        if self._log is None or self._log.closed:
            return ""
        self._log.seek(0)  # the worker writes at the same offset: reading to the end puts it back
        return self._log.read().decode("utf-8", "replace")

    def _death(self) -> UserError:
        child, lines = self._child, self._logged().strip().splitlines()
        reason = f" ({lines[-1].strip()})" if lines else ""
        if child is not None:
            with suppress(subprocess.TimeoutExpired):
                if processes.was_killed(child.wait(5)):  # the log cannot know: there was no time to write
                    reason = " (it was killed: perhaps memory ran out)"
        self.close()
        return UserError(f"The compare process ended{reason}; ask again to start it anew.")

    def _rest(self) -> None:
        """End the worker after a while without a question."""
        if self.is_loaded:
            self._idle = threading.Timer(self._idle_seconds, self._close_if_free)
            self._idle.daemon = True
            self._idle.start()

    def _close_if_free(self) -> None:
        if self._busy.acquire(blocking=False):
            try:
                self.close()
            finally:
                self._busy.release()


def base_of(adapters: Sequence[Path], base: str | None = None, revision: str = "") -> dict[str, Any]:
    """The base that adapters are compared on, as arguments of `CompareClient.columns`: the one named, or the first's own.

    Raises UserError when that is not to be had, or a folder holds no adapter.
    """
    arguments, *_ = [trained_on(adapter) for adapter in adapters]  # all are looked at
    if base is not None:
        arguments |= {"base_model": base, "revision": revision, "chosen": True}
    named = arguments["base_model"]
    if not named:
        raise UserError(f"The adapter '{adapters[0]}' does not say what its base is: name it with --base.")
    if base is None and base_names.is_elsewhere(named):
        raise UserError(
            f"The adapter '{adapters[0]}' was trained on '{named}', a folder that is not on this machine: name the same "
            "base with --base."
        )
    check_base(named, arguments["revision"])
    return arguments


def trained_on(adapter: Path) -> dict[str, Any]:
    """The base of an adapter, as arguments of `CompareClient.columns`; from its run.json, else from PEFT's config.

    `base_model` is empty where the folder does not name one. Raises UserError when it holds no adapter.
    """
    if (adapter / "run.json").is_file():
        config = Run(adapter).config()
        name, revision = base_names.resolved(config.base_model, config.revision)
        quantization = {"quant_type": config.quant_type, "double_quant": config.double_quant}
        return {"base_model": name, "revision": revision, **quantization}
    try:
        peft_config = json.loads(plain_files.read_text(adapter / "adapter_config.json", plain_files.MOST_CONFIG))
        name, revision = base_names.resolved(
            str(peft_config.get("base_model_name_or_path") or ""), str(peft_config.get("revision") or "")
        )
    except plain_files.StrangeFile as error:
        raise UserError(f"The adapter '{adapter}' cannot be read: {error}.") from None
    except (OSError, ValueError, AttributeError, RecursionError):
        raise UserError(f"The folder '{adapter}' holds no adapter: it has no readable adapter_config.json.") from None
    return {"base_model": name, "revision": revision}
