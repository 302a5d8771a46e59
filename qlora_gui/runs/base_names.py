"""Names that adapters give their bases: hub ids, paths of other machines, snapshots of a cache, other spellings."""

import re
from pathlib import PureWindowsPath

from qlora_gui import hub

_SNAPSHOT = re.compile(r"models--([^\\/]+)[\\/]snapshots[\\/]([0-9a-f]{7,64})[\\/]*$")
_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
_IN_4_BITS = re.compile(r"(-unsloth)?-bnb-4bit$", re.IGNORECASE)


def resolved(named: str, revision: str = "") -> tuple[str, str]:
    """A base's name and revision; of a snapshot in a hub cache that is not on this machine, those of the hub."""
    snapshot = _SNAPSHOT.search(named)
    if snapshot is None or hub.local(named) is not None:
        return named, revision
    return snapshot[1].replace("--", "/"), snapshot[2]


def is_elsewhere(named: str) -> bool:
    """Whether a name is the path of a folder that this machine does not have."""
    path = named.startswith(("/", "~", ".")) or "\\" in named or bool(_DRIVE.match(named)) or named.count("/") > 1
    return path and hub.local(named) is None


def relation(named: str, other: str) -> str | None:
    """How two names of a base relate, in words: "the same name"; None where they name different models."""
    first, second = _last(named), _last(other)
    if first == second:
        return "the same name"
    if first.casefold() == second.casefold():
        return "the same name but for its case"
    if _IN_4_BITS.sub("", first).casefold() == _IN_4_BITS.sub("", second).casefold():
        return "the same name but for its 4-bit form"
    return None


def _last(named: str) -> str:
    """The model's own name: without owner, folders, or a cache's way of laying them out."""
    snapshot = _SNAPSHOT.search(named)
    return snapshot[1].split("--")[-1] if snapshot else PureWindowsPath(named).name
