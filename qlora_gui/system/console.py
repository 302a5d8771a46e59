"""What a terminal or a pipe can show: no sentence may end a program because a console has no sign for it."""

import io
import sys

from qlora_gui.system.kind import is_windows


def prepare() -> None:
    """Let stdout and stderr take every text: what goes to a file or a pipe on Windows is UTF-8, as everywhere else, and
    what a terminal has no sign for is shown as its number.
    """
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper) or _is_utf8(stream.encoding):  # a notebook's, a test's: they can
            continue
        if is_windows() and not stream.isatty():
            stream.reconfigure(encoding="utf-8")
        else:
            stream.reconfigure(errors="backslashreplace")


def environment() -> dict[str, str]:
    """Variables for a child whose output is read by this program: UTF-8, and no character that ends it.

    Windows' files are UTF-8 for it as well, where a library names no encoding; elsewhere the locale names files, too.
    """
    return {"PYTHONIOENCODING": "utf-8:backslashreplace"} | ({"PYTHONUTF8": "1"} if is_windows() else {})


def shows_everything() -> bool:
    """Whether stdout has a sign for every character."""
    return _is_utf8(getattr(sys.stdout, "encoding", None))


def _is_utf8(encoding: str | None) -> bool:
    return (encoding or "").lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig", "utf-16", "utf-32")
