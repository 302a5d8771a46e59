"""What only a CUDA GPU can tell, in under 10 minutes: `python benchmarks/gpu.py`. Needs no network.

Bases have random weights in the real shapes (BLOOM-560M, BLOOM-7B1, Llama-3.2-1B). Every part has a process and a time of
its own, and one that fails does not end the others: `fit` holds planned and simulated memory against what three steps
allocate; `experiments` runs the report's three with the memory of a 16 GB card; `speed` and `unsloth` measure tokens a
second and peaks in training, `decode` tokens a second in answering, against what memory allows. Prints tables; writes
benchmarks/results/gpu.json after every part. `--dry-run` takes the same way with tiny shapes, on a CPU too, and writes
nothing unless `--out` is given.

What it needs is looked for first (`--needs` says it and does no more): torch, transformers, peft, accelerate,
bitsandbytes (its folder on PYTHONPATH is enough), pydantic, PyYAML, psutil, filelock; it goes without trl and unsloth.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu_parts import needs, tables  # noqa: E402
from machine import hardware, versions  # noqa: E402

SECONDS = {"experiments": 90, "fit": 235, "speed": 155, "unsloth": 60, "decode": 50}  # 590 s together
CHECK, DRY = 60, 900  # seconds for the first look, and for a part in a dry run, on whatever machine it is


def child(part: str, lines: Path, dry: bool) -> None:
    """Run a part here and append its lines as they come, so that one that is cut short loses only the rest."""
    import torch

    if torch.cuda.is_available():
        name, total = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        _append(lines, {"device": name, "total": total, "cuda": torch.version.cuda})
    for line in importlib.import_module(f"gpu_parts.{part}").run(dry):
        _append(lines, {"part": part} | line)


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def start(part: str, dry: bool) -> dict[str, Any]:
    """Run a part in a child. Gives its lines, the seconds it took, and why it did not come to its end, if so."""
    began, allowed = time.monotonic(), DRY if dry else SECONDS.get(part, CHECK)
    with tempfile.TemporaryDirectory() as folder:
        lines, log = Path(folder) / "lines", Path(folder) / "log"
        lines.touch()
        command = [sys.executable, __file__, "--child", part, "--lines", str(lines)]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *(["--dry-run"] if dry else [])],
                stdout=output,
                stderr=output,
                env=env,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(timeout=allowed)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with the simulations it has started
                process.wait()
                code = None
        found = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    told = {"lines": found, "seconds": round(time.monotonic() - began, 1)}
    if code is None:
        return told | {"cut_short": f"after {allowed} s"}
    return told | ({"failed": tail} if code else {})


def told_of(part: str, dry: bool, result: dict[str, Any]) -> bool:
    """Run a part, print its table and put what it found into `result`; False where it failed."""
    told = start(part, dry)
    if gpu := next((line for line in told["lines"] if "device" in line), None):
        result["gpu"] = gpu
    lines = [line for line in told["lines"] if line.get("part") == part]
    text, summary = tables.SHOW[part](lines)
    result["parts"][part] = {"summary": summary} | told | {"lines": lines}
    print(f"\n{part}", *text, sep="\n")
    ending = told.get("cut_short") or told.get("failed") or ""
    print(f"{told['seconds']:.0f} s{': ' + ending if ending else ''}", flush=True)
    return "failed" not in told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, also without a GPU: is the script whole?")
    parser.add_argument("--needs", action="store_true", help="say whether what it needs is there, and end")
    parser.add_argument("--parts", nargs="+", choices=SECONDS, default=list(SECONDS), help="default: all of them")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return child(given.child, given.lines, given.dry_run)
    if lacking := needs.missing():
        raise SystemExit(f"These packages are missing: {', '.join(lacking)}.")
    result: dict[str, Any] = {"benchmark": "gpu", "dry_run": given.dry_run, "parts": {}, "machine": hardware()}
    result["versions"] = versions()
    if not told_of("needs", given.dry_run, result):
        raise SystemExit(2)
    out = given.out or (None if given.dry_run else ROOT / "benchmarks" / "results" / "gpu.json")
    failed = []
    for part in [] if given.needs else given.parts:
        if not told_of(part, given.dry_run, result):
            failed.append(part)
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result, indent=2) + "\n")
    if failed:
        raise SystemExit(f"These parts failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
