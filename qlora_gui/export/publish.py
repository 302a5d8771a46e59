"""What of a folder goes to the hub: an adapter's own files or a whole export, a card in the hub's format, and no path of this
machine in any of it."""

import contextlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from qlora_gui import hub, plain_files
from qlora_gui.config import RunConfig, marked
from qlora_gui.errors import UserError, first_line
from qlora_gui.export import hub_target, job
from qlora_gui.files import json_object
from qlora_gui.models import demo
from qlora_gui.references import DEMO
from qlora_gui.runs import base_names, fetched
from qlora_gui.runs.store import Run

CARD, ADAPTER_CONFIG = "README.md", "adapter_config.json"
_NEEDED = (ADAPTER_CONFIG, "adapter_model.safetensors")
# Of a run's folder nothing else leaves the machine: events, logs, data, votes and checkpoints stay.
_OF_AN_ADAPTER = frozenset(
    f"""
    {" ".join(_NEEDED)} {CARD} tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json
    merges.txt vocab.txt tokenizer.model spiece.model chat_template.jinja chat_template.json chat_template_settings.json
    """.split()
)
_TEMPLATES = "additional_chat_templates"  # a folder beside a tokenizer that has several
WEIGHTS = (".safetensors", ".gguf")
# Of an export its weights, and these: a base's folder can hold anything, of which an export takes what is JSON or text along.
_OF_AN_EXPORT = (_OF_AN_ADAPTER - set(_NEEDED)).union(
    """
    config.json generation_config.json model.safetensors.index.json preprocessor_config.json processor_config.json
    video_preprocessor_config.json sentencepiece.bpe.model tekken.json normalizer.json Modelfile LICENSE LICENSE.txt LICENSE.md
    NOTICE NOTICE.txt
    """.split()
)
_MOST_NAMED = 5  # files in a remark
_OF_ALL_MACHINES = frozenset(
    "bin dev etc lib opt proc sbin sys usr".split()
)  # /usr/bin/python3 says nothing of anybody
# Where paths are replaced. Of a tokenizer's own files no byte may change: their words can look like short paths.
_REWRITTEN = frozenset(
    f"{CARD} {ADAPTER_CONFIG} config.json generation_config.json tokenizer_config.json chat_template_settings.json Modelfile".split()
)
_LEAST_PARTS = 3  # of a path that can be told from other words: /, home, me
_NOT_BEFORE = r"(?<![\w.-])"  # a path: so https://host/home/me is none
_NOT_WITHIN = r"(?<![\w./\\-])"  # a relative one
_HOMES = (r"/home/[^\s\"'`|<>()\\/]+", r"/Users/[^\s\"'`|<>()\\/]+", r"[A-Za-z]:[\\/]+Users[\\/]+[^\s\"'`|<>()\\/]+")
_BELOW = r"(?:[\\/]+[^\s\"'`|<>()\\/]+)"
_HEAD = 4 << 20  # bytes at the beginning of weights, where their metadata is
_HEADER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?\n?", re.S | re.M)


@dataclass(frozen=True)
class Upload:
    """A file for the hub: its name there, and where it lies, or its bytes where they differ from those on this machine."""

    name: str
    source: Path | bytes


