"""A push to the hub by `huggingface_hub`: what was packed, in one commit; repeated where the connection breaks.

Goes by plain HTTP (the hub's LFS protocol), which tells how far it is and is tested, and by hf_xet only for who sets
HF_HUB_DISABLE_XET=0. A repeated push sends no file again that the hub already has.
"""

import contextlib
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import disable_progress_bars, logging
from huggingface_hub.utils._http import default_client_factory

from qlora_gui import hub, locks
from qlora_gui.errors import UserError, first_line
from qlora_gui.export import hub_target, publish, push_job
from qlora_gui.export.publish import Upload
from qlora_gui.export.push_job import Push
from qlora_gui.formatting import amount
from qlora_gui.runs.child_job import Count, Say
from qlora_gui.runs.store import Run

Result = TypeVar("Result")
_WAITS = (2.0, 8.0)  # seconds before another try; within each the library tries some requests several times
_SILENCE_SECONDS = 120.0  # after which a connection on which nothing moves is broken
_ITSELF = "this account"  # whose token it is was asked by whoever began the push: the hub answers that rarely
_BUSY = (408, 429, 500, 502, 503, 504)


def push(folder: Path, asked: Push, token: str, say: Say, progress: Count) -> str:
    """Push an adapter, or an export of it, and write that down in the run's folder. Returns the address of the model.

    Raises UserError, also where the repository is no more as it was when the user agreed.
    """
    folder = folder.absolute()
    if (folder / "run.json").is_file():
        push_job.check_has_ended(Run(folder))
    _prepare()
    with locks.reading([folder, *([Path(asked.what)] if asked.what else [])], "a push to the hub"):
        parcel = publish.pack(folder, asked.what)
        for remark in parcel.remarks:
            say(remark)
        say(f"Looking at {asked.repo}")
        target = _as_agreed(asked, token)
        api = HfApi(endpoint=hub.endpoint(), token=token, library_name="qlora_gui")
        if not target.exists:
            say(f"Making the {'public' if asked.public else 'private'} repository {asked.repo}")
            _repeated(lambda: api.create_repo(asked.repo, private=not asked.public, exist_ok=True), asked, token, say)
            target = _made(asked, token)
        if told := hub_target.remark(target, asked.public):
            say(told)
            parcel.remarks.append(told)
        _upload(api, asked, token, parcel.files, say, progress)
    private = not target.is_public
    if any((folder / name).is_file() for name in ("run.json", push_job.JOB.progress)):  # a run, or begun in the page
        what = Path(asked.what).name if asked.what else push_job.ADAPTER
        with contextlib.suppress(OSError):  # a folder that is read-only: it is on the hub all the same
            push_job.record(folder, asked.repo, private, what, " ".join(parcel.remarks))
    say(f"Pushed to {hub_target.url(asked.repo)} ({'private' if private else 'public'})")
    return hub_target.url(asked.repo)


def _prepare() -> None:
    """Set the library up: nothing printed (its warnings have signed addresses in them), and no connection that hangs."""
    constants.HF_HUB_DISABLE_XET = os.environ.get("HF_HUB_DISABLE_XET", "1").upper() in constants.ENV_VARS_TRUE_VALUES
    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)

    def client() -> Any:
        made = default_client_factory()
        made.timeout = _SILENCE_SECONDS
        return made

    set_client_factory(client)


def _as_agreed(asked: Push, token: str) -> hub_target.Target:
    """The repository as it is now. Raises UserError where it is not what was agreed to."""
    target = hub_target.look(asked.repo, token, _ITSELF)
    agreed = target.seen in ("new", asked.seen)
    if not agreed:
        raise UserError(
            f"The repository '{asked.repo}' is {target.seen} now, and was {asked.seen} when it was looked at: push again. "
            "Nothing was pushed."
        )
    return target


def _made(asked: Push, token: str) -> hub_target.Target:
    """The repository just made. Raises UserError where it is public and was not to be: somebody else was faster."""
    target = hub_target.look(asked.repo, token, _ITSELF)
    if target.is_public and not asked.public:
        raise UserError(
            f"The repository '{asked.repo}' is public, though a private one was asked for: nothing was pushed."
        )
    return target


def _upload(api: HfApi, asked: Push, token: str, files: list[Upload], say: Say, progress: Count) -> None:
    """Send the files, and make the one commit that shows them."""
    total = sum(map(_size, files))
    say(f"Pushing {len(files)} files, {amount(total)}")
    sums: dict[str, bytes] = {}

    def send() -> None:
        sent = _Sent(total, progress)
        additions = [_Addition(file, sent, sums.get(file.name)) for file in files]
        try:
            for file, addition in zip(files, additions, strict=True):
                if Path(file.name).suffix in publish.WEIGHTS:  # one by one, in this thread: Ctrl+C ends it at once
                    say(f"Uploading {file.name}, {amount(_size(file))}")
                    api.preupload_lfs_files(asked.repo, [addition], free_memory=False)
            say("Committing")
            api.create_commit(asked.repo, additions, commit_message=f"Push {_called(asked)} with qlora_gui")
        finally:
            sums.update({one.path_in_repo: one.upload_info.sha256 for one in additions if one.upload_info.is_hashed})
        sent.finish()

    _repeated(send, asked, token, say)


def _called(asked: Push) -> str:
    return Path(asked.what).name if asked.what else "the adapter"


def _size(file: Upload) -> int:
    return len(file.source) if isinstance(file.source, bytes) else file.source.stat().st_size


