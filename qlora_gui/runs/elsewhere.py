"""Adapters that this program did not train: folders with PEFT's files and no run.json, from the hub or another trainer."""

import json
import os
import re
from pathlib import Path
from typing import Any

from qlora_gui import hub, plain_files
from qlora_gui.errors import UserError
from qlora_gui.formatting import setting
from qlora_gui.runs import base_names, scan
from qlora_gui.runs.store import CONFIG, WEIGHTS, Run, RunStore

_INNER = 3  # folders that a sentence names
_REVISION = re.compile(r"[\w./-]{0,100}")
_PICKLE = "adapter_model.bin"
_SAYS_NOTHING: tuple[Any, ...] = (None, False, "", [], {})
_LONGEST = 300  # characters of a setting
_POINTER = b"version https://git-lfs.github.com/spec/"


def named_base(folder: Path) -> tuple[str, str]:
    """The base that an adapter_config.json names, and its revision, as they stand there; "" where it says nothing.

    Raises UserError for a folder that holds no adapter.
    """
    try:
        config = json.loads(plain_files.read_text(folder / CONFIG, plain_files.MOST_CONFIG))
        named, revision = config.get("base_model_name_or_path"), config.get("revision")
    except plain_files.StrangeFile as error:
        raise UserError(f"The adapter '{folder}' cannot be read: {error}.") from None
    except FileNotFoundError:
        raise UserError(why_no_adapter(folder)) from None
    except (OSError, ValueError, AttributeError, RecursionError):
        raise UserError(f"The folder '{folder}' holds no adapter: it has no readable {CONFIG}.") from None
    return (named if isinstance(named, str) else "").strip(), (revision if isinstance(revision, str) else "").strip()


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a whole model, and no adapter."""
    return (folder / "config.json").is_file() and not (folder / CONFIG).exists()


def base_here(folder: Path) -> tuple[str, str]:
    """The base to take for an adapter, and its revision, by `base_names`. "" where the folder names none, or one that
    lies on another machine. Raises as `named_base` does."""
    named, revision = base_names.resolved(*named_base(folder))
    return ("", "") if base_names.is_elsewhere(named) else base_names.at_hand(named, revision)


def check_base_allowed(store: RunStore, run: Run, base: str = "") -> None:
    """Raise UserError for a base that may not be named on the page: one that was typed, else what an adapter made elsewhere
    names, whose config a stranger wrote."""
    store.check_allowed(base or (base_here(run.path)[0] if run.is_elsewhere() else ""))


def settings(folder: Path) -> list[list[str]]:
    """What an adapter_config.json says, as rows of name and value; without what says nothing."""
    try:
        config = json.loads(plain_files.read_text(folder / CONFIG, plain_files.MOST_CONFIG))
        rows = [(name, setting(value)) for name, value in sorted(config.items()) if value not in _SAYS_NOTHING]
    except (OSError, ValueError, AttributeError, RecursionError):
        return []
    return [[name, value if len(value) <= _LONGEST else value[:_LONGEST] + "…"] for name, value in rows]


def why_no_adapter(folder: Path) -> str:
    """The sentence for a folder, or the lack of one, that is taken for an adapter and has no adapter_config.json."""
    if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        return f"There is no adapter '{str(folder)[:_LONGEST]}': it is neither a folder nor a run, and no hub id like owner/name."
    if inner := _inner(folder):
        more = f" and {len(inner) - _INNER:,} more" if len(inner) > _INNER else ""
        return (
            f"The folder '{folder}' holds no adapter itself, but its folders do ({', '.join(inner[:_INNER])}{more}): name "
            "one of them."
        )
    if (folder / "config.json").is_file():
        return f"The folder '{folder}' holds no adapter: it is a whole model, which can be named as a base."
    return f"The folder '{folder}' holds no adapter: it has no {CONFIG}."


def nested(store: RunStore) -> dict[str, list[str]]:
    """Folders of the store that are neither runs nor adapters, with their folders that hold adapters."""
    return {name: inner for name in scan.neither(store.root) if (inner := _inner(store.root / name))}


def _inner(folder: Path) -> list[str]:
    try:
        return sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    except OSError:
        return []


def why_no_weights(folder: Path) -> str:
    """Why the weights of an adapter cannot be read, in a sentence, as far as that can be told at a glance; "" if they may.

    For a person who sees one of the usual mishaps: a pickle, a pointer of Git LFS, an empty file.
    """
    weights = folder / WEIGHTS
    try:
        with plain_files.open_to_read(weights) as file:
            start = file.read(len(_POINTER))
    except FileNotFoundError:
        if (folder / _PICKLE).exists():
            return (
                f"The adapter '{folder}' has its weights in {_PICKLE}, which can run code and is not loaded: where you trust "
                f"it, load it with PEFT and save it again with save_pretrained, which writes {WEIGHTS}."
            )
        return f"The adapter '{folder}' has no {WEIGHTS}: other formats can run code and are not loaded."
    except OSError:
        return ""  # whoever reads it says so
    if start == _POINTER:
        return (
            f"The adapter '{folder}' was cloned without Git LFS, so {WEIGHTS} is only a pointer to the weights: run 'git lfs "
            "pull' in it, or fetch it by its hub id."
        )
    if not start:
        return f"The adapter '{folder}' has an empty {WEIGHTS}: its download or copy was cut off, so take it again."
    return ""


def is_hub_id(named: str) -> bool:
    """Whether it is spelled `owner/name` or `owner/name@revision`."""
    name, _, revision = named.partition("@")
    spelled = name.count("/") == 1 and hub.looks_like_id(name)
    return spelled and bool(_REVISION.fullmatch(revision)) and ".." not in revision
