"""Rows that cannot be used: each is named, and none is left out unless that is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_gui.errors import UserError

NAMED = 20  # faulty rows that are named; the others are counted


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be used. `row` is its 1-based number in `file`, `line` where it begins if that is another number.

    `read_as` is the format whose reader refuses it; "" where it is no row of the file's kind to begin with.
    """

    file: str
    row: int
    reason: str
    line: int | None = None
    read_as: str = ""

    def plain(self) -> dict[str, Any]:
        """As values for an event: row and reason, and line and file where they help."""
        return {"row": self.row, "reason": self.reason, "file": self.file} | ({"line": self.line} if self.line else {})


def place(fault: Mapping[str, Any], file: str = "") -> str:
    """`row 2 (line 5)`, of a Fault's plain values; led by the name of its file unless that is `file`."""
    line = f" (line {fault['line']})" if fault.get("line") else ""
    other = fault.get("file") if fault.get("file") not in (None, file) else ""
    return f"{f'{other} ' if other else ''}row {fault['row']}{line}"


class FaultyRows(UserError):
    """Rows that cannot be used and were not to be left out: the first of them by place and reason, and how many."""

    def __init__(self, named: Sequence[Fault], count: int, rows: int, some_left: bool = True):
        self.named, self.count, self.rows, self.some_left = named, count, rows, some_left
        first = named[0].file
        read_as = f" (read as {named[0].read_as})" if named[0].read_as else ""
        reasons = [
            f"{place(fault.plain(), first)}: {fault.reason}"
            if number
            else f"{place(fault.plain())}{read_as}: {fault.reason}"
            for number, fault in enumerate(named)
        ]
        more = f"; and {count - len(named):,} more" if count > len(named) else ""
        them = "it" if count == 1 else "them"
        fix = f"fix {them}"
        if some_left:
            fix += f", or leave {them} out (--skip-bad-rows, or skip_bad_rows in a config file)"
        elif named[0].read_as:  # understood as a row, of another format perhaps
            fix += ", or set dataset_format"
        super().__init__(f"{'; '.join(reasons)}{more}. {count:,} of {rows:,} rows cannot be used: {fix}.")
