"""The lines of a text file with their true places; what is not UTF-8 is named by its byte, and what it may be instead."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qlora_gui.errors import UserError

_MARK = codecs.BOM_UTF8
_WIDE = {  # the longer marks first: UTF-32's begins like UTF-16's
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
MOST_LINE = 16 << 20  # bytes; the longest row that can be trained on has some hundred thousand
_SAMPLE = 4096  # bytes looked at for UTF-16 without a mark


@dataclass(frozen=True)
class Line:
    """A line with its end, its 1-based number, and why it is not UTF-8 ("" where it is)."""

    number: int
    text: str
    fault: str = ""


def lines(path: Path) -> Iterator[Line]:
    """The lines of a file, without its byte order mark.

    Raises UserError where the file as a whole is in another encoding; a few bad bytes are faults of their lines.
    """
    offset = number = 0
    with path.open("rb") as file:
        _refuse_wide(path, file.read(_SAMPLE))
        file.seek(0)
        while block := file.readline(MOST_LINE + 1):  # ends at \n; \r alone ends a line too
            if len(block) > MOST_LINE:
                number += 1
                offset += len(block) + _skipped(file)
                yield Line(number, "", f"it is longer than {MOST_LINE:,} bytes, and longer lines are not read")
                continue
            for raw in block.splitlines(keepends=True):
                number += 1
                begin = len(_MARK) if number == 1 and raw.startswith(_MARK) else 0
                try:
                    yield Line(number, raw[begin:].decode())
                except UnicodeDecodeError as error:
                    place = offset + begin + error.start
                    if not _has_utf8(path):
                        raise _other(path, place, number, raw[begin + error.start]) from None
                    yield Line(number, raw[begin:].decode(errors="replace"), f"byte {place} of the file is not UTF-8")
                offset += len(raw)


def _skipped(file: BinaryIO) -> int:
    """Read on to the end of a line; gives how many bytes that were."""
    count = 0
    while piece := file.readline(MOST_LINE):
        count += len(piece)
        if piece.endswith(b"\n"):
            break
    return count


def text(path: Path) -> str:
    """A whole file. Raises UserError naming the byte and the line where it is not UTF-8."""
    body = path.read_bytes()
    _refuse_wide(path, body[:_SAMPLE])
    begin = len(_MARK) if body.startswith(_MARK) else 0
    try:
        return body[begin:].decode()
    except UnicodeDecodeError as error:
        place = begin + error.start
        number = len(body[:place].splitlines()) + body[:place].endswith((b"\n", b"\r"))
        if _has_utf8(path):
            raise UserError(
                f"The data file '{path}' is not UTF-8 at byte {place} (line {max(number, 1)}): fix that byte."
            ) from None
        raise _other(path, place, max(number, 1), body[place]) from None


def whole(value: Any) -> Any:
    """A value of JSON with a replacement character for every half of a character, which no encoding takes.

    A text that was cut inside an emoji ends with such a half. Field names are repaired too.
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {whole(key): whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, (list, tuple)) else value


def _refuse_wide(path: Path, sample: bytes) -> None:
    """Raise UserError for UTF-16 and UTF-32, with a mark or by every other byte being zero."""
    encoding = next((name for mark, name in _WIDE.items() if sample.startswith(mark)), "")
    if not encoding and len(sample) >= 8 and max(sample[0::2].count(0), sample[1::2].count(0)) > 0.4 * len(sample):
        encoding = "UTF-16"
    if encoding:
        raise UserError(f"The data file '{path}' is {encoding}, not UTF-8: save it as UTF-8.")


def _has_utf8(path: Path) -> bool:
    """Whether any line has characters beyond ASCII and is UTF-8: then the file is meant as such."""
    with path.open("rb") as file:
        while line := file.readline(MOST_LINE):
            if not line.removeprefix(_MARK).isascii():
                try:
                    line.decode()
                    return True
                except UnicodeDecodeError:
                    continue
    return False


def _other(path: Path, place: int, line: int, byte: int) -> UserError:
    try:
        guess = f" (in Windows-1252 that byte is '{bytes([byte]).decode('cp1252')}')"
    except UnicodeDecodeError:
        guess = ""
    return UserError(f"The data file '{path}' is not UTF-8 at byte {place}, line {line}{guess}: save it as UTF-8.")
