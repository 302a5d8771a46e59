"""Names that adapters give their bases: hub ids, paths of other machines, snapshots of a cache, mirrors, other spellings."""

import re
from pathlib import PureWindowsPath

from qlora_gui import hub
from qlora_gui.references import DEMO

_SNAPSHOT = re.compile(r"models--([^\\/]+)[\\/]snapshots[\\/]([0-9a-f]{7,64})[\\/]*$")
_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
_IN_FEW_BITS = re.compile(r"(?:-unsloth)?-bnb-([48])bit$", re.IGNORECASE)
_RENAMED = re.compile(r"^meta-(?=llama-3)", re.IGNORECASE)  # Meta-Llama-3.1-8B is Llama-3.1-8B on the hub by now
_ANYBODYS = re.compile(
    r"(?:[-_.]*(?:base|best|checkpoint|final|full|hf|last|latest|merged|model|output|outputs|sft|weights|\d))+",
    re.IGNORECASE,
)  # names of folders that say nothing of the model
_MIRROR = "unsloth"  # whose copies have the names of the originals


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
    """How two names of a base relate, in words: "the same name"; None where they name different models, or may: a folder
    called `merged` is not one of that name elsewhere."""
    first, second = last(named), last(other)
    if named != other and _ANYBODYS.fullmatch(first):
        return None
    if first == second:
        return "the same name"
    if first.casefold() == second.casefold():
        return "the same name but for its case"
    if _plain(first) == _plain(second):
        bits = _IN_FEW_BITS.search(first) or _IN_FEW_BITS.search(second)
        return f"the same name but for its {bits[1]}-bit form" if bits else "a former name of the same model"
    return None


def at_hand(named: str, revision: str = "") -> tuple[str, str]:
    """The base to take for the one that an adapter names, and its revision: of what is on this machine, if anything is.

    Of a name on the hub that is the model in 16 bits where the name says 4 or 8, the original of a mirror or the other
    way round where only one model may be that, and the spelling of the cache; else the name as it is.
    """
    if named in ("", DEMO) or hub.local(named) is not None or not hub.looks_like_id(named):
        return named, revision
    cached = hub.cached_models()
    whole = _IN_FEW_BITS.sub("", named)
    wanted = [whole, named] if whole != named else [named]
    for name in wanted:
        spelled = [other for other in cached if other.casefold() == name.casefold()]
        if spelled:
            return (name if name in spelled else spelled[0]), (revision if name == named else "")
        mirrors = [other for other in cached if _is_mirror(name, other)]
        if len(mirrors) == 1:
            return mirrors[0], ""
    return named, revision


def _is_mirror(one: str, other: str) -> bool:
    """Whether two hub ids are of one model by name and one of them is of the mirror."""
    owners = [name.partition("/")[0].casefold() for name in (one, other)]
    alike = _RENAMED.sub("", last(one)).casefold() == _RENAMED.sub("", last(other)).casefold()
    return alike and _MIRROR in owners


def _plain(name: str) -> str:
    """A model's own name without what says in how many bits it is stored, or an earlier form of it."""
    return _RENAMED.sub("", _IN_FEW_BITS.sub("", name)).casefold()


def last(named: str) -> str:
    """A model's own name: without owner, folders, or a cache's way of laying them out."""
    snapshot = _SNAPSHOT.search(named)
    return snapshot[1].split("--")[-1] if snapshot else PureWindowsPath(named).name
