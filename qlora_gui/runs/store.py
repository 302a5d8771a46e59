"""RunStore and Run: handles on folders. They hold no state of their own; every answer is read from the folder."""

import contextlib
import json
import math
import os
import random
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import filelock
from pydantic import ValidationError

from qlora_gui import hub, locks, plain_files, references
from qlora_gui.config import RunConfig, marked
from qlora_gui.data import chat_template
from qlora_gui.data import load as data
from qlora_gui.errors import UserError
from qlora_gui.files import write_whole
from qlora_gui.references import DEMO, ModelRef
from qlora_gui.runs import bounded_reading, checkpoints, event_file, scan, seal, several, uploads
from qlora_gui.runs.events import Event
from qlora_gui.runs.history import RunHistory
from qlora_gui.system import files

_ADJECTIVES = """
amber bold brave bright brisk calm clever deft eager early fair fleet gentle glad keen kind lively lucid
mellow merry nimble noble patient plain quick quiet ready sharp steady sunny swift tidy warm wise
""".split()
_ANIMALS = """
badger beaver bison crane crow deer dove eagle falcon ferret finch fox gull hare hawk heron ibis jay kite
lark lemur lion lynx marten mole newt otter owl panda puffin raven robin seal shrew stork swan tern toad
vole whale wolf wren
""".split()

SCHEMA = 1
YOUNG_SECONDS = 30.0
EVALUATION_LOCK = ".evaluate.lock"  # held while an evaluation lives that was begun from the run
EXPORT_LOCK = ".export.lock"  # and an export
PUSH_LOCK = ".push.lock"  # and a push to the hub
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names
_GONE = ".deleted-"
_PATIENCE_SECONDS = 10.0  # for a start that is under way
_MOST_MARK = 4096  # bytes
ELSEWHERE: Literal["made elsewhere"] = "made elsewhere"
State = Literal["queued", "starting", "running", "stopping", "finished", "stopped", "failed", "died", "made elsewhere"]
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
        """Of a run that waits `place` (a number, the lowest is next), `resume`, and whether it waits in this folder's queue
        (`ours`) rather than being marked elsewhere; else None."""
        try:
            mark = json.loads(plain_files.read_text(self.queue_file, _MOST_MARK))
            place = float(mark["place"])
            ours = seal.holds(self.path, mark.get("seal"))
            return {"place": place if math.isfinite(place) else math.inf, "resume": bool(mark["resume"]), "ours": ours}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return {"place": math.inf, "resume": False, "ours": False}  # damaged

    def is_held_back(self) -> bool:
        """Whether it is marked as waiting but will not be started (`queue.held_back`)."""
        mark = self.queue_mark()
        return mark is not None and not mark["ours"]

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def lock(self, timeout: float = 0) -> locks.Lock:
        """The lock that the trainer holds while it lives."""
        return locks.Lock(self.path / ".lock", timeout)

    def manifest(self) -> dict[str, Any]:
        """`run.json`. Raises UserError when it is missing or not readable."""
        try:
            value = json.loads(plain_files.read_text(self.path / "run.json", plain_files.MOST_CONFIG))
            if not isinstance(value, dict):
                raise ValueError("no object")
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"The folder '{self.path}' has no readable run.json ({error}).") from None
        return value

    def config(self) -> RunConfig:
        """The resolved choices. Raises UserError when run.json is damaged or of another version, or there never was one."""
        if self.is_elsewhere():
            raise UserError(f"The adapter '{self.id}' was made elsewhere: with which settings is not known here.")
        try:
            return RunConfig(**self.manifest()["config"])
        except (KeyError, TypeError, ValidationError):
            raise UserError(f"The run.json of '{self.id}' is damaged or was written by another version.") from None

    def sweep(self) -> tuple[str, tuple[str, ...]] | None:
        """The name of the sweep this run belongs to and the knobs that vary in it; None where it belongs to none."""
        try:
            stored = self.manifest()["sweep"]
            varies = tuple(map(str, stored["varies"]))
            return (str(stored["name"]), varies) if RunConfig.model_fields.keys() >= set(varies) else None
        except (KeyError, TypeError, UserError):
            return None

    def events(self, offset: int = 0) -> tuple[list[Event], int]:
        """Events after a byte offset, and the offset to go on from."""
        return event_file.read(self.events_file, offset)

    def history(self) -> RunHistory:
        """What it has done so far."""
        return RunHistory(self.events()[0])

    def created(self) -> float:
        """When the run was made, in seconds since the epoch; of an adapter made elsewhere its config."""
        for name in ("run.json", CONFIG):
            with contextlib.suppress(OSError):
                return (self.path / name).stat().st_mtime
        return 0.0

    def is_elsewhere(self) -> bool:
        """Whether it is an adapter that this program did not train, which has nothing but PEFT's files."""
        return not (self.path / "run.json").exists() and (self.path / CONFIG).exists()

    def is_locked(self) -> bool:
        """Whether a trainer lives."""
        return locks.is_held(self.path / ".lock")

    def state(self) -> State:
        """Derived, never stored: see DESIGN. `died` is a run with no final event and no living trainer."""
        if self.is_locked():
            return "stopping" if self.stop_file.exists() else "running"
        if self.queue_file.exists():
            return "queued"
        mark = event_file.mark(self.events_file)
        if mark is not None and mark["kind"] != "started":
            kind: State = mark["kind"]
            return kind
        if mark is None and self.is_elsewhere():
            return ELSEWHERE
        young = mark is None and 0 <= time.time() - self.created() < YOUNG_SECONDS  # negative: the clock was set back
        return "starting" if young else "died"

    def is_live(self) -> bool:
        return self.state() in LIVE

    def has_adapter(self) -> bool:
        """Whether a whole adapter lies in the folder."""
        return (self.path / CONFIG).is_file() and (self.path / WEIGHTS).is_file()

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint folder that was written to its end, or None."""
        return checkpoints.latest(self.checkpoints)

    def request_stop(self) -> None:
        """Ask the trainer to finish this step, save and end. Raises UserError where that cannot be written."""
        try:
            plain_files.open_to_write(self.stop_file, append=True).close()
        except OSError as error:
            raise UserError(f"The run '{self.id}' cannot be asked to stop: {error.strerror or error}.") from None

    def check_writable(self) -> None:
        """Raise UserError for a folder with anything in it through which something else would be written or deleted."""
        try:
            plain_files.check_folder(self.path)
        except plain_files.StrangeFile as error:
            raise UserError(f"Nothing can be written into the run '{self.id}': {error}.") from None
        except FileNotFoundError:
            return  # whoever writes says so

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of train.log; progress bars that overwrite themselves show their last state."""
        try:
            with plain_files.open_to_read(self.log_file) as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 400 * lines))
                body = file.read().decode("utf-8", "replace")
        except plain_files.StrangeFile as error:
            return f"{error}."
        except OSError:
            return ""
        return "\n".join(line.rsplit("\r", 1)[-1] for line in body.splitlines()[-lines:])


