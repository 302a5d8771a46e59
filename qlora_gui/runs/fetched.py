"""Adapters brought into the store: fetched from the hub or copied from a folder, PEFT's and the tokenizer's files alone.

Whatever else a repository holds (pickles, code, optimizer states, checkpoints) is neither fetched nor copied, and its names
are recorded. From then on the new folder is an adapter like any other.
"""

import json
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from qlora_gui import hub, plain_files
from qlora_gui.errors import UserError, first_line
from qlora_gui.files import explained, json_object
from qlora_gui.formatting import amount
from qlora_gui.runs import elsewhere
from qlora_gui.runs.store import CONFIG, WEIGHTS, RunStore
from qlora_gui.system import files

RECORD = "fetched.json"
TAKEN = (
    *(CONFIG, WEIGHTS, "README.md", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model"),
    *("chat_template.jinja", "chat_template.json", "chat_template_settings.json"),
)
_SPARE = 1 << 30  # bytes that stay free on the disk
_MOST_NAMES = 50  # in the record
_SHORT = 8  # digits of a commit in the name of a folder
_MANY = ("final", "adapter", "checkpoint", "best", "last", "output", "lora", "model")  # names that say nothing alone
Say = Callable[[str], None]


def find(named: str, store: RunStore, say: Say) -> Path:
    """The folder of an adapter that a person names: a path, the id of a run or adapter in the store, else a hub id, which
    is fetched. Raises UserError where it is none of these, or cannot be had."""
    places = (named, str(store.root / named)) if named else ()
    there = [path for path in map(hub.local, places) if path is not None]
    for path in [path for path in there if (path / CONFIG).exists()] or there:
        return path
    if not elsewhere.is_hub_id(named):
        raise UserError(elsewhere.why_no_adapter(Path(named)))
    return from_hub(named, store, say)


def bring(named: str, store: RunStore, say: Say) -> Path:
    """An adapter as a folder of the store: the hub's is fetched there, that of another folder is copied there.

    Raises UserError where it is neither, or the store's `check_allowed` forbids to name it.
    """
    named = named.strip()
    if not named:
        raise UserError("Name an adapter first: a hub id like owner/name, or a folder.")
    if store.is_taken(named):
        return store.get(named).path
    if elsewhere.is_hub_id(named) and hub.local(named) is None:
        return from_hub(named, store, say)
    store.check_allowed(named)
    path = hub.local(named)
    if path is None:
        raise UserError(elsewhere.why_no_adapter(Path(named)))
    path = path.resolve()
    if path.parent == store.root.resolve() and (path / CONFIG).exists():
        return store.get(path.name).path  # it is there already: no copy of it
    return _from_folder(path, store, say)


def source(folder: Path) -> str:
    """Where a folder was brought from, "" where it was not: `owner/name on the hub, revision ...`."""
    record = json_object(folder / RECORD)
    named, revision = record.get("from"), record.get("revision")
    if not isinstance(named, str):
        return ""
    return f"{named} on the hub, revision {revision}" if isinstance(revision, str) and revision else named


def from_hub(named: str, store: RunStore, say: Say) -> Path:
    """Fetch `owner/name` or `owner/name@revision` into the store, unless that commit is there already; gives the folder.

    Raises UserError where the hub does not know it or does not give it, or it holds no adapter that can be read.
    """
    name, _, revision = named.partition("@")
    listed, commit = _listed(name, revision) if hub.answers() else (None, "")
    if there := _there(store, name, commit, revision):
        say(f"{named} is in {there} already" + " (the hub does not answer)" * (listed is None))
        return there
    snapshot = _snapshot(name, commit or revision, listed, store, say)
    commit = snapshot.name
    folder = _place(store, name, commit)
    names = [path.name for path in snapshot.iterdir()] if listed is None else [*listed]
    record = {"from": name, "revision": commit, "asked": revision or "main", "left": _left(names)}
    return _copied(snapshot, folder, record, say)


def _there(store: RunStore, name: str, commit: str, revision: str) -> Path | None:
    """The folder into which this commit was fetched; where the hub does not say which it is, the newest that was asked for
    so."""
    found = []
    for folder in store.root.glob(f"{_folder_name(name)}*"):
        record = json_object(folder / RECORD)
        same = record.get("revision") == commit if commit else revision in (record.get("asked"), record.get("revision"))
        if record.get("from") == name and (same or (not commit and not revision)):
            found.append((str(record.get("at")), folder))
    return max(found)[1] if found else None


def _folder_name(name: str) -> str:
    return name.replace("/", "--")


def _listed(name: str, revision: str) -> tuple[dict[str, int], str]:
    """The files of a repository with their sizes, and its commit. Raises UserError for one that the hub does not give."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    at = f" at revision '{revision}'" if revision else ""
    try:
        info = HfApi(endpoint=hub.endpoint()).model_info(
            name, revision=revision or None, files_metadata=True, timeout=30
        )
    except GatedRepoError:
        raise UserError(_gated(name)) from None
    except RevisionNotFoundError:
        raise UserError(
            f"The hub knows no revision '{revision}' of the adapter '{name}': check its spelling."
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"The hub knows no adapter '{name}'{at} that you may read: check the spelling, or log in if it is private."
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"The hub does not say what the adapter '{name}' holds: {first_line(error)}") from None
    listed = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    _check_is_adapter(name, listed)
    return listed, info.sha or ""


def _gated(name: str) -> str:
    return (
        f"The hub gives the adapter '{name}' only to those whom its owner has let in: ask for access on its page, and log in "
        "with 'hf auth login'."
    )


def _check_is_adapter(name: str, listed: Iterable[str]) -> None:
    """Raise UserError for the files of a repository that holds no adapter at its top, or none that is read."""
    names = set(listed)
    inner = sorted({Path(file).parent.as_posix() for file in names if Path(file).name == CONFIG} - {"."})
    if CONFIG not in names:
        whole = "it is a whole model, which can be named as a base" if "config.json" in names else f"it has no {CONFIG}"
        where = f"; its folder {inner[0]} has one: download that, and name it as a folder" if inner else ""
        raise UserError(f"'{name}' on the hub is no adapter: {whole}{where}.")
    if WEIGHTS not in names:
        raise UserError(
            f"The adapter '{name}' on the hub has no {WEIGHTS}: other formats can run code and are not fetched; ask its owner "
            "for safetensors, or convert it with PEFT where you trust it."
        )


def _snapshot(name: str, revision: str, listed: dict[str, int] | None, store: RunStore, say: Say) -> Path:
    """The folder in the hub's cache with the files that are taken, named by its commit. Raises UserError.

    `listed` is None where the hub does not answer, so that the cache has to do.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    if listed is not None:
        size = sum(bytes_ for file, bytes_ in listed.items() if file in TAKEN)
        _check_room(name, size, (Path(constants.HF_HUB_CACHE), store.root))
        say(f"Fetching {name} ({amount(size)})")
    try:
        folder = snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=list(TAKEN),
            local_files_only=listed is None,
            endpoint=hub.endpoint(),
        )
    except GatedRepoError:
        raise UserError(_gated(name)) from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"The adapter '{name}' is no folder here and is not in the local cache, and the hub does not answer: check the "
            "spelling and the network."
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"The adapter '{name}' cannot be fetched: {first_line(error)}") from error
    path = Path(folder)
    if not (path / CONFIG).exists() or not (path / WEIGHTS).exists():
        raise UserError(f"Only parts of the adapter '{name}' are in the local cache, and the hub does not answer.")
    return path


