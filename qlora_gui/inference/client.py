"""The front's side of the compare worker: starts it, asks it, notices when it died. Never imports torch."""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any

from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.inference import protocol
from qlora_gui.inference.protocol import Conversation, Event, Load
from qlora_gui.inference.sampling import Decoding
from qlora_gui.references import ModelRef
from qlora_gui.runs import base_names, elsewhere, gpus
from qlora_gui.runs.launch import child_environment
from qlora_gui.runs.store import Run
from qlora_gui.system import processes

MODULE = "qlora_gui.inference.worker"
IDLE_SECONDS = 900.0
_WHERE = "with --base, or in the field Base in the page"
_NAME_IT = f"name it {_WHERE}"
_CLOSED = "The compare process was closed meanwhile: ask again to start it anew."


class CompareClient:
    """One worker process, started when first asked and ended after `idle_seconds` without a question.

    Safe to share between threads: one load or question at a time.
    """

    def __init__(self, idle_seconds: float = IDLE_SECONDS):
        self._idle_seconds = idle_seconds
        # Held while anything is asked. Not an RLock: a page's generator may be taken up by another thread for every piece.
        self._turn = threading.Lock()
        self._writing = threading.Lock()  # a stop comes from another thread than the question, and needs no turn
        self._load: Load | None = None  # what the worker has loaded, or had before it ended
        self._loaded = protocol.Loaded([])
        self._ages: list[int] = []  # of the adapters that it has loaded
        self._unread: type[protocol.Loaded | protocol.Done] | None = (
            None  # the last event of a question whose reader has left
        )
        self._child: subprocess.Popen[str] | None = None
        self._log: IO[bytes] | None = None
        self._idle: threading.Timer | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether there is a worker."""
        return self._child is not None and self._child.poll() is None

    @property
    def is_busy(self) -> bool:
        """Whether a question has to wait for another."""
        return self._turn.locked()

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
        """Load base and adapters (see `protocol.Load`); returns one dict per column: name, adapter (None for the base), proof.

        Raises UserError for what a person can fix, RuntimeError for a bug in the worker; that names the log file
        which keeps the traceback. After an error there are no columns.
        """
        folders = tuple(str(folder) for folder in adapters)
        load = Load(base_model, revision, quant_type, double_quant, folders, chosen)
        with self._turn:
            self._read_unread()
            with closing(self._loading(load)) as stages:
                for stage in stages:
                    if say and isinstance(stage, protocol.Stage):
                        say(stage.text)
            return self._loaded.columns

    def answer(
        self, conversations: Sequence[Conversation], decoding: Decoding, tools: Sequence[Any] | None = None
    ) -> Iterator[Event]:
        """Ask every column its conversation: yields `Prompt`, `Text` and `Ended` events, then `Done`.

        `conversations` has one list of messages per column, in the order of `columns`; the last call of `columns` counts,
        whichever thread made it. `tools` are what the answers may call, as a template takes them. A worker that died
        or was idle too long is started anew with the columns it had.
        Raises as `columns` does.
        """
        return self._asked(protocol.Ask(conversations, decoding, tools))

    def evaluate(self, request: protocol.Evaluate) -> Iterator[Event]:
        """Measure examples under every column: yields `Facts`, `Rows` and what is measured, then `Done`.

        Raises as `columns` does.
        """
        return self._asked(request)

    def ask(self, load: Load, conversations: Sequence[Conversation], decoding: Decoding) -> Generator[Event]:
        """Ask these columns, which are loaded where they are not yet, with nobody else's question in between.

        Yields `Stage` events, `Loaded`, then what `answer` yields; the answers are stopped when nobody listens any more.
        Raises UserError, also for a bug of the worker, of which the next question starts a new one.
        """
        return self._loaded_and_asked(load, protocol.Ask(conversations, decoding))

    def complete(self, load: Load, completions: Sequence[protocol.Completion]) -> Generator[Event]:
        """Ask these columns, loaded as by `ask`, completions of prompts; without any they are only loaded.

        Yields `Stage` events, `Loaded`, then the events of the completions in any order, and `Done`. Raises as `ask` does.
        """
        return self._loaded_and_asked(load, protocol.Complete(completions))

    def _loaded_and_asked(self, load: Load, request: protocol.Ask | protocol.Complete) -> Generator[Event]:
        ages = [_age(folder) for folder in load.adapters]
        with self._turn:
            try:
                self._read_unread()
                if not self.is_loaded or (self._load, self._ages) != (load, ages):
                    yield from self._loading(load)
                    self._ages = ages
                yield self._loaded
                if not self.is_loaded:
                    raise UserError(_CLOSED)
                yield from self._exchange(request)
            except UserError:
                raise
            except Exception as error:
                self.close()
                raise UserError(f"The compare process failed ({error}); ask again to start it anew.") from error

    def stop(self, numbers: Sequence[int] | None = None) -> None:
        """End the answers that are being written, or the completions of these numbers; their text so far stands."""
        if self.is_loaded:
            self._send(protocol.Stop(numbers))

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

    def _asked(self, request: protocol.Ask | protocol.Evaluate) -> Iterator[Event]:
        with self._turn:
            self._read_unread()
            if not self.is_loaded and self._load:
                for _ in self._loading(self._load):
                    pass
            yield from self._exchange(request)

    def _loading(self, load: Load) -> Generator[Event]:
        """Load columns; yields what the worker does meanwhile."""
        self._load = None
        with closing(self._exchange(load)) as events:
            for event in events:
                if isinstance(event, protocol.Loaded):
                    self._load, self._loaded, self._ages = load, event, []
                else:
                    yield event

    def _exchange(self, request: Load | protocol.Ask | protocol.Complete | protocol.Evaluate) -> Generator[Event]:
        """Send a request; yield its events up to the last. Raises UserError, or RuntimeError for a bug of the worker."""
        if self._idle:
            self._idle.cancel()
        if not self.is_loaded:
            self._start()
        child, finished = self._child, False
        last: type[protocol.Loaded | protocol.Done] = protocol.Loaded if isinstance(request, Load) else protocol.Done
        try:
            self._send(request)
            for event in self._events():
                finished = isinstance(event, last | protocol.Error)
                if isinstance(event, protocol.Error):
                    raise self._bug(event.message) if event.bug else UserError(event.message)
                yield event
                if finished:
                    return
            raise UserError(_CLOSED) if self._child is not child else self._death()
        finally:
            if not finished and self.is_loaded:  # nobody listens any more
                self.stop()
                self._unread = last
            self._rest()

    def _events(self) -> Iterator[Event]:
        """The worker's events, until it ends."""
        child = self._child
        try:
            for line in child.stdout if child and child.stdout else ():
                event = protocol.to_event(line)
                if event is not None:
                    yield event
        except ValueError:  # half a line of a worker that was killed, or its pipe was closed by `close`
            return

    def _read_unread(self) -> None:
        """Read the rest of what a reader has left, so that the next question starts clean; a worker that died meanwhile
        is closed, so that it is started anew."""
        last, self._unread = self._unread, None
        if last is not None and not any(isinstance(event, last | protocol.Error) for event in self._events()):
            self.close()

    def _start(self) -> None:
        self.close()
        self._unread = None
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

    def _send(self, request: protocol.Request) -> None:
        child = self._child
        if child is None or child.stdin is None:
            return
        line = protocol.to_line(request)
        try:
            with self._writing:
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
        if self.is_loaded and self._idle_seconds < threading.TIMEOUT_MAX:  # a timer cannot wait for ever
            self._idle = threading.Timer(self._idle_seconds, self._close_if_free)
            self._idle.daemon = True
            self._idle.start()

    def _close_if_free(self) -> None:
        if self._turn.acquire(blocking=False):
            try:
                self.close()
            finally:
                self._turn.release()