@dataclass
class Parcel:
    """The files of one push, and what should be known of them in sentences."""

    files: list[Upload] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def pack(adapter: Path, what: str) -> Parcel:
    """The files of an adapter (`what` is "") or of the export in the folder `what`.

    Raises UserError where that is none, or a file is no plain one, or has a path of this machine where it cannot be replaced.
    """
    folder = Path(what) if what else adapter
    if what and job.read(folder) is None:
        raise UserError(f"The folder '{folder}' is no whole export: export again, and push that.")
    parcel = Parcel()
    base, named = _base(adapter)
    paths = _paths(adapter, folder, named, base)
    changed = []
    try:
        names = _names(folder, whole=bool(what))
        if what:
            parcel.remarks += _left(folder, names)
        for name in names:
            source = folder / name
            _refuse_link(folder, source)
            if name not in _REWRITTEN:
                _refuse_what_is_private(source, paths)
                parcel.files.append(Upload(name, source))
                continue
            before = plain_files.read_bytes(source, plain_files.MOST_CONFIG)
            after = _written(name, before, paths, base, what)
            if before != after:
                changed.append(name)
            parcel.files.append(Upload(name, source if before == after else after))
        if CARD not in {file.name for file in parcel.files}:
            card = f"# {folder.name}\n\nA LoRA adapter.\n".encode()
            parcel.files.append(Upload(CARD, _written(CARD, card, paths, base, what)))
            parcel.remarks.append("The folder has no README.md: a short card is written for the hub.")
    except OSError as error:
        raise UserError(f"The folder '{folder}' cannot be pushed: {error.strerror or error}.") from None
    parcel.remarks += _still_named(parcel)
    if changed:
        parcel.remarks.append(
            f"Pushed with changes: {', '.join(changed)}. The card's header is completed, and paths of this machine are cut to "
            "their last name."
        )
    if not base:
        parcel.remarks.append(
            f"The base '{_last(named) or 'of this adapter'}' is no model of the hub by its name, so the card names none: if the "
            "hub has it, write base_model into the header of README.md."
        )
    elif named == DEMO and json_object(demo.folder() / "source.json").get("from") == "pypi":
        parcel.remarks.append(
            f"The demo's base was a copy of {base} from 4 bits: on the original the answers can differ."
        )
    return parcel


def _names(folder: Path, whole: bool) -> list[str]:
    """The files that are pushed, by their names below the folder, the card and configs before the weights."""
    if whole:
        names = [
            path.name
            for path in folder.iterdir()
            if (path.name in _OF_AN_EXPORT or path.suffix in WEIGHTS) and path.is_file() and path.name[0] != "."
        ]
    else:
        if missing := [name for name in _NEEDED if not (folder / name).is_file()]:
            raise UserError(f"The folder '{folder}' holds no adapter to push: it has no {missing[0]}.")
        names = [name for name in _OF_AN_ADAPTER if (folder / name).is_file()]
    templates = folder / _TEMPLATES
    if templates.is_dir() and not templates.is_symlink():
        names += [f"{_TEMPLATES}/{path.name}" for path in templates.glob("*.jinja") if path.is_file()]
    return sorted(names, key=lambda name: (Path(name).suffix in WEIGHTS, name))


def _still_named(parcel: Parcel) -> list[str]:
    """A sentence on paths in the card that are there on this machine, and that nothing told apart from the card's own words."""
    card = next(file.source for file in parcel.files if file.name == CARD)
    text = (card if isinstance(card, bytes) else plain_files.read_bytes(card, plain_files.MOST_CONFIG)).decode()
    found = dict.fromkeys(match[0].rstrip(".,:;") for match in re.finditer(_NOT_BEFORE + _BELOW + "{2,}", text))
    there = [path for path in found if hub.local(path) and Path(path).parts[1] not in _OF_ALL_MACHINES][:_MOST_NAMED]
    return [f"README.md still names paths that exist on this machine: {', '.join(there)}."] if there else []


def _left(folder: Path, names: Sequence[str]) -> list[str]:
    """A sentence on what lies in an exported folder and is not pushed; none where that is only its record."""
    there = {path.name for path in folder.iterdir() if path.name[0] != "."}
    left = sorted(there - {*names, job.RECORD, _TEMPLATES})
    more = "…" if len(left) > _MOST_NAMED else ""
    return [f"Not pushed, because no export has them: {', '.join(left[:_MOST_NAMED])}{more}."] if left else []


def _refuse_link(folder: Path, source: Path) -> None:
    """Raise UserError for a link into the folder: it would take along what is to stay there, such as rows of an evaluation.

    Of links that lead out of it those of the hub's cache alone are followed (`plain_files`).
    """
    if source.is_symlink() and Path(os.path.realpath(source)).is_relative_to(os.path.realpath(folder)):
        raise UserError(f"'{source}' is a symbolic link to another file of the folder: put the file itself there.")


