"""The second tier of "will it fit": the real step on fake tensors in a child process, kept on disk by its inputs.

For bases that the closed form's assumptions do not hold for. Seconds where the closed form takes milliseconds.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from qlora_gui import hub
from qlora_gui.errors import UserError
from qlora_gui.memory.plan import MemoryPlan, plan, simulated
from qlora_gui.memory.shape import Shape
from qlora_gui.memory.step import Way
from qlora_gui.runs.config import RunConfig
from qlora_gui.runs.launch import child_environment

PATIENCE_SECONDS = 60
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
_CODE = ("model", "training")  # the folders of this package that the simulated step runs
_PLANS = (  # the knobs that the step depends on
    "rank alpha dropout bias target_modules use_rslora quant_type double_quant max_grad_norm optimizer "
    "gradient_accumulation attention packing"
).split()


@dataclass(frozen=True)
class Simulated:
    """The memory of one step on a CUDA GPU, in bytes, by torch's allocator: no context and no libraries' workspaces.

    `peak_in` is the phase of the peak: forward, loss, backward or optimizer; `phases` has the peak of each.
    `resident` is what stays between steps.
    """

    peak: int
    peak_in: str
    resident: int
    phases: dict[str, int]


def simulate(
    base: dict[str, Any],
    config: RunConfig,
    rows: int,
    length: int,
    way: Way = "ours",
    checkpointing: str | None = None,
) -> Simulated:
    """The step of `rows` x `length` tokens on the base with this config.json; a known answer comes from the disk.

    `checkpointing` replaces the config's; auto counts as all. Raises UserError when the child cannot do it, or takes
    longer than PATIENCE_SECONDS.
    """
    which = checkpointing or config.gradient_checkpointing
    question = {
        "base": base,
        "config": {name: value for name, value in config.model_dump(mode="json").items() if name in _PLANS},
        "rows": rows,
        "length": length,
        "way": way,
        "checkpointing": "all" if which == "auto" else which,
    }
    kept = folder() / f"{_key(question)}.json"
    answer = _read(kept)
    if answer is None:
        answer = _ask(question)
        _write(kept, answer)
    return answer


def wanted(found: MemoryPlan, shape: Shape) -> bool:
    """Whether a plan is to be refined: for a GPU and an architecture that the closed form does not know."""
    return shape.family == "generic" and found.budget.kind == "cuda"


def refined(found: MemoryPlan, config: RunConfig, shape: Shape, base: Mapping[str, Any]) -> MemoryPlan:
    """The plan with its peak from a simulated step; where that is too much and auto may, with all layers recomputed.

    `base` is the base's config.json. Raises UserError as `simulate` does, and for a plan that is not for a GPU.
    """
    if found.budget.kind != "cuda":
        raise UserError("Only steps on a GPU can be simulated: name one by its memory, --memory 16GB.")

    def measured(of: MemoryPlan) -> MemoryPlan:
        return simulated(of, simulate(dict(base), config, of.rows, of.length, of.way, of.checkpointing).peak)

    better = measured(found)
    auto = config.gradient_checkpointing == "auto" and found.way == "ours"
    if better.verdict == "fits" or not auto or found.checkpointing == "all":
        return better
    return measured(plan(config, shape, found.budget, rows=found.rows, length=found.length, checkpointing="all"))


def folder() -> Path:
    """Where answers are kept, one file each."""
    return hub.cache_dir() / "simulated"


def _key(question: dict[str, Any]) -> str:
    """All that an answer depends on: what is asked, the libraries, and the code of the step itself."""
    told = json.dumps([question, _libraries()], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def _libraries() -> list[str]:
    code = hashlib.sha256()
    for name in _CODE:
        for file in sorted((Path(__file__).parents[1] / name).glob("*.py")):
            code.update(file.read_bytes())
    return [*map(metadata.version, _PACKAGES), code.hexdigest()]


def _read(kept: Path) -> Simulated | None:
    try:
        return Simulated(**json.loads(kept.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # absent or damaged: ask again
        return None


def _write(kept: Path, answer: Simulated) -> None:
    """A cache folder that cannot be written to is no reason to give no answer."""
    aside = kept.with_suffix(f".{os.getpid()}.part")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(asdict(answer)), encoding="utf-8")
        os.replace(aside, kept)
    except OSError:
        aside.unlink(missing_ok=True)


def _ask(question: dict[str, Any]) -> Simulated:
    try:
        child = _start(question)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"The simulation took longer than {PATIENCE_SECONDS} s and was ended: close other programs, or go by the plan."
        ) from None
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        told = child.stderr.strip().splitlines()
        reason = told[-1] if told else f"it ended with {child.returncode}"
        raise UserError(f"The step on this base cannot be simulated ({reason}): go by the plan.") from None
    if "error" in answer:
        raise UserError(answer["error"])
    return Simulated(**{name: answer[name] for name in ("peak", "peak_in", "resident", "phases")})


def _start(question: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qlora_gui.training.simulate"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        env=child_environment() | {"CUDA_VISIBLE_DEVICES": ""},  # a GPU has other things to do
        timeout=PATIENCE_SECONDS,
    )
