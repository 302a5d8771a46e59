"""The page's one compare worker: started by the first question, reloaded when base or adapters change."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.inference.sampling import Decoding
from qlora_gui.runs.store import Run

Messages = list[dict[str, str]]
_CLOSED = "The compare process was closed meanwhile: ask again to start it anew."


class Session:
    """Holds a compare client, and which columns it has loaded.

    Whoever loads and then asks holds `turn` meanwhile, so that nobody else's columns answer. It is no RLock, for a
    page's generator may be taken up by another thread for every piece.
    """

    def __init__(self, factory: Callable[[], Any]):
        self.turn = threading.Lock()
        self._factory = factory
        self._client: Any = None
        self._loaded: Any = None
        self.columns: list[dict[str, Any]] = []

    def load(self, base: RunConfig, runs: list[Run]) -> Iterator[str]:
        """Make the columns base + adapters ready, saying what is being done; `base` names it and its quantization.

        Raises UserError.
        """
        asked = (base.base_model, base.revision, [run.path for run in runs])
        kind = {"quant_type": base.quant_type, "double_quant": base.double_quant}
        if any(run.config().base_model != base.base_model for run in runs):
            kind["chosen"] = True
        wanted = (asked, kind, [_age(run) for run in runs])
        client = self._client = self._client or self._factory()
        if self._loaded == wanted and client.is_loaded:
            return
        self._loaded = None
        stages: queue.Queue[str | None] = queue.Queue()
        result: list[Any] = []

        def work() -> None:
            try:
                result.append(client.columns(*asked, say=stages.put, **kind))
            except BaseException as error:  # carried over to the caller's thread
                result.append(error)
            stages.put(None)

        threading.Thread(target=work, daemon=True).start()
        while (text := stages.get()) is not None:
            yield text
        if isinstance(result[0], BaseException):
            raise self._as_user_error(client, result[0])
        self.columns, self._loaded = result[0], wanted

    def answer(self, conversations: list[Messages], decoding: Decoding) -> Iterator[dict[str, Any]]:
        """The client's events; the answers are stopped when nobody listens any more. Raises UserError."""
        client = self._client
        if client is None:
            raise UserError(_CLOSED)
        try:
            with closing(client.answer(conversations, decoding)) as events:
                yield from events
        except Exception as error:
            raise self._as_user_error(client, error) from error

    def stop(self) -> None:
        """End the answers that are being written."""
        with suppress(UserError):  # a worker that is gone has stopped
            if self._client is not None:
                self._client.stop()

    def close(self) -> None:
        """End the worker and free its memory."""
        client, self._client, self._loaded = self._client, None, None
        if client is not None:
            client.close()

    def _as_user_error(self, client: Any, error: BaseException) -> UserError:
        """An error of the client as a sentence; after a bug of the worker the next question starts a new one."""
        if self._client is not client:  # closed from elsewhere, in the middle of its work
            return UserError(_CLOSED)
        if isinstance(error, UserError):
            return error
        self.close()
        return UserError(f"The compare process failed ({error}); ask again to start it anew.")


def _age(run: Run) -> int:
    """Tells an adapter from the one that a resumed run writes over it."""
    try:
        return (run.path / "adapter_model.safetensors").stat().st_mtime_ns
    except OSError:
        return 0
