"""RunStore and Run: handles on folders. They own no truth of their own; every answer is read from the folder."""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import filelock
from pydantic import ValidationError

from qlora_gui import hub
from qlora_gui.data import read as data
from qlora_gui.errors import UserError
from qlora_gui.runs import checkpoints, events, locks
from qlora_gui.runs.config import RunConfig
from qlora_gui.runs.files import write_whole
from qlora_gui.runs.names import made_up_name

SCHEMA = 1
PATH_KNOBS = ("base_model", "dataset", "accelerate_config")  # what may name a file or folder
YOUNG_SECONDS = 30.0
_PATIENCE_SECONDS = 10.0  # for a start that is under way
State = Literal["queued", "starting", "running", "stopping", "finished", "stopped", "failed", "died"]
LIVE: tuple[State, ...] = ("starting", "running", "stopping")
_VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "gradio")


class Run:
    """One folder: one run, one adapter."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "train.log"

    @property
    def stop_file(self) -> Path:
        return self.path / "stop"

    @property
    def queue_file(self) -> Path:
        """There while the run waits for the GPU; see queue.py."""
        return self.path / "queued"

    def queue_mark(self) -> dict[str, Any] | None:
        """`place` (a number, the lowest is next) and `resume` of a run that waits, else None."""
        try:
            mark = json.loads(self.queue_file.read_text(encoding="utf-8"))
            return {"place": float(mark["place"]), "resume": bool(mark["resume"])}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # damaged: it still waits, after the others
            return {"place": math.inf, "resume": False}

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def lock(self, timeout: float = 0) -> filelock.BaseFileLock:
        """The lock that the trainer holds while it lives."""
        return filelock.FileLock(self.path / ".lock", timeout=timeout)

    def manifest(self) -> dict[str, Any]:
        """`run.json`. Raises UserError when it is missing or not readable."""
        try:
            value = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise ValueError("no object")
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"The folder '{self.path}' has no readable run.json ({error}).") from None
        return value

    def config(self) -> RunConfig:
        """The resolved choices. Raises UserError when run.json is damaged or of another version."""
        try:
            return RunConfig(**self.manifest()["config"])
        except (KeyError, TypeError, ValidationError):
            raise UserError(f"The run.json of '{self.id}' is damaged or was written by another version.") from None

    def sweep(self) -> tuple[str, tuple[str, ...]] | None:
        """The name of the sweep this run belongs to and the knobs that vary in it; None where it belongs to none."""
        try:
            told = self.manifest()["sweep"]
            varies = tuple(map(str, told["varies"]))
            return (str(told["name"]), varies) if RunConfig.model_fields.keys() >= set(varies) else None
        except (KeyError, TypeError, UserError):
            return None

    def events(self, offset: int = 0) -> tuple[list[events.Event], int]:
        """Events after a byte offset, and the offset to go on from."""
        return events.read(self.events_file, offset)

    def created(self) -> float:
        """When the run was made, in seconds since the epoch."""
        try:
            return (self.path / "run.json").stat().st_mtime
        except OSError:
            return 0.0

    def is_locked(self) -> bool:
        """Whether a trainer lives."""
        return locks.is_held(self.path / ".lock")

    def state(self) -> State:
        """Derived, never stored: see DESIGN. `died` is a run with no final event and no living trainer."""
        if self.is_locked():
            return "stopping" if self.stop_file.exists() else "running"
        if self.queue_file.exists():
            return "queued"
        marks = [event for event in self.events()[0] if event["kind"] in ("started", *events.FINAL)]
        if marks and marks[-1]["kind"] != "started":
            kind: State = marks[-1]["kind"]
            return kind
        young = not marks and 0 <= time.time() - self.created() < YOUNG_SECONDS  # negative: the clock was set back
        return "starting" if young else "died"

    def is_live(self) -> bool:
        return self.state() in LIVE

    def has_adapter(self) -> bool:
        """Whether a whole adapter lies in the folder."""
        return (self.path / "adapter_config.json").is_file() and (self.path / "adapter_model.safetensors").is_file()

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint folder that was written to its end, or None."""
        return checkpoints.latest(self.checkpoints)

    def request_stop(self) -> None:
        """Ask the trainer to finish this step, save and end."""
        self.stop_file.touch()

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of train.log; progress bars that overwrite themselves show their last state."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 400 * lines))
                body = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(line.rsplit("\r", 1)[-1] for line in body.splitlines()[-lines:])


