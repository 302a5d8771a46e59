"""The page's side of the simulation: questions to a child process on fake tensors, and its answers, cached on disk. Never imports torch."""

import hashlib
import json
import os
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from qlora_gui import hub
from qlora_gui.errors import UserError
from qlora_gui.runs.launch import child_environment
from qlora_gui.system import files

STEP, PARAMETERS = "qlora_gui.simulation", "qlora_gui.simulation.count_parameters"  # the modules that answer
PATIENCE_SECONDS = 60
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
# Folders and files of this package that decide how the simulated step runs.
_CODE = ("families", "models", "simulation", "training", "optimizers.py", "step_rules.py")


def folder() -> Path:
    """Where answers are cached, one file each."""
    return hub.cache_dir() / "simulated"


def key(question: dict[str, Any]) -> str:
    """A file name for a question to the training side, as its libraries and code answer it now."""
    text = json.dumps([question, _libraries()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def _libraries() -> list[str]:
    code = hashlib.sha256()
    for name in _CODE:
        place = Path(__file__).parents[1] / name
        for file in [place] if place.suffix else sorted(place.rglob("*.py")):
            code.update(file.read_bytes())
    return [*map(metadata.version, _PACKAGES), code.hexdigest()]


def keep(file: Path, answer: dict[str, Any]) -> None:
    """Cache an answer. A cache folder that cannot be written to is no reason to give none."""
    aside = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(answer), encoding="utf-8")
        files.replace(aside, file)
    except OSError:
        aside.unlink(missing_ok=True)


def asked(module: str, question: dict[str, Any]) -> dict[str, Any]:
    """What a child process of the training side answers. Raises UserError when it cannot, or takes too long."""
    try:
        child = _start(module, question)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"The simulation took longer than {PATIENCE_SECONDS} s and was ended: close other programs, or go by the plan."
        ) from None
    try:
        answer: dict[str, Any] = json.loads(child.stdout)
    except ValueError:
        lines = child.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"it ended with {child.returncode}"
        raise UserError(f"The step on this base cannot be simulated ({reason}): go by the plan.") from None
    if "error" in answer:
        raise UserError(answer["error"])
    return answer


def _start(module: str, question: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(question),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=child_environment() | {"CUDA_VISIBLE_DEVICES": ""},  # a GPU has other things to do
        timeout=PATIENCE_SECONDS,
    )
