"""Stops at awkward moments, and several programs on one folder."""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from qlora_gui.config import make
from qlora_gui.errors import UserError
from qlora_gui.runs import launch
from qlora_gui.runs.store import RunStore
from tests.faults.ground import (
    KNOBS,
    Ground,
    check,
    check_adapter,
    check_checkpoint,
    check_readable,
    ended,
    finish,
    until,
)

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0


def at_any_moment(ground: Ground) -> None:
    """A stop while it loads, reads, trains or saves, and perhaps a second one: it ends in time, and is resumed."""
    run = ground.create()
    ground.start(run)
    time.sleep(ground.dice.uniform(0, 9))
    process = launch.find(run)
    run.request_stop()
    if ground.dice.random() < 0.5:
        time.sleep(ground.dice.uniform(0, 1))
        run.request_stop()
    began = time.monotonic()
    state = ended(run, 90)
    check(time.monotonic() - began < PATIENCE + 15, "the stop took too long")
    check(state in ("stopped", "finished"), f"its state is {state}: {run.log_tail(8)}")
    check(process is None or not _lives(process), "its process still lives")
    check_readable(ground.store)
    check_adapter(run)
    check_checkpoint(run)
    finish(ground, run)


def _lives(process: psutil.Process) -> bool:
    try:
        process.wait(10)
    except psutil.TimeoutExpired:
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def that_hangs(ground: Ground) -> None:
    """A hub that takes connections and never answers: the stop, or the waiting itself, ends in time."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        held: list[socket.socket] = []

        def take() -> None:
            try:
                while True:
                    held.append(silent.accept()[0])
            except OSError:
                return

        threading.Thread(target=take, daemon=True).start()
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code = (
            "import os, sys\nos.environ['HF_ENDPOINT'] = sys.argv[2]\nfrom qlora_gui.config import make\n"
            "from qlora_gui.runs.store import RunStore\nfrom qlora_gui.errors import UserError\n"
            "try:\n    RunStore(sys.argv[1]).create(make({'base_model': 'org/name'}))\n"
            "except UserError as error:\n    sys.exit(f'told: {error}')"
        )
        began = time.monotonic()
        command = [sys.executable, "-c", code, str(ground.store.root), place]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=90)
        check(time.monotonic() - began < PATIENCE, "asking a silent hub takes too long")
        check("told: " in done.stderr or done.returncode == 0, f"it is not said: {done.stderr[-500:]}")
        for one in held:
            one.close()


def ctrl_c_twice(ground: Ground) -> None:
    """Ctrl+C in the terminal stops and saves; twice kills: in both cases nothing is left running."""
    store = ground.store
    words = [f"--{name.replace('_', '-')}={value}" for name, value in (KNOBS | {"max_steps": 500}).items()]
    command = [sys.executable, str(ROOT / "app.py"), "--headless-train", "--base-model", str(ground.base)]
    command += ["--dataset", "demo", "--name", "run", "--answers", "0", *words]
    child = subprocess.Popen(
        command, cwd=ground.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    until(lambda: bool(store.all()) and store.get("run").is_locked(), "a run", 60)
    run = store.get("run")
    time.sleep(ground.dice.uniform(0, 9))
    twice = ground.dice.random() < 0.5
    for _ in range(2 if twice else 1):
        child.send_signal(signal.SIGINT)
        time.sleep(ground.dice.uniform(0.1, 2.0))  # within a second both are one wish
    out, _ = child.communicate(timeout=90)
    check(child.returncode in (1, 130), f"its exit code is {child.returncode}: {out[-500:]}")
    check(launch.find(run) is None and not run.is_live(), "the trainer still lives")
    check(run.state() in (("stopped", "died", "failed") if twice else ("stopped",)), f"its state is {run.state()}")
    check_adapter(run)
    check_checkpoint(run)
    check_readable(store)


def two_starts(ground: Ground) -> None:
    """Two pages and a terminal start runs in the same moment: one trains, the others are told who does."""
    runs = [ground.create(f"start-{number}", max_steps=3) for number in range(3)]
    code = (
        "import sys\nfrom qlora_gui.errors import UserError\nfrom qlora_gui.runs import launch\n"
        "from qlora_gui.runs.store import RunStore\nstore = RunStore(sys.argv[1])\n"
        "try:\n    launch.start(store.get(sys.argv[2]), store)\nexcept UserError as error:\n    sys.exit(f'told: {error}')"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(ground.store.root), run.id], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for run in runs
    ]
    told = [child.communicate(timeout=90)[1] for child in children]
    check(sorted(child.returncode for child in children) == [0, 1, 1], f"{told}")
    check(sum("told: The run 'start-" in text for text in told) == 2, f"who has it is not said: {told}")
    [one] = [run for run in runs if run.events()[0] or run.is_locked()]
    check(ended(one) == "finished", one.log_tail(5))


def clock_jumps(ground: Ground) -> None:
    """The clock was set back or forth since the run was made: states are those of before."""
    import os

    run = ground.create()
    jump = ground.dice.choice([-1, 1]) * ground.dice.uniform(60, 10_000_000)
    moment = time.time() + jump
    os.utime(run.path / "run.json", (moment, moment))
    check(run.state() == "died", f"never started, made at another time, it is {run.state()}")
    ground.start(run)
    check(run.state() == "running", f"it is {run.state()}")
    check(ended(run) == "finished", run.log_tail(5))
    finish(ground, run)


def no_room_for_two(ground: Ground) -> None:
    """A run whose name is taken by another program in the same moment: one is made, the other told."""
    made, told = [], []

    def create() -> None:
        try:
            made.append(
                RunStore(ground.store.root).create(make(KNOBS | {"base_model": str(ground.base), "name": "same"}))
            )
        except UserError as error:
            told.append(str(error))

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(len(made) == 1 and len(told) == 5 and all("already a run" in text for text in told), f"{made} {told}")
