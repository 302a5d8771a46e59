"""A seal that only this folder of runs can make. Without it a folder that came from elsewhere could mark itself as queued,
and the queue starts what waits without asking."""

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from qlora_gui import plain_files
from qlora_gui.system import files

KEY = ".queue.key"
_MOST_KEY = 1024  # bytes


def make(run: Path) -> str:
    """The seal of a run's folder; the key of the folder of runs is made where there is none. Raises OSError."""
    key = run.parent / KEY
    if not key.exists():
        aside = run.parent / f"{KEY}.{os.getpid()}.part"
        file = files.open_carefully(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(file, secrets.token_hex(32).encode())
        finally:
            os.close(file)
        try:
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.link(aside, key)
        except OSError:  # a file system without links: who comes last is right, and who came first waits anew
            files.replace(aside, key)
        finally:
            aside.unlink(missing_ok=True)
    return _sealed(run)


def holds(run: Path, seal: object) -> bool:
    """Whether a seal is this folder's."""
    with contextlib.suppress(OSError):
        return isinstance(seal, str) and hmac.compare_digest(seal.encode(), _sealed(run).encode())
    return False


def _sealed(run: Path) -> str:
    key = plain_files.read_bytes(run.parent / KEY, _MOST_KEY)
    return hmac.new(key, os.fsencode(run.name), hashlib.sha256).hexdigest()