def _base(adapter: Path) -> tuple[str, str]:
    """The base's name on the hub, "" where it has none there, and how the adapter's folder names it."""
    config = json_object(adapter / ADAPTER_CONFIG)
    if _config(adapter).get("base_model") == DEMO:
        return demo.HUB_ID, DEMO
    named = str(config.get("base_model_name_or_path") or "")
    name, _ = base_names.resolved(named)
    on_hub = hub.looks_like_id(name) and not _is_path(name) and hub.local(name) is None
    return (name if on_hub else ""), named


def _config(adapter: Path) -> dict[str, Any]:
    """The settings of the run, as they are written; {} of an adapter from elsewhere."""
    if not (adapter / "run.json").is_file():
        return {}
    try:
        return Run(adapter).config().model_dump()
    except UserError:
        return dict(json_object(adapter / "run.json").get("config") or {})


def _is_path(name: str) -> bool:
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
    return absolute or name.startswith(("~", "./", "../", ".\\", "..\\"))


def _last(name: str) -> str:
    return PureWindowsPath(name).name


def _paths(adapter: Path, folder: Path, named: str, base: str) -> list[tuple[str, str]]:
    """Paths of this machine, and what stands for them on the hub; the longest first."""
    config = _config(adapter)
    known = [str(config.get(knob) or "") for knob in marked("path") if knob in RunConfig.model_fields]
    paths = {path: _last(path) for path in known if _last(path) != path and hub.local(path)}  # also relative ones
    base_record = json_object(folder / job.RECORD).get("base")
    known += [named, str(base_record.get("name") or "") if isinstance(base_record, dict) else ""]
    known.append(str(json_object(adapter / fetched.RECORD).get("from") or ""))
    paths |= {path: _last(path) for path in known if _is_path(path)}
    if base and named:
        paths |= {path: base for path in (named, str(demo.folder()) if named == DEMO else named) if _is_path(path)}
    for path in (folder, adapter, adapter.parent):
        paths.setdefault(str(path.absolute()), path.absolute().name)
    for named, name in list(paths.items()):  # libraries write down what links lead to
        if PurePosixPath(named).is_absolute():
            paths.setdefault(os.path.realpath(named), name)
    long = {
        path: name
        for path, name in paths.items()
        if len(PureWindowsPath(path).parts) >= _LEAST_PARTS - (not _is_path(path))
    }
    return sorted(long.items(), key=lambda pair: -len(pair[0]))


def _spellings(path: str) -> Sequence[str]:
    """A path as it stands in plain text and in JSON."""
    return list(dict.fromkeys((path, json.dumps(path)[1:-1], json.dumps(path, ensure_ascii=False)[1:-1])))


def _homes(others: bool) -> str:
    """A pattern of the user's home folder, and of those of `others`, on whose machine an adapter may have been trained."""
    patterns = list(_HOMES) if others else []
    with contextlib.suppress(RuntimeError):  # there is none
        for home in {str(Path.home()), os.path.realpath(Path.home())}:
            if len(Path(home).parts) > 1:
                patterns += [re.escape(spelled) for spelled in _spellings(home)]
    return f"{_NOT_BEFORE}(?:{'|'.join(patterns) or '(?!)'})(?![\\w-])"


def _without_paths(text: str, paths: list[tuple[str, str]], others: bool) -> str:
    for path, name in paths:
        for spelled in _spellings(path):
            text = re.sub(
                f"{_NOT_BEFORE if _is_path(path) else _NOT_WITHIN}{re.escape(spelled)}", name.replace("\\", r"\\"), text
            )
    below = f"{_homes(others)}({_BELOW}*)"  # whatever names it
    return re.sub(below, lambda found: _last(found[1]) or "~", text)