class RunStore:
    """The folder of runs, `adapters/` by default."""

    def __init__(self, root: Path | str = "adapters", roots: Sequence[Path] | None = None, owners: Sequence[Path] = ()):
        """`roots` are the only folders in which data, local bases and templates may be named, `owners` those for
        accelerate configs, which can do more than read. With `roots` None all may be named: a store without guests.
        """
        self.root = Path(root).absolute()
        self.roots = None if roots is None else tuple(folder.expanduser().resolve() for folder in roots)
        self.owners = tuple(folder.expanduser().resolve() for folder in owners)

    def all(self) -> list[Run]:
        """All runs and adapters made elsewhere, newest first."""
        return [Run(path) for path, _ in scan.folders(self.root)]

    def named(self) -> Iterator[tuple[str, str]]:
        """Every run's id with each file or folder that its settings name."""
        for run in self.all():
            with contextlib.suppress(UserError):
                config = run.manifest().get("config")
                values = [config.get(knob) for knob in marked("path")] if isinstance(config, dict) else []
                yield from ((run.id, value) for value in values if isinstance(value, str) and value not in ("", DEMO))

    def get(self, run_id: str) -> Run:
        """The run, or adapter made elsewhere, of this id. Raises UserError when there is none."""
        path = self.root / run_id
        try:
            kept = self.is_name(run_id) and any((path / name).exists() for name in ("run.json", CONFIG))
            there = kept and files.is_spelled(path)
        except (OSError, ValueError):  # too long, a NUL
            there = False
        if not there:
            raise UserError(f"There is no run '{run_id}' in {self.root}.")
        return Run(path)

    @staticmethod
    def is_name(run_id: str) -> bool:
        """Whether it can be the name of a folder of the store, and of nothing outside of it."""
        return run_id not in ("", ".", "..") and not {"/", "\\", "\0"} & set(run_id)

    def is_taken(self, name: str) -> bool:
        """Whether the store has a folder or file of this name."""
        try:
            return self.is_name(name) and (self.root / name).exists()
        except (OSError, ValueError):
            return False

    def create(self, config: RunConfig, sweep: Mapping[str, Any] | None = None) -> Run:
        """Check what can be checked without a model, then make the run's folder with its run.json.

        `sweep` has the `name` of the sweep it belongs to and the knobs it `varies`.

        Raises UserError when base, data or the folder are not usable; then nothing is left behind.
        """
        for knob in marked("path"):
            self.check_allowed(getattr(config, knob), knob)
        base = ModelRef.find(config.base_model, config.revision)
        base.check_revision()
        base.check()
        chat_template.check(config.chat_template)
        several.check(config, self.has_guests)
        source = data.find(config.dataset)
        if source.is_hub:
            hub.require("datasets", source.name)
        else:
            bounded_reading.check(config)
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
        uploads.note_use((getattr(config, knob) for knob in marked("path")), path)
        return Run(path)

    @property
    def has_guests(self) -> bool:
        """Whether others than the owner use it, and may name only what the owner allowed."""
        return self.roots is not None

    def check_allowed(self, named: str, knob: str = "base_model") -> None:
        """Raise UserError for a local file or folder that a knob may not name, by itself or by links inside of it.

        It says the same whether that exists or not.
        """
        named = named.strip()  # as a RunConfig does
        if self.roots is None or named in ("", DEMO):
            return
        path = hub.local(named)
        if knob == "accelerate_config":
            if path is None or not _is_below(path, self.owners):
                raise UserError(
                    f"'{named}' is in none of the folders whose accelerate configs may be used on this page: let the "
                    "owner start the page with --allow-dir."
                )
            return
        if path is None and hub.looks_like_id(named):
            return
        if path is None or not _is_below(path, self.roots):
            raise UserError(
                f"'{named}' is in none of the folders that may be named on this page: upload the file, or let the owner "
                "start the page with --allow-dir."
            )
        if outside := _leads_out(path, self.roots):
            raise UserError(
                f"'{named}' holds a link, '{outside}', that leads out of the folders that may be named on this page: let "
                "the owner put the file itself there, or start the page with --allow-dir."
            )

    def starting(self, timeout: float) -> locks.Lock:
        """The lock that is held while a run is being started."""
        return locks.starting(self.root, timeout)

    @contextlib.contextmanager
    def nothing_starts(self) -> Iterator[None]:
        """Within, no run can be started. Raises UserError while a start is under way."""
        try:
            with self.starting(_PATIENCE_SECONDS):
                yield
        except filelock.Timeout:
            raise UserError("A run is being started: try again in a moment.") from None

    def delete(self, run: Run) -> None:
        """Remove a run's folder, and nothing that links lead to.

        It is moved out of sight first: what is interrupted then leaves no half of a run. Raises UserError while it trains, or
        one is being started, or somebody reads it.
        """
        try:
            with self.nothing_starts():
                if run.is_locked():
                    raise UserError(f"The run '{run.id}' is still {run.state()}: stop it before deleting it.")
                if run.path.is_symlink():
                    run.path.unlink()  # what it leads to is not ours
                    return
                for old in self.root.glob(f"{_GONE}*"):
                    if not old.is_symlink():
                        shutil.rmtree(old, ignore_errors=True)
                aside = self.root / f"{_GONE}{uuid.uuid4().hex[:16]}"  # its own name may be as long as names can be
                with locks.marking(self.root):  # nobody begins to read it between the look and the move
                    self._check_unread(run)
                    files.replace(run.path, aside)
                shutil.rmtree(aside)
        except filelock.Timeout:
            raise UserError(f"The run '{run.id}' is about to be read: try again in a moment.") from None
        except OSError as error:
            raise UserError(f"The run '{run.id}' cannot be deleted: {error.strerror or error}.") from None

    def _check_unread(self, run: Run) -> None:
        begun = {"an evaluation": EVALUATION_LOCK, "an export": EXPORT_LOCK, "a push to the hub": PUSH_LOCK}
        held = [what for what, lock in begun.items() if locks.is_held(run.path / lock)]
        if readers := [*locks.readers(run.path), *held]:
            raise UserError(f"The run '{run.id}' is being read by {readers[0]}: delete it when that is done.")

    def _make_folder(self, name: str) -> Path:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            what = "a link that leads to nothing" if self.root.is_symlink() else "a file"
            raise UserError(
                f"No run can be made in '{self.root}', which is {what}: put a folder there, or choose another with "
                "--adapters-dir."
            ) from None
        except OSError as error:
            raise self._not_made(error) from None
        try:
            if why := files.why_too_long(self.root / (name or made_up_name())):
                raise UserError(why)
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
            raise self._not_made(error) from None

    def _not_made(self, error: OSError) -> UserError:
        return UserError(
            f"No run can be made in '{self.root}': {error.strerror or error}; make the folder writable, "
            "or choose another with --adapters-dir."
        )


