"""Is the model hub there, and does it know this name? Asked briefly, before anything heavy starts.

With the libraries' defaults an unreachable hub costs 23 s of retries, so every process that may
load from the hub calls `go_offline_if_unreachable` before it imports transformers or datasets.
"""

import os
import re
import threading
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path
from typing import Literal

from qlora_gui.errors import UserError

PROBE_SECONDS = 4.0
_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def cache_dir() -> Path:
    """The folder for models and other things that can be made again (`QLORA_GUI_CACHE` moves it)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("QLORA_GUI_CACHE") or Path(base) / "qlora_gui")


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def looks_like_id(name: str) -> bool:
    """True for `name` or `owner/name` as hubs spell them; says nothing about whether it exists."""
    return bool(_ID.match(name)) and ".." not in name


@lru_cache(maxsize=1)
def answers() -> bool:
    """Whether the hub answers at all, found out once a process and within `PROBE_SECONDS`."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return False
    return _status(endpoint()) is not None


def go_offline_if_unreachable() -> None:
    """Let the libraries use their cache at once instead of retrying; call before importing them."""
    if not answers():
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
    return folder.is_dir() and any(folder.iterdir())


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _status(url: str, token: str | None = None) -> int | None:
    """The HTTP status of a HEAD request, or None when nothing answers in time."""
    found: list[int] = []

    def ask() -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(url, method="HEAD", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as reply:
                found.append(reply.status)
        except urllib.error.HTTPError as error:
            found.append(error.code)
        except (OSError, ValueError):
            pass

    # A thread, because a name look-up has no timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return found[0] if found else None
