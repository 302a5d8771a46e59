"""What a terminal or a pipe can show: no text may end a program because a console cannot encode it."""

import io
import re
import sys

from qlora_gui.system.kind import is_windows

_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]"
)


def printable(text: str) -> str:
    """A text with control characters and bidirectional overrides replaced: in texts of strangers they would control a
    terminal."""
    return _UNPRINTABLE.sub("\ufffd", text)


def prepare() -> None:
    """Let stdout and stderr take every text: what goes to a file or a pipe on Windows is UTF-8, as everywhere else, and
    what a terminal has no sign for is shown as its number, as are bytes of a file's name that are no UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):  # a notebook's, a test's: they can
            continue
        if not _is_utf8(stream.encoding) and is_windows() and not stream.isatty():
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        else:
            stream.reconfigure(errors="backslashreplace")


def environment() -> dict[str, str]:
    """Variables for a child whose output is read by this program: UTF-8, and no character that ends it.

    Windows' files are UTF-8 for it as well, where a library names no encoding; elsewhere the locale names files, too.
    """
    return {"PYTHONIOENCODING": "utf-8:backslashreplace"} | ({"PYTHONUTF8": "1"} if is_windows() else {})


def shows_everything() -> bool:
    """Whether stdout can encode every character."""
    return _is_utf8(getattr(sys.stdout, "encoding", None))


def _is_utf8(encoding: str | None) -> bool:
    return (encoding or "").lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig", "utf-16", "utf-32")