def _check_room(name: str, size: int, folders: Sequence[Path]) -> None:
    for folder in folders:
        there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        with suppress(OSError):
            if shutil.disk_usage(there).free < 2 * size + _SPARE:  # in the cache and in the store, perhaps on one disk
                raise UserError(f"The adapter '{name}' has {amount(size)}, and the disk of '{folder}' is nearly full.")


def _place(store: RunStore, name: str, commit: str) -> Path:
    """Where a fetched adapter is to lie: a second commit under the same name has the commit in its own."""
    wanted = _folder_name(name)
    for folder in (wanted, f"{wanted}--{commit[:_SHORT]}"):
        if not store.is_taken(folder):
            return store.root / folder
    raise UserError(f"There is already a folder '{folder}' in {store.root} that is something else: move it away.")


def _from_folder(path: Path, store: RunStore, say: Say) -> Path:
    elsewhere.named_base(path)
    if not _is_text(str(path)):
        raise UserError(f"The name of the folder {str(path)!a} is no text in UTF-8: rename it.")
    if why := elsewhere.why_no_weights(path):
        raise UserError(why)
    _check_room(path.name, (path / WEIGHTS).stat().st_size, [store.root])
    name = path.name if not re.match("|".join(_MANY), path.name, re.IGNORECASE) else f"{path.parent.name}-{path.name}"
    name = name.strip(".") or "adapter"
    taken = (f"{name}-{number}" for number in range(2, 1000))
    folder = store.root / (name if not store.is_taken(name) else next(one for one in taken if not store.is_taken(one)))
    record = {"from": str(path), "left": _left(entry.name for entry in path.iterdir())}
    return _copied(path, folder, record, say)


def _is_text(name: str) -> bool:
    """Whether a name of a file can be written down, which those of other encodings cannot."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _left(names: Iterable[str]) -> list[str]:
    left = sorted(set(names) - {*TAKEN, ".gitattributes"})[:_MOST_NAMES]
    return [name.encode("utf-8", "replace").decode() for name in left]


def _opened(file: Path) -> BinaryIO:
    try:
        return plain_files.open_to_read(file)
    except OSError as error:
        raise UserError(f"The adapter cannot be copied: {error.strerror or error} ('{file.name}').") from None


def _copied(where: Path, folder: Path, record: dict[str, Any], say: Say) -> Path:
    """Copy what is taken of a folder into a new one of the store, whole or not at all."""
    aside = folder.parent / f".fetching-{uuid.uuid4().hex[:16]}"
    try:
        with explained("The adapter", folder):
            aside.mkdir(parents=True)
            for name in TAKEN:
                if (where / name).exists():
                    with _opened(where / name) as file, (aside / name).open("xb") as copy:
                        shutil.copyfileobj(file, copy, 1 << 20)
            if why := elsewhere.why_no_weights(aside):
                raise UserError(why.replace(str(aside), str(where)))
            text = json.dumps(record | {"at": time.time()}, indent=1, ensure_ascii=False) + "\n"
            (aside / RECORD).write_text(text, encoding="utf-8")
            files.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    left = f"; left out: {', '.join(record['left'][:5])}{'…' * (len(record['left']) > 5)}" if record["left"] else ""
    say(f"Fetched into {folder}{left}")
    return folder