def columns_of(base: RunConfig, runs: Sequence[Run]) -> Load:
    """The adapters of runs on the base that a config names with its quantization; it may be another than they name."""
    chosen = any(_is_chosen(base.base_model, run) for run in runs)
    adapters = tuple(str(run.path) for run in runs)
    return Load(base.base_model, base.revision, base.quant_type, base.double_quant, adapters, chosen)


def _is_chosen(base: str, run: Run) -> bool:
    """Whether a base is not the one that an adapter names, so that a person must have chosen it."""
    if not run.is_elsewhere():
        return run.config().base_model != base
    named = elsewhere.base_here(run.path)[0]
    return not named or base_names.relation(named, base) is None


def _age(adapter: str) -> int:
    """Tells an adapter from the one that a resumed run writes over it."""
    try:
        return (Path(adapter) / "adapter_model.safetensors").stat().st_mtime_ns
    except OSError:
        return 0


def base_of(adapters: Sequence[Path], base: str | None = None, revision: str = "") -> dict[str, Any]:
    """The base that adapters are compared on, as arguments of `CompareClient.columns`: the one named, or the first's own.

    Whole models among them say nothing of a base. Raises UserError when that is not to be had, or a folder holds no adapter.
    """
    found = [trained_on(adapter) for adapter in adapters if not elsewhere.is_whole(adapter)]  # all are looked at
    arguments: dict[str, Any] = found[0] if found else {"base_model": "", "revision": ""}
    if base is not None:
        arguments |= {"base_model": base, "revision": revision, "chosen": True}
    named = arguments["base_model"]
    if not named and not found:
        raise UserError(
            f"The folder '{adapters[0]}' holds no adapter: it is a whole model, which can be named as a base, or be compared with one: "
            f"{_NAME_IT}."
        )
    if not named:
        raise UserError(f"The adapter '{adapters[0]}' does not say what its base is: {_NAME_IT}.")
    if base is None and base_names.is_elsewhere(named):
        raise UserError(
            f"The adapter '{adapters[0]}' was trained on '{named}', a folder that is not on this machine: name the same "
            f"base {_WHERE}."
        )
    ModelRef.find(named, arguments["revision"]).check()
    return arguments


def trained_on(adapter: Path) -> dict[str, Any]:
    """The base of an adapter, as arguments of `CompareClient.columns`; from its run.json, else from PEFT's config.

    `base_model` is empty where the folder does not name one; of an adapter made elsewhere it is the one to take for it
    (`base_names.at_hand`). Raises UserError when it holds no adapter.
    """
    if (adapter / "run.json").is_file():
        config = Run(adapter).config()
        name, revision = base_names.resolved(config.base_model, config.revision)
        quantization = {"quant_type": config.quant_type, "double_quant": config.double_quant}
        return {"base_model": name, "revision": revision, **quantization}
    name, revision = base_names.at_hand(*base_names.resolved(*elsewhere.named_base(adapter)))
    return {"base_model": name, "revision": revision}