class RunStore:
    """The folder of runs, `adapters/` by default."""

    def __init__(self, root: Path | str = "adapters", roots: Sequence[Path] | None = None):
        """`roots` are the only folders in which data and local bases may be named; None allows all."""
        self.root = Path(root).absolute()
        self.roots = None if roots is None else tuple(folder.expanduser().resolve() for folder in roots)

    def all(self) -> list[Run]:
        """All runs, newest first."""
        if not self.root.is_dir():
            return []
        found = [Run(path.parent) for path in self.root.glob("*/run.json")]
        return sorted(found, key=lambda run: (run.created(), run.id), reverse=True)

    def get(self, run_id: str) -> Run:
        """The run of this id. Raises UserError when there is none."""
        path = self.root / run_id
        if run_id in ("", ".", "..") or Path(run_id).name != run_id or not (path / "run.json").exists():
            raise UserError(f"There is no run '{run_id}' in {self.root}.")
        return Run(path)

    def create(self, config: RunConfig, sweep: Mapping[str, Any] | None = None) -> Run:
        """Check what can be checked without a model, then make the run's folder with its run.json.

        `sweep` has the `name` of the sweep it belongs to and the knobs it `varies`.

        Raises UserError when base, data or the folder are not usable; then nothing is left behind.
        """
        for knob in PATH_KNOBS:
            self.check_allowed(getattr(config, knob))
        check_base(config.base_model, config.revision)
        source = data.find(config.dataset)
        if source.is_hub:
            hub.require("datasets", source.name)
        else:
            data.load(config.dataset, config.dataset_format, config.dataset_split)
        manifest = {
            "schema": SCHEMA,
            "config": _with_whole_paths(config).model_dump(mode="json"),
            "versions": _versions(),
            "dataset": source.fingerprint(),
        } | ({"sweep": dict(sweep)} if sweep else {})
        path = self._make_folder(config.name)
        try:
            write_whole(path / "run.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise UserError(f"No run can be made in '{self.root}': {error.strerror or error}; make room.") from None
        return Run(path)

    def check_allowed(self, named: str) -> None:
        """Raise UserError for a local file or folder outside of `roots`; it says the same whether that exists or not."""
        if self.roots is None or named in ("", "demo"):
            return
        path = hub.local(named)
        if path is None and hub.looks_like_id(named):
            return
        if path is None or not any(path.resolve().is_relative_to(root) for root in self.roots):
            raise UserError(
                f"'{named}' is in none of the folders that may be named on this page: upload the file, or let the owner "
                "start the page with --allow-dir."
            )

    def starting(self, timeout: float) -> filelock.BaseFileLock:
        """The lock that is held while a run is being started."""
        return filelock.FileLock(self.root / ".start.lock", timeout=timeout)

    @contextlib.contextmanager
    def nothing_starts(self) -> Iterator[None]:
        """Hold off every start. Raises UserError while one is under way."""
        try:
            with self.starting(_PATIENCE_SECONDS):
                yield
        except filelock.Timeout:
            raise UserError("A run is being started: try again in a moment.") from None

    def delete(self, run: Run) -> None:
        """Remove a run's folder. Raises UserError while its trainer lives, or one is being started."""
        try:
            with self.nothing_starts():
                if run.is_locked():
                    raise UserError(f"The run '{run.id}' is still {run.state()}: stop it before deleting it.")
                shutil.rmtree(run.path)
        except OSError as error:
            raise UserError(f"The run '{run.id}' cannot be deleted: {error.strerror or error}.") from None

    def _make_folder(self, name: str) -> Path:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if name:
                (self.root / name).mkdir()
                return self.root / name
            while True:
                path = self.root / made_up_name()
                if not path.exists():
                    path.mkdir()
                    return path
        except FileExistsError:
            raise UserError(f"There is already a run '{name}' in {self.root}: choose another name.") from None
        except OSError as error:
            raise UserError(
                f"No run can be made in '{self.root}': {error.strerror or error}; make the folder writable, "
                "or choose another with --adapters-dir."
            ) from None


def check_base(base_model: str, revision: str = "") -> None:
    """Raise UserError unless the base is `demo`, a local model folder, or something the hub has."""
    path = hub.local(base_model)
    if base_model == "demo" and (path is None or not path.is_dir()):
        return
    if path is not None and path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"The base model folder '{base_model}' has no config.json: choose a transformers model folder."
            )
        return
    if base_model.startswith((".", "/", "~")):
        raise UserError(f"The base model folder '{base_model}' does not exist: check the path.")
    hub.require("models", base_model, revision)


def _with_whole_paths(config: RunConfig) -> RunConfig:
    """Local paths made absolute, so that a run can be resumed or replayed from any folder."""
    update = {}
    for knob in PATH_KNOBS:
        value = getattr(config, knob)
        if value not in ("", "demo") and (path := hub.local(value)):
            update[knob] = str(path.resolve())
    return config.model_copy(update=update)


def _versions() -> dict[str, str]:
    found = {}
    for package in _VERSIONS:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