def _written(name: str, before: bytes, paths: list[tuple[str, str]], base: str, what: str) -> bytes:
    """A text file as it goes to the hub; the same bytes where nothing has to be changed."""
    try:
        text = before.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"The file {name} is no text in UTF-8 ({first_line(error)}): it cannot be pushed.") from None
    if name == ADAPTER_CONFIG:
        text = _adapter_config(text, base)
    _refuse_token(name, text)
    text = _without_paths(
        text, paths, others=name == CARD
    )  # a tokenizer's config has examples of its template's author
    if name == CARD:
        text = _with_header(text, base, adapter=not what)
    return text.encode("utf-8")


def _adapter_config(text: str, base: str) -> str:
    """PEFT's config with the base's name on the hub, or none: PEFT would look up another name there."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"The adapter's {ADAPTER_CONFIG} is damaged: train or copy it again.")
    now = {key: _without_folders(value) for key, value in config.items()}
    if (now.get("base_model_name_or_path") or "") != base:
        now["base_model_name_or_path"] = base or None
    return text if now == config else json.dumps(now, indent=2) + "\n"  # in ASCII: half a surrogate pair has no bytes


def _without_folders(value: Any) -> Any:
    """A value of a config with the last names alone of the paths in it, such as the cache files of PEFT's initializations."""
    if isinstance(value, dict):
        return {key: _without_folders(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    return (_last(value) or value) if isinstance(value, str) and _is_path(value) else value


def _with_header(text: str, base: str, adapter: bool) -> str:
    """A card with the header that the hub reads. What its author wrote there stays, but for bases that are paths."""
    found = _HEADER.match(text)
    try:
        header = yaml.safe_load(found[1]) if found else {}
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(
            f"The header of README.md is no YAML ({first_line(error)}): mend it, or delete the file."
        ) from None
    before = dict(header) if isinstance(header, dict) else {}
    now = dict(before)
    bases = now.get("base_model")
    kept = [one for one in (bases if isinstance(bases, list) else [bases]) if isinstance(one, str) and "/" in one]
    kept = [one for one in kept if hub.looks_like_id(one) and hub.local(one) is None]
    now.pop("base_model", None)
    if kept or base:
        now = {"base_model": bases if kept and kept == bases else (kept[0] if kept else base)} | now
    if adapter:
        now.setdefault("library_name", "peft")
        if "base_model" in now:
            now.setdefault("base_model_relation", "adapter")
    elif "base_model" in now:
        now.setdefault("base_model_relation", "finetune")
    tags = now.get("tags")
    written = [tags] if isinstance(tags, str) else list(tags) if isinstance(tags, list) else []
    written = [tag for tag in written if not (isinstance(tag, str) and tag.startswith("base_model:"))]
    now["tags"] = [*written, *(tag for tag in ("lora",) if tag not in written)]
    if now == before and list(now) == list(before):
        return text
    body = text[found.end() :] if found else text
    return f"---\n{yaml.safe_dump(now, sort_keys=False, allow_unicode=True)}---\n{body}"


def _refuse_what_is_private(file: Path, paths: list[tuple[str, str]]) -> None:
    """Raise UserError for a file with a path of this machine or a token in it, where nothing can be replaced; of weights their
    metadata is read."""
    with plain_files.open_to_read(file) as opened:
        head = opened.read(_HEAD) if file.suffix in WEIGHTS else opened.read()
    found = next((path for path, _ in paths if any(spelled.encode() in head for spelled in _spellings(path))), "")
    if file.suffix in WEIGHTS:
        text = ""
    else:
        text = head.decode("utf-8", "replace")
        _refuse_token(file.name, text)
    if match := re.search(f"{_homes(others=False)}{_BELOW}", text):
        found = found or match[0]
    if found:
        raise UserError(f"The file {file.name} has the path '{found}' in it, which would be public: export it again.")


def _refuse_token(name: str, text: str) -> None:
    """Raise UserError for a text with a token of the hub in it."""
    if hub_target.has_token(text):
        raise UserError(
            f"The file {name} has what looks like an access token of the hub in it: take it out, and revoke it if it is real."
        )