class _Sent:
    """How many bytes of all files have been sent; files are sent in several threads."""

    def __init__(self, of: int, progress: Count):
        self._of, self._progress = max(1, of), progress
        self._by_name: dict[str, int] = {}
        self._lock = threading.Lock()

    def at(self, name: str, position: int) -> None:
        """Note where the reading of a file is; a file that is sent again begins anew."""
        with self._lock:
            self._by_name[name] = position
            self._progress(min(self._of, sum(self._by_name.values())), self._of)

    def finish(self) -> None:
        """Everything is there, also what the hub had already."""
        self._progress(self._of, self._of)


class _Addition(CommitOperationAdd):  # type: ignore[misc]
    """A file of the commit, which tells how far it has been sent."""

    def __init__(self, file: Upload, sent: _Sent, sha256: bytes | None):
        source = file.source if isinstance(file.source, bytes) else str(file.source)
        super().__init__(path_in_repo=file.name, path_or_fileobj=source)
        self._sent = sent
        if sha256 is not None:
            self.upload_info.sha256 = sha256

    @contextlib.contextmanager
    def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
        """The file to be read: with `with_tqdm` to be sent."""
        if not with_tqdm or isinstance(self.path_or_fileobj, bytes):
            with super().as_file(with_tqdm=False) as file:
                yield file
            return
        with _Counting(self.path_or_fileobj, lambda position: self._sent.at(self.path_in_repo, position)) as file:
            yield file  # type: ignore[misc]


class _Counting(io.FileIO):
    """A file that tells its position as it is read."""

    def __init__(self, path: str, tell: Callable[[int], None]):
        super().__init__(path, "rb")
        self._tell = tell

    def read(self, size: int | None = -1, /) -> bytes:
        body = super().read(-1 if size is None else size)
        self._tell(self.tell())
        return body


def _repeated(work: Callable[[], Result], asked: Push, token: str, say: Say) -> Result:
    """The result of something that is tried again where the connection breaks or the hub is busy. Raises UserError."""
    for wait in _WAITS:
        try:
            return work()
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            cause = _cause(error)
            if not _passes(cause):
                raise _told(cause, asked, token) from None
            say(f"{_what_broke(cause)}: trying again in {wait:.0f} s")
            time.sleep(wait)
    try:
        return work()
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _told(_cause(error), asked, token) from None


def _cause(error: BaseException) -> BaseException:
    """The error of the network under those that the library wraps it in; of a card's header the library says more."""
    if isinstance(error, ValueError) and not isinstance(error, HTTPError):
        return error
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, HTTPError | OfflineModeIsEnabled):
        inner = inner.__cause__
    return inner or error


def _status(error: BaseException) -> int:
    """The status with which the hub refused; 0 where it was something else."""
    return int(error.response.status_code) if isinstance(error, HfHubHTTPError) else 0


def _passes(error: BaseException) -> bool:
    """Whether it can be better a moment later."""
    if isinstance(error, HfHubHTTPError):
        return _status(error) in _BUSY
    return isinstance(error, HTTPError)


def _what_broke(error: BaseException) -> str:
    return f"The hub is busy (status {_status(error)})" if _status(error) else "The connection to the hub broke"


def _told(error: BaseException, asked: Push, token: str) -> Exception:
    """An error of the network or the hub as a sentence; another one as it is."""
    status, repo = _status(error), asked.repo
    said = _server_words(error, token)
    again = "push again, and what is there already is not sent again"
    if isinstance(error, OfflineModeIsEnabled):
        return hub_target.no_answer()
    if status == 401:
        return UserError(f"The hub does not take this token for '{repo}': {hub_target.LOG_IN}.{said}")
    if status in (402, 403):
        return UserError(
            f"The token may not write to '{repo}': use one with write access, and a repository of your own or of an "
            f"organization that lets you.{said}"
        )
    if status == 404:
        return UserError(f"The repository '{repo}' is not there any more, or hidden from this token: push again.{said}")
    if status in (409, 412):
        return UserError(f"The repository '{repo}' was changed by somebody else at the same time: push again.{said}")
    if status == 413:
        return UserError(f"The hub takes no files as large as these into '{repo}': ask it for more room.{said}")
    if status == 429:
        return UserError(f"The hub was asked too often: wait some minutes, then {again}.{said}")
    if status in (408, 502, 503, 504):
        return UserError(f"The hub is too busy (status {status}): wait some minutes, then {again}.{said}")
    if status:
        return UserError(f"The hub refused the push to '{repo}' (status {status}).{said}")
    if isinstance(error, HTTPError):
        return UserError(f"The connection to the hub broke several times: {again}.")
    if isinstance(error, json.JSONDecodeError):  # such as the login page of a network
        return UserError(f"What answered was no answer of the hub: check the network and the proxy, then {again}.")
    if isinstance(error, ValueError):  # the hub's remarks on a card's header, or on files by the LFS protocol
        return UserError(
            f"The hub did not take the push: {hub_target.without_secrets(' '.join(str(error).split()), token)[:500]}."
        )
    if isinstance(error, OSError) and error.filename:
        return UserError(f"The file '{error.filename}' cannot be read: {error.strerror or error}.")
    if isinstance(error, OSError):  # hf_xet's errors of the network
        return UserError(f"The upload broke off ({hub_target.without_secrets(first_line(error), token)}): {again}.")
    return error if isinstance(error, Exception) else RuntimeError(str(error))


def _server_words(error: BaseException, token: str) -> str:
    """What the hub itself says of its refusal, in brackets; "" where it says nothing."""
    words = " ".join(str(getattr(error, "server_message", None) or "").split())
    return f" (The hub: {hub_target.without_secrets(words, token)[:300]})" if words else ""
