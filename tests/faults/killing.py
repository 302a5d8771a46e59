"""Processes killed at random moments."""

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from qlora_gui.errors import UserError
from qlora_gui.evaluation import job
from qlora_gui.inference import protocol
from qlora_gui.inference.client import CompareClient
from qlora_gui.inference.sampling import Decoding
from qlora_gui.runs import launch, queue
from tests.faults.ground import Ground, check, check_adapter, check_checkpoint, check_readable, ended, finish, until

ROOT = Path(__file__).parents[2]


def trainer(ground: Ground) -> None:
    """SIGKILL the trainer at a random moment: it died, its log is there, the checkpoint loads, Resume finishes."""
    run = ground.create()
    ground.start(run)
    if ground.dice.random() < 0.75:  # while it trains and saves; else while it loads
        until(lambda: any(e["kind"] == "step" for e in run.events()[0]) or run.state() == "finished", "a first step")
        time.sleep(ground.dice.uniform(0, 1.5))
    else:
        time.sleep(ground.dice.uniform(0, 6))
    launch.kill(run)
    check(run.state() in ("died", "finished"), f"its state is {run.state()}")
    check(run.state() == "finished" or run.log_file.exists(), "its log is gone")
    check(launch.find(run) is None, "it still lives")
    check_readable(ground.store)
    check_adapter(run)
    check_checkpoint(run)
    finish(ground, run)


def page(ground: Ground) -> None:
    """SIGKILL the page that started a run: training goes on, and a new page has everything."""
    run = ground.create()
    code = (
        "import sys\nfrom qlora_gui.runs import launch\nfrom qlora_gui.runs.store import RunStore\n"
        "from qlora_gui.serving.address import Address\nfrom qlora_gui.ui.app import launch_page\nstore = RunStore(sys.argv[1])\n"
        "if len(sys.argv) > 2:\n    launch.start(store.get(sys.argv[2]), store)\nlaunch_page(store, Address())"
    )

    def serve(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-u", "-c", code, str(ground.store.root), *words]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert child.stdout
        for line in child.stdout:
            if "The page is at" in line:
                return child
        raise AssertionError("the page did not open")

    first = serve(run.id)
    time.sleep(ground.dice.uniform(0, 2))
    first.send_signal(signal.SIGKILL)
    first.wait()
    check(run.is_live() or run.state() == "finished", f"the run is {run.state()} after its page was killed")
    second = serve()
    try:
        check(ended(run) == "finished", f"it did not finish: {run.log_tail(5)}")
        check_readable(ground.store)
    finally:
        second.kill()
        second.wait()
    finish(ground, run)


def worker(ground: Ground) -> None:
    """SIGKILL the compare worker in mid-answer: one sentence, and the next question is answered by a new one."""
    run = ground.create(max_steps=4)
    ground.start(run)
    check(ended(run) == "finished", run.log_tail(5))
    client = CompareClient()
    asked, sampled = [[{"role": "user", "content": "Where is my parcel?"}]] * 2, Decoding(max_new_tokens=200)
    try:
        client.columns(str(ground.base), "", [run.path])
        whole = list(client.answer(asked, sampled))
        moment = ground.dice.randrange(1, sum(isinstance(event, protocol.Text) for event in whole))
        try:
            for number, _ in enumerate(client.answer(asked, sampled)):
                if number == moment:
                    _kill_children("qlora_gui.inference.worker")
        except UserError as error:
            check("killed" in str(error), f"what happened is not said: {error}")
        else:
            check(False, "nobody noticed that the worker was killed")
        before, after = protocol.collect(whole, 2), protocol.collect(client.answer(asked, sampled), 2)
        texts = [[answer.text for answer in answers] for answers in (before, after)]
        check(texts[0] == texts[1], "the new worker answers otherwise")
    finally:
        client.close()


def evaluation(ground: Ground) -> None:
    """SIGKILL an evaluation: it is said, the earlier one stays whole, and the next one works."""
    run = ground.create(max_steps=4, eval_fraction=0.1)
    ground.start(run)
    check(ended(run) == "finished", run.log_tail(5))
    settings = job.Settings(rows=6, max_new_tokens=4)
    job.start([run], settings)
    until(lambda: not job.state(run).running, "the first evaluation")
    before = job.result(run)
    check(before, f"it was not evaluated: {job.state(run)}")
    job.start([run], settings)
    time.sleep(ground.dice.uniform(0, 6))
    _kill_children(job.MODULE)
    until(lambda: not job.state(run).running, "its end")
    check(job.result(run), "the earlier evaluation is gone")
    check(job.state(run).fault or job.state(run).share == 1.0, "nobody says that it was killed")
    job.start([run], settings)
    until(lambda: not job.state(run).running, "the third evaluation")
    after = job.result(run)
    check(after and before and after.loss == before.loss, "the next evaluation differs")


def starter(ground: Ground) -> None:
    """SIGKILL the queue's starter at a random moment, twice: every run is trained, once, one after the other."""
    runs = [ground.create(f"q{number}", max_steps=3) for number in range(3)]
    queue.add(ground.store, runs)
    for _ in range(2):
        time.sleep(ground.dice.uniform(0, 5))
        _kill_children(queue.MODULE, str(ground.store.root))
        queue.ensure_starter(ground.store)
    for run in runs:
        check(ended(run) == "finished", f"{run.id}: {run.state()} {run.log_tail(5)}")
    spans = sorted((run.events()[0][0]["t"], run.events()[0][-1]["t"]) for run in runs)
    check(all(a[1] <= b[0] for a, b in itertools.pairwise(spans)), f"two ran at once: {spans}")
    for run in runs:
        check(sum(e["kind"] == "started" for e in run.events()[0]) == 1, f"{run.id} was started twice")


def sleeper(ground: Ground) -> None:
    """The machine sleeps (SIGSTOP, later SIGCONT): the run is still running, goes on, and ends as ever."""
    run = ground.create()
    ground.start(run)
    time.sleep(ground.dice.uniform(0, 8))
    process = launch.find(run)
    if process is not None and run.is_locked():
        try:
            process.suspend()
            time.sleep(2)
            check(run.state() == "running", f"asleep it counts as {run.state()}")
            process.resume()
        except psutil.NoSuchProcess:
            pass
    check(ended(run) == "finished", run.log_tail(5))
    finish(ground, run)


def _kill_children(*words: str) -> None:
    """Kill those below this process whose command line has these words."""
    for process in psutil.Process().children(recursive=True):
        try:
            if set(words) <= set(process.cmdline()):
                process.kill()  # who started it waits for it, and shall see how it ended
        except psutil.NoSuchProcess:
            continue
    time.sleep(0.2)
