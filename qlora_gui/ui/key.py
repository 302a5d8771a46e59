"""The page's token: a secret for its owner alone. It is in the printed address, and a cookie stands for it after that."""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from qlora_gui import hub
from qlora_gui.system import files

_TOKEN = re.compile(r"[\w-]{32,64}")


@dataclass(frozen=True)
class Key:
    """A token of 192 bits, and what is derived from it."""

    token: str = field(repr=False)

    def is_token(self, given: str) -> bool:
        """Whether this is the token, in the same time for every wrong one."""
        return hmac.compare_digest(_digest(self.token), _digest(given))

    def mark(self, what: str) -> str:
        """The cookie that says `what`, like "entered": nobody without the token can make it, and it is not the token."""
        return hmac.new(self.token.encode(), what.encode(), hashlib.sha256).hexdigest()

    def is_mark(self, what: str, given: str) -> bool:
        """Whether a cookie says `what`."""
        return hmac.compare_digest(_digest(self.mark(what)), _digest(given))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def load_or_create() -> Key:
    """The key of this user's pages: made once, and kept in a file that only they may read, so that a reload works after
    a restart. Where it cannot be kept, one for this process.
    """
    file = hub.private("page-token") / "token"
    token = _read(file)
    if token is None:
        with contextlib.suppress(OSError):
            _write(file, secrets.token_urlsafe(24))
        token = _read(file) or secrets.token_urlsafe(24)  # read: another page may have been faster
    return Key(token)


def _read(file: Path) -> str | None:
    """The token in the file; None where there is none, or others could have read or written it."""
    try:
        handle = files.open_carefully(file, os.O_RDONLY)
    except OSError:
        return None
    try:
        there = os.fstat(handle)
        if not (files.is_mine_alone(there) and stat.S_ISREG(there.st_mode)):
            return None
        token = os.read(handle, 100).decode("ascii", "replace")
    finally:
        os.close(handle)
    return token if _TOKEN.fullmatch(token) else None


def _write(file: Path, token: str) -> None:
    """Write the file whole. It replaces only one that is unusable: of two pages that begin together one is the first."""
    handle, aside = tempfile.mkstemp(dir=file.parent)  # for the owner alone from the beginning
    try:
        with os.fdopen(handle, "w", encoding="ascii") as body:
            body.write(token)
        try:
            os.link(aside, file)
        except OSError:
            if _read(file) is None:
                files.replace(aside, file)
    finally:
        Path(aside).unlink(missing_ok=True)
