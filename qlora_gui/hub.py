"""Whether the model hub is reachable and knows a name: asked briefly, before anything heavy starts.

With the libraries' defaults an unreachable hub costs 23 s of retries, so every process that may
load from the hub calls `go_offline_if_unreachable` before it imports transformers or datasets.
"""

import contextlib
import json
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from qlora_gui.errors import UserError
from qlora_gui.system import files

PROBE_SECONDS = 4.0
WENT_OFFLINE = "QLORA_GUI_WENT_OFFLINE"  # set where this program, and not its user, has set HF_HUB_OFFLINE
_MOST_ANSWER = 4 << 20  # bytes
Answer = TypeVar("Answer")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_LONGEST_ID = 193  # twice 96 and a slash


def cache_dir() -> Path:
    """The folder for models and other things that can be recreated (`QLORA_GUI_CACHE` moves it)."""
    if named := os.environ.get("QLORA_GUI_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qlora_gui"


def private(name: str) -> Path:
    """A folder of the cache for what only its owner may read: uploads, reports. It is made if it can be."""
    folder = cache_dir() / name
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        files.set_mode(folder, 0o700)
    return folder


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def local(named: str) -> Path | None:
    """The file or folder of this name, `~` expanded; None where there is none, or no such name can be."""
    try:
        path = Path(named).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, the home of nobody
        return None


def looks_like_id(name: str) -> bool:
    """True for `name` or `owner/name` as hubs spell them; says nothing about whether it exists."""
    return bool(_ID.fullmatch(name)) and ".." not in name and len(name) <= _LONGEST_ID


@lru_cache(maxsize=1)
def answers() -> bool:
    """Whether the hub answers at all, checked once per process and within `PROBE_SECONDS`."""
    if _offline_is_set():
        return False
    return _status(endpoint()) is not None


def _offline_is_set() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}


def offline_is_wanted() -> bool:
    """Whether the user has set HF_HUB_OFFLINE, and not this program because the hub did not answer once."""
    return _offline_is_set() and WENT_OFFLINE not in os.environ


def try_again() -> None:
    """Forget that the hub did not answer once; call before huggingface_hub is imported, which reads HF_HUB_OFFLINE then."""
    if os.environ.pop(WENT_OFFLINE, None):
        os.environ.pop("HF_HUB_OFFLINE", None)
        os.environ.pop("HF_DATASETS_OFFLINE", None)


def go_offline_if_unreachable() -> None:
    """Let the libraries use their cache at once instead of retrying; call before importing them."""
    if not answers():
        if not _offline_is_set():
            os.environ[WENT_OFFLINE] = "1"
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_DATASETS_OFFLINE"] = "1"


def require(kind: Literal["models", "datasets"], name: str, revision: str = "") -> None:
    """Raise UserError unless `name` is in the local cache or the hub knows it.

    The hub's 401 counts as unknown without a token (that is how it answers for private and
    misspelled names alike).
    """
    what = "base model" if kind == "models" else "data set"
    if not looks_like_id(name):
        raise UserError(f"The {what} '{name}' is neither an existing file or folder nor a hub id like owner/name.")
    if in_cache(kind, name):
        return
    if not answers():
        raise UserError(
            f"The {what} '{name}' is no local folder, is not in the local cache, and the hub does not answer: "
            "check the spelling and the network, or give a local path."
        )
    path = f"/api/{kind}/{name}" + (f"/revision/{revision}" if revision else "")
    status = _status(endpoint() + path, _token())
    if status in {401, 403, 404}:
        at = f" at revision '{revision}'" if revision else ""
        raise UserError(
            f"The hub knows no {what} '{name}'{at} that you may read: check the spelling, or log in if it is private."
        )


def in_cache(kind: Literal["models", "datasets"], name: str) -> bool:
    """Whether the hub's local cache holds a snapshot of this name."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}" / "snapshots"
    try:
        return folder.is_dir() and any(folder.iterdir())
    except OSError:  # of another user
        return False


def cached_models() -> list[str]:
    """The whole models in the hub's local cache (safetensors; no adapters), in the spelling they have there."""
    from huggingface_hub import constants

    found = []
    with contextlib.suppress(OSError):  # there is no cache, or it is another user's
        for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*")):
            snapshots = [config.parent for config in folder.glob("snapshots/*/config.json")]
            if any(
                any(path.glob("*.safetensors")) and not (path / "adapter_config.json").exists() for path in snapshots
            ):
                found.append(folder.name.removeprefix("models--").replace("--", "/", 1))
    return found


def cached_file(kind: Literal["models", "datasets"], name: str, file: str, revision: str = "") -> Path | None:
    """A file of the hub's local cache, of the revision asked for (default: main), or None where it is not cached."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}"
    ref = folder / "refs" / (revision or "main")
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    path = folder / "snapshots" / commit / file if commit else None
    return path if path is not None and path.is_file() else None


def fetch_json(name: str, file: str, revision: str = "") -> dict[str, Any] | None:
    """A small JSON file of a hub model, or None when it cannot be had within `PROBE_SECONDS`."""
    request = _request(f"{endpoint()}/{name}/resolve/{revision or 'main'}/{file}", "GET", _token())
    body = _briefly(lambda: _open(request).read(2**20))
    try:
        value = json.loads(body or b"")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def ask(path: str, token: str) -> tuple[int, dict[str, Any]] | None:
    """The status and the JSON object with which the hub's API answers a GET; None when it does not answer in time."""

    def go() -> tuple[int, dict[str, Any]]:
        try:
            with _open(_request(endpoint() + path, "GET", token)) as reply:
                status, body = int(reply.status), reply.read(_MOST_ANSWER)
        except urllib.error.HTTPError as error:
            return error.code, {}
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        return status, value if isinstance(value, dict) else {}

    return _briefly(go)


def login_token() -> str:
    """The token of the environment or of the cached login; "" where nobody is logged in, or it cannot be had soon."""

    def find() -> str:
        try:
            return _token() or ""
        except Exception:  # the library's way of saying that a login has expired, or cannot be renewed
            return ""

    return _briefly(find) or ""


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _request(url: str, method: str, token: str | None) -> urllib.request.Request:
    request = urllib.request.Request(url, method=method)
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return request


class _KeepsToken(urllib.request.HTTPRedirectHandler):
    """The token goes along to the same place (the hub redirects names that were changed), and to no other."""

    def redirect_request(self, req: urllib.request.Request, *about: Any) -> urllib.request.Request | None:
        """The request to go on with; urllib's own would have every header."""
        new = super().redirect_request(req, *about)
        token = req.unredirected_hdrs.get("Authorization")
        if new is not None and token and _place(new.full_url) == _place(req.full_url):
            new.add_unredirected_header("Authorization", token)
        return new


def _place(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: the same host without encryption is another place."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _open(request: urllib.request.Request) -> Any:
    return urllib.request.build_opener(_KeepsToken).open(request, timeout=PROBE_SECONDS)


def _status(url: str, token: str | None = None) -> int | None:
    """The HTTP status of a HEAD request, or None when nothing answers in time."""

    def ask() -> int:
        try:
            with _open(_request(url, "HEAD", token)) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code

    return _briefly(ask)


def _briefly(ask: Callable[[], Answer]) -> Answer | None:
    """What `ask` returns, or None when the network fails or takes longer than `PROBE_SECONDS`."""
    results: list[Answer] = []

    def run() -> None:
        with contextlib.suppress(OSError, ValueError):
            results.append(ask())

    # A thread, because a name look-up has no timeout of its own.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return results[0] if results else None
