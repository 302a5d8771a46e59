"""Start, stop and find the child process that trains a run. It outlives whoever started it."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import filelock
import psutil

from qlora_gui import hub
from qlora_gui.errors import UserError
from qlora_gui.runs.store import Run, RunStore

MODULE = "qlora_gui.training"
LAUNCHER = "accelerate.commands.launch"
SECRETS = ("QLORA_GUI_AUTH", "QLORA_GUI_JUDGE_KEY")
_ROOT = Path(__file__).parents[2]
_START_SECONDS = 20.0
_SEVERAL_SECONDS = 180.0  # accelerate reads torch from the disk before it starts the process that takes the lock
# What tells one process of several who it is: what it starts is none of them.
_OF_SEVERAL = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")


def child_environment() -> dict[str, str]:
    """The environment of a child: it finds this package from any working directory, prints at once, has no secret of
    the page's."""
    several = _OF_SEVERAL if "TORCHELASTIC_RUN_ID" in os.environ else ()
    mine = {name: value for name, value in os.environ.items() if name not in SECRETS and not name.startswith(several)}
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return mine | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


class BusyError(UserError):
    """Another run has the GPU."""


def start(run: Run, store: RunStore, resume: bool = False) -> None:
    """Start training a run; returns when the child has taken the run's lock.

    Raises BusyError when another run of the store is live, UserError when there is nothing to resume from, or when
    the child died at once.
    """
    try:
        # One start at a time, whoever asks: the second one finds the first one's run live.
        with store.starting(timeout=2 * _START_SECONDS):
            _start(run, store, resume)
    except filelock.Timeout:
        raise BusyError("Another run is being started: try again in a moment.") from None
    except OSError as error:
        raise UserError(f"No run can be started in '{store.root}': {error.strerror or error}.") from None


def check_free(store: RunStore, run: Run | None = None) -> None:
    """Raise BusyError while a run of the store, other than this one, is live."""
    for other in store.all():
        if (run is None or other.id != run.id) and other.is_locked():
            raise BusyError(f"The run '{other.id}' is {other.state()}: stop it or let it finish first.")


def _start(run: Run, store: RunStore, resume: bool) -> None:
    check_free(store, run)
    if run.is_locked():
        raise UserError(f"The run '{run.id}' is already running.")
    if resume and run.last_checkpoint() is None:
        raise UserError(f"The run '{run.id}' has no checkpoint to resume from: train again instead.")
    run.stop_file.unlink(missing_ok=True)
    command = command_of(run, resume)
    before = run.events()[1]
    with run.log_file.open("ab") as log:
        child = detached(command, log)
    deadline = time.monotonic() + (_SEVERAL_SECONDS if LAUNCHER in command else _START_SECONDS)
    while time.monotonic() < deadline and not run.is_locked():
        if child.poll() is not None:
            if not any(event["kind"] == "started" for event in run.events(before)[0]):
                raise UserError(f"The training process of '{run.id}' ended at once: {run.log_tail(1) or 'no output'}")
            return
        time.sleep(0.05)


def command_of(run: Run, resume: bool) -> list[str]:
    """What trains a run: this package alone, or under accelerate where there are several processes.

    Raises UserError for an accelerate config that is not there.
    """
    words = [MODULE, str(run.path), *(["--resume"] if resume else [])]
    config = run.config()
    if config.num_processes == 1 and not config.accelerate_config:
        return [sys.executable, "-m", *words]
    command = [sys.executable, "-m", LAUNCHER]
    if config.accelerate_config:
        file = hub.local(config.accelerate_config)
        if file is None or not file.is_file():
            raise UserError(f"The accelerate config '{config.accelerate_config}' does not exist: check the path.")
        command += ["--config_file", str(file), *(["--use_fsdp"] if config.fsdp else [])]
    else:
        # --multi_gpu also on a CPU: it is the launcher of one process a device, and asks for no GPU itself.
        way = ["--use_fsdp", "--fsdp_version", "2"] if config.fsdp else ["--multi_gpu"]
        command += [*way, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0"]  # a free one
    if config.num_processes > 1:
        command += ["--num_processes", str(config.num_processes)]
    return [*command, "-m", *words]


def detached(command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a child that outlives this process; what it says goes into `log`."""
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=child_environment(),
        start_new_session=True,  # a Ctrl+C or a closed terminal is for the parent
    )
    threading.Thread(target=child.wait, daemon=True).start()  # else it stays a zombie for as long as we live
    return child


def find(run: Run) -> psutil.Process | None:
    """The process that trains this run, found by its command line, or None; of several the one that launched them."""
    found = [
        process
        for process in psutil.process_iter(["cmdline", "ppid"])
        if MODULE in (words := process.info["cmdline"] or []) and str(run.path) in words
    ]
    ours = {process.pid for process in found}
    return next((process for process in found if process.info["ppid"] not in ours), None)


def kill(run: Run) -> bool:
    """End the trainer at once, without saving. Returns whether there was one."""
    process = find(run)
    if process is None:
        return False
    try:
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return False
    for child in family:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=10)
    return True
