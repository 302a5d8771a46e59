"""One line of the check, how it reads, and how it reads without private names."""

import getpass
import os
import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "warning", "failed"]
_MARKS: dict[State, str] = {"ok": "ok", "warning": "warning", "failed": "FAILED"}
_TOKENS = re.compile(r"\b(hf|api|sk|ghp|github_pat)_?[-A-Za-z0-9_]{16,}\b|\b[0-9a-f]{40}\b")
_UUIDS = re.compile(r"\b(GPU-|MIG-)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{8,}\b", re.IGNORECASE)
_QUOTED = re.compile(r"(['\"])(?:/|~|[A-Za-z]:\\)[^'\"\n]*\1")  # such a path may have spaces
_PATHS = re.compile(r"(?<![\w/.])(?:/[^\s/'\":,;()]+){2,}/?|\b[A-Za-z]:\\[^\s'\"]+")


@dataclass(frozen=True)
class Line:
    """One thing that was looked at: `text` says what was found, `fix` what to do where it is not ok."""

    key: str
    state: State
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{_MARKS[self.state]:<8} {self.text}{f' {self.fix}' if self.fix else ''}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def from_dict(value: dict[str, Any]) -> Line:
    """The line that `as_dict` gave these values of."""
    return Line(value["key"], value["state"], value["text"], value.get("fix", ""))


def verdict(lines: Sequence[Line], seconds: float) -> str:
    """What the lines come to."""
    failed = sum(line.state == "failed" for line in lines)
    warnings = sum(line.state == "warning" for line in lines)
    beside = f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    if failed:
        return f"{failed} of {len(lines)} checks failed{beside} ({seconds:.0f} s). Their lines say what to do."
    return f"All {len(lines)} checks passed{beside} ({seconds:.0f} s). This machine can train."


def for_an_issue(lines: Sequence[Line], summary: str) -> str:
    """All lines and the verdict as a text that may be shown to everybody."""
    return without_names("\n".join([*map(str, lines), summary]))


def without_names(text: str) -> str:
    """A text that may be shown to everybody: no paths, no name of user or machine, no tokens, no serial numbers."""
    text = _TOKENS.sub("<token>", text)
    text = _UUIDS.sub("<uuid>", text)
    text = _PATHS.sub(_last_part, _QUOTED.sub(_last_part, text))
    for name, word in _private():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", word, text, flags=re.IGNORECASE)
    return text


def _last_part(match: re.Match[str]) -> str:
    path = match[0].strip("'").strip('"').replace("\\", "/")
    return f"<path>/{Path(path).name}"


def _private() -> list[tuple[str, str]]:
    names = [(platform.node(), "<machine>"), (platform.node().partition(".")[0], "<machine>")]
    with suppress(Exception):  # without a name for the user's number there is none to hide
        names.append((getpass.getuser(), "<user>"))
    with suppress(RuntimeError):
        names.append((Path.home().name, "<user>"))
    names += [(os.environ.get(name, ""), "<user>") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")]
    return [(name, word) for name, word in names if len(name) > 1]
