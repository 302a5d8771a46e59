"""Files that are written whole or not at all, and JSON files that may be missing or damaged."""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_gui import plain_files
from qlora_gui.errors import UserError
from qlora_gui.system import files


def write_whole(path: Path, body: str) -> None:
    """Write a file so that readers see the old one or the whole new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(body)
        files.set_mode(temporary, 0o644)
        files.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def append_line(path: Path, line: bytes) -> None:
    """Append a line, its line end included, in one write. Raises OSError; then nothing of it remains, unless another
    process has appended something in the same moment."""
    with plain_files.open_to_write(path, append=True) as opened:
        file = opened.fileno()
        written = os.write(file, line)
        if written < len(line):
            end = os.lseek(file, 0, os.SEEK_CUR)
            if written and os.fstat(file).st_size == end:
                os.ftruncate(file, end - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def check_writable(out: Path, what: str) -> None:
    """Raise UserError unless a file can be written there; `what` is what it would hold."""
    folder = out.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{what} cannot be written to '{out}': choose a file in an existing, writable folder.")
    if out.is_dir():
        raise UserError(f"{what} cannot be written to '{out}': it is a folder.")


@contextlib.contextmanager
def explained(what: str, path: Path) -> Iterator[None]:
    """Turn an OSError within into a UserError: `what` cannot be written to `path`, why, and what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free some space and try again" if full else "make the folder writable, or choose another"
        raise UserError(f"{what} cannot be written to '{path}': {error.strerror or error}; {fix}.") from None


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no such file, or it holds none."""
    try:
        value = json.loads(plain_files.read_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