def _is_below(path: Path, roots: Sequence[Path]) -> bool:
    """Whether a file or folder lies in one of these, its links followed."""
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # links in a circle
        return False
    return any(real.is_relative_to(root) for root in roots)


def _leads_out(folder: Path, roots: Sequence[Path]) -> str | None:
    """The name of a link in a folder that leads out of the roots, whether there is something or not.

    Looked for as deep as data and bases are read: in the folder, and in the folders in it.
    """
    for inner, folders, others in os.walk(folder):  # which follows no link
        for name in (*folders, *others):
            path = Path(inner, name)
            if path.is_symlink() and not _is_below(path, roots):
                return str(path.relative_to(folder))
        if Path(inner) != folder:
            folders.clear()
    return None


def _with_whole_paths(config: RunConfig) -> RunConfig:
    """Local paths made absolute, so that a run can be resumed or replayed from any folder."""
    update = {}
    for knob in marked("path"):
        if path := references.local(getattr(config, knob)):
            update[knob] = str(path.resolve())
    return config.model_copy(update=update)


def _versions() -> dict[str, str]:
    versions = {}
    for package in _VERSIONS:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def made_up_name() -> str:
    """An adjective, an animal and two digits; never from a seeded generator: two runs of one seed need different names."""
    generator = random.SystemRandom()
    return f"{generator.choice(_ADJECTIVES)}-{generator.choice(_ANIMALS)}-{generator.randrange(100):02d}"
