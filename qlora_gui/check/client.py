"""The check from its first line to its last: the machine, then two children that compute. Never imports torch."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from qlora_gui import hardware
from qlora_gui.check import lines as texts
from qlora_gui.check import machine
from qlora_gui.check.lines import Line
from qlora_gui.errors import UserError
from qlora_gui.runs import gpus
from qlora_gui.runs.launch import child_environment
from qlora_gui.runs.store import RunStore
from qlora_gui.system import processes

MODULE = "qlora_gui.check.worker"
_PATIENCE = 900.0  # seconds for each child
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_DISABLED": "true"}
_ON_CPU = {hardware.USE_CPU: "true", "QLORA_GUI_COMPUTE_DTYPE": "float32"}


def run(store: RunStore) -> Iterator[Line]:
    """Every line as soon as it is known. Ends its children when it is closed. Raises UserError while a run trains."""
    if live := next((run for run in store.all() if run.is_locked()), None):
        raise UserError(f"The run '{live.id}' is {live.state()}: check the machine when it has ended.")
    yield from machine.lines(store)
    with ExitStack() as ended:
        try:
            made = tempfile.TemporaryDirectory(prefix="qlora-gui-check-", ignore_cleanup_errors=True)
        except OSError as error:
            fix = "Free some space in /tmp, or name a writable folder in TMPDIR."
            yield Line("temporary", "failed", f"No temporary folder can be made ({error.strerror or error}).", fix)
            return
        folder = Path(ended.enter_context(made))
        shared = child_environment() | gpus.environment() | _OFFLINE
        on_cpu = hardware.devices()[0].kind == "cpu"
        yield from _child(folder, "device", shared)
        kind = "cpu" if on_cpu else "gpu"
        yield from _child(folder, "cpu", shared | _ON_CPU | {"QLORA_GUI_CHECKED": kind})


def _child(folder: Path, role: str, environment: dict[str, str]) -> Iterator[Line]:
    """The lines of one child, and how it ended where it failed."""
    log = (folder / f"{role}.log").open("wb")
    child = subprocess.Popen(
        [sys.executable, "-m", MODULE, str(folder), role],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        encoding="utf-8",
        **processes.apart(),
    )
    deadline = time.monotonic() + _PATIENCE
    timer = _kill_at(child, deadline)
    try:
        assert child.stdout is not None
        for line in child.stdout:
            yield texts.from_dict(json.loads(line))
        code = child.wait()
        if code:
            yield _died(role, code, folder / f"{role}.log", time.monotonic() > deadline)
    finally:
        timer.cancel()
        log.close()
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


def _kill_at(child: "subprocess.Popen[str]", deadline: float) -> threading.Timer:
    timer = threading.Timer(deadline - time.monotonic(), child.kill)
    timer.daemon = True
    timer.start()
    return timer


def _died(role: str, code: int, log: Path, late: bool) -> Line:
    last_line = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["no output"]
    how = f"did not end within {_PATIENCE:.0f} s" if late else f"was ended by signal {-code}" if code < 0 else "failed"
    where = "on the device" if role == "device" else "on the CPU"
    fix = "Report this, with the lines above."
    return Line(
        f"{role}-process", "failed", f"The process that computes {where} {how} ({last_line[0].strip()[:300]}).", fix
    )
