"""K-quants of a GGUF file, by llama.cpp's own `llama-quantize` where that is on the PATH."""

import re
import shutil
import subprocess
from collections import deque
from collections.abc import Callable
from pathlib import Path

from qlora_gui.errors import UserError
from qlora_gui.export import job
from qlora_gui.formatting import counted
from qlora_gui.runs.launch import child_environment

PROGRAM = "llama-quantize"
_AT = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")  # of what it prints of a tensor
_LARGER = "falling back to"  # of a tensor whose rows do not divide into the type's blocks
_KEPT = 20  # lines of its output, for what is said of a failure
_ENDING_SECONDS = 5.0


def check(kind: str, adapter: str) -> None:
    """Raise UserError for a K-quant where `llama-quantize` is not there: before anything is computed."""
    if kind in job.K_QUANTS and not shutil.which(PROGRAM):
        raise UserError(
            f"The type {kind} is made by llama.cpp's {PROGRAM}, which is not on the PATH: install llama.cpp "
            "(https://github.com/ggml-org/llama.cpp/releases), or export with --type bf16 and run, where you have it, "
            f"{PROGRAM} {adapter}-bf16.gguf {adapter}-{kind}.gguf {kind.upper()}."
        )


def run(whole: Path, out: Path, kind: str, progress: Callable[[int, int], None]) -> str:
    """Quantize a file into another; `progress` gets tensors done and of how many. Returns a remark, "" where there is none.

    The program ends with this one: at the next line that it prints, or at once where this is interrupted.
    Raises UserError where it fails.
    """
    command = [shutil.which(PROGRAM) or PROGRAM, str(whole), str(out), kind.upper()]
    last: deque[str] = deque(maxlen=_KEPT)
    larger = of = 0
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=child_environment(),
    )
    assert child.stdout
    try:
        for line in child.stdout:
            last.append(line.strip())
            larger += _LARGER in line
            if at := _AT.match(line):
                of = int(at[2])
                progress(int(at[1]), of)
        code = child.wait()
    finally:
        _end(child)
    if code or not out.is_file():
        said = next((line for line in reversed(last) if line), "it said nothing")
        raise UserError(f"{PROGRAM} made no {kind} file (exit code {code}): {said}")
    if not larger:
        return ""
    return f"{counted(larger, 'tensor')} of {of} have rows that {kind} does not divide, and are in a larger format."


def _end(child: subprocess.Popen[str]) -> None:
    """End a child that may still run: it is to write nothing more into a folder that will be removed."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout:
        child.stdout.close()
