"""An export: what is asked for, started as a child process (`runs.child_job`), and what came of it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from qlora_gui import plain_files
from qlora_gui.errors import UserError
from qlora_gui.runs.child_job import ChildJob, State
from qlora_gui.runs.store import EXPORT_LOCK, Run

MODULE = "qlora_gui.export.run"
PROGRESS = "export.jsonl"
RECORD = "export.json"  # in an exported folder: what was asked for, and its proof; written last
JOB = ChildJob(MODULE, EXPORT_LOCK, PROGRESS, "export.log", "the export", "is being exported already", "export again")
Kind = Literal["merged", "gguf", "gguf-lora"]
Dtype = Literal["bf16", "fp16"]
Onto = Literal["base", "trained"]
Type = Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m"]
K_QUANTS = ("q6_k", "q5_k_m", "q4_k_m", "q3_k_m")  # made by llama-quantize, from the least to the most lossy


@dataclass(frozen=True)
class Settings:
    """What is exported: the `kind`, merged onto which weights, in which format (`dtype` of a merged folder, `type` of a GGUF file).

    `rows` held-out rows at most are read by both models for the proof (0: none), with greedy answers of at most
    `max_new_tokens`. `out` is the folder to make; "" for one in the run's own.
    """

    kind: Kind = "merged"
    dtype: Dtype = "bf16"
    onto: Onto = "base"
    type: Type = "f16"
    out: str = ""
    rows: int = 50
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        for name, allowed in (("kind", Kind), ("dtype", Dtype), ("onto", Onto), ("type", Type)):
            if getattr(self, name) not in get_args(
                allowed
            ):  # some name files, and a page's user may send what they like
                choices = ", ".join(get_args(allowed))
                raise UserError(f"There is no export with {name} {getattr(self, name)!r}: choose {choices}.")
        if not 0 <= self.rows <= 1000:
            raise UserError(f"A proof on {self.rows} rows cannot be asked for: choose 0 to 1000.")
        if not 0 <= self.max_new_tokens <= 4096:
            raise UserError(f"Answers of {self.max_new_tokens} tokens cannot be asked for: choose 0 to 4096.")


def folder_of(run: Run, settings: Settings) -> Path:
    """Where an export of a run goes."""
    if settings.out:
        return Path(settings.out)
    return run.path / "exports" / f"{run.id}-{'-'.join(_differs(settings))}"


def _differs(settings: Settings) -> list[str]:
    """What tells one export of a run from another."""
    number = {"merged": settings.dtype, "gguf": settings.type, "gguf-lora": ""}[settings.kind]
    return [settings.kind, *filter(None, (number, "onto-trained" if settings.onto == "trained" else ""))]


def start(run: Run, settings: Settings, base: str = "") -> None:
    """Export a run in a child, with another `base` than it names where one is given; its progress is in the run's folder.

    Raises UserError where it cannot begin.
    """
    JOB.start([run], asdict(settings) | {"base": base})


def state(run: Run) -> State:
    """The progress of the export started from this run."""
    return JOB.state(run)


@dataclass(frozen=True)
class Made:
    """A finished export: its folder, size in bytes, what was asked for, the proof's sentence and whether it is a warning."""

    folder: Path
    bytes: int
    asked: str
    proof: str
    worse: bool


def made(run: Run) -> list[Made]:
    """The exports that lie in a run's folder, whole, by name."""
    return [found for folder in sorted((run.path / "exports").glob("*")) if (found := read(folder))]


def read(folder: Path) -> Made | None:
    """An exported folder; None where it is none, or damaged."""
    try:
        record: dict[str, Any] = json.loads(plain_files.read_text(folder / RECORD))
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        return Made(folder, size, str(record["asked"]), str(record["proof"]), bool(record["worse"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def words(settings: Settings) -> Sequence[str]:
    """The flags of the command line that ask for the same."""
    number = {"merged": ["--dtype", settings.dtype], "gguf": ["--type", settings.type], "gguf-lora": []}[settings.kind]
    onto = ["--onto", settings.onto] if settings.onto != "base" else []
    return ["--to", settings.kind, *number, *onto]


def is_export_of(folder: Path, adapter: Path, settings: Settings, base: str | None = None) -> bool:
    """Whether a folder is a whole export of these weights of an adapter, with the same settings but for its proof.

    `base` is the one named, None for the adapter's own.
    """
    try:
        record = json.loads(plain_files.read_text(folder / RECORD))
        known = record["adapter"]["sha256"], record["asked"], base or record["base"]["name"]
        own = record["base"]["name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return bool(known == (_sha256(adapter / "adapter_model.safetensors"), " ".join(words(settings)), own))


def _sha256(file: Path) -> str:
    """The SHA-256 of a file; "" where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with plain_files.open_to_read(file) as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()
