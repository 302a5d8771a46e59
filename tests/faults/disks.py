"""Disks that are full, read-only or hold garbage."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qlora_gui.errors import UserError
from qlora_gui.evaluation import job
from qlora_gui.inference import adapter_file
from qlora_gui.preferences.votes import Column, Vote, VoteLog
from qlora_gui.runs import checkpoints, launch
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import Run, RunStore
from tests.faults.ground import (
    Ground,
    check,
    check_adapter,
    check_checkpoint,
    check_readable,
    ended,
    finish,
    losses,
    until,
)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of its own of so many bytes at a folder. Raises OSError where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"nothing can be mounted here: {done.stderr.strip()}")


def full(ground: Ground) -> None:
    """The disk fills up at a random moment: a sentence says so, what was whole stays, and with room Resume finishes."""
    with small_disk(ground.store.root, 48 << 20):
        older = ground.create("older", max_steps=4)
        ground.start(older)
        check(ended(older) == "finished", older.log_tail(5))
        run = ground.create()
        ground.start(run)
        moment = ground.dice.choice(["steps", "load", "save"])
        if moment == "steps":
            wanted = ground.dice.randrange(1, 20)
            until(lambda: max(losses(run), default=0) >= wanted or not run.is_live(), "a step")
        elif moment == "load":
            time.sleep(ground.dice.uniform(0, 5))
        else:
            until(lambda: max(losses(run), default=0) >= 22 or not run.is_live(), "the last steps")
        ballast = ground.store.root / "ballast"
        _fill(ballast, ground.dice.choice([0, 0, 4 << 10, 100 << 10]))
        state = ended(run)
        if state != "finished":
            check(state == "failed", f"its state is {state}: {run.log_tail(8)}")
            message = run.events()[0][-1]["message"]
            check("is full" in message, f"it does not say that the disk is full: {message}")
        check_adapter(older)
        check(older.has_adapter() and older.state() == "finished", "the older run has suffered")
        check_readable(ground.store)
        check_adapter(run)
        check_checkpoint(run)
        ballast.unlink()
        finish(ground, run)


def _fill(ballast: Path, leave: int) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            file.truncate(max(file.tell() - leave, 0))


def read_only(ground: Ground) -> None:
    """The folder turns read-only while a run trains: it fails with a sentence in its log, nothing is half; then it goes on."""
    with small_disk(ground.store.root, 64 << 20):
        run = ground.create()
        ground.start(run)
        wanted = ground.dice.randrange(1, 22)
        until(lambda: max(losses(run), default=0) >= wanted or not run.is_live(), "a step")
        # The trainer holds files open for writing, so the kernel refuses to remount: a read-only view is laid over it.
        _mount("--bind", str(ground.store.root), str(ground.store.root))
        _mount("-o", "remount,bind,ro", str(ground.store.root))
        state = ended(run)
        check(state in ("died", "failed", "finished"), f"its state is {state}")
        check_readable(ground.store)
        check_adapter(run)
        try:
            ground.create("another")
            check(False, "a run was made in a read-only folder")
        except UserError as error:
            check("writable" in str(error), f"it is not said what to do: {error}")
        subprocess.run(["umount", "-l", str(ground.store.root)], capture_output=True, check=True)
        check_checkpoint(run)
        finish(ground, run)


def garbage(ground: Ground) -> None:
    """Every file of a finished run in turn half written, emptied, or replaced: a clear state, and other runs intact."""
    run, other = (ground.create(name, max_steps=4, eval_fraction=0.1) for name in ("run", "other"))
    for one in (run, other):
        ground.start(one)
        check(ended(one) == "finished", one.log_tail(5))
    job.start([run], job.Settings(rows=4, max_new_tokens=4))
    until(lambda: not job.state(run).running, "an evaluation")
    kept = ground.folder / "kept"
    shutil.copytree(run.path, kept)
    files = sorted(path.relative_to(run.path) for path in run.path.rglob("*") if path.is_file())
    chosen = files if len(files) < 12 else ground.dice.sample(files, 12)
    for must in ("run.json", "events.jsonl", "adapter_model.safetensors", "adapter_config.json", "evaluation.json"):
        if Path(must) in files and Path(must) not in chosen:
            chosen.append(Path(must))
    for file in chosen:
        for damage in DAMAGES:
            damage(run.path / file, ground)
            _all_is_clear(ground.store, run, other, f"{file} after {damage.__name__}")
            shutil.rmtree(run.path)
            shutil.copytree(kept, run.path)
    check_adapter(run)


def _half(file: Path, ground: Ground) -> None:
    body = file.read_bytes()
    file.write_bytes(body[: ground.dice.randrange(len(body))] if body else b"")


def _empty(file: Path, ground: Ground) -> None:
    file.write_bytes(b"")


def _noise(file: Path, ground: Ground) -> None:
    file.write_bytes(ground.dice.randbytes(ground.dice.randrange(1, 5000)))


def _flipped(file: Path, ground: Ground) -> None:
    body = bytearray(file.read_bytes())
    if body:
        body[ground.dice.randrange(len(body))] ^= 1 << ground.dice.randrange(8)
    file.write_bytes(body)


def _wrong_json(file: Path, ground: Ground) -> None:
    file.write_text(
        ground.dice.choice(["[]", "null", '"text"', "{}", '{"kind": 3}\n', "[[[[", "1e999", '{"config": []}'])
    )


def _a_folder(file: Path, ground: Ground) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: list[Callable[[Path, Ground], None]] = [_half, _empty, _noise, _flipped, _wrong_json, _a_folder]


def _all_is_clear(store: RunStore, run: Run, other: Run, what: str) -> None:
    """Nothing raises; the other run is as it was; an adapter that is taken is the one that was saved."""
    try:
        check_readable(store)
    except UserError as error:
        check(False, f"{what}: the views raise {error}")
    check(other.state() == "finished", f"{what}: the other run is {other.state()}")
    check_adapter(other)
    job.result(run)
    job.state(run)
    run.last_checkpoint()
    with suppress(UserError):  # said in a sentence
        adapter_file.read(run.path)
    try:
        EventLog(run.events_file)
    except OSError as error:
        check(run.events_file.is_dir(), f"{what}: {error}")


def rotted(ground: Ground) -> None:
    """Files of the newest checkpoint rot (bits turned, cut, emptied, gone): Resume says so and takes the one before."""
    run = ground.create()
    ground.start(run)
    wanted = ground.dice.randrange(9, 22)
    until(lambda: max(losses(run), default=0) >= wanted or not run.is_live(), "a step")
    launch.kill(run)
    newest = run.last_checkpoint()
    check(newest, "there is no checkpoint")
    assert newest is not None
    files = sorted(file for file in newest.iterdir() if file.name != checkpoints.MARK)
    for file in ground.dice.sample(files, ground.dice.randrange(1, 4)):
        ground.dice.choice([_half, _empty, _flipped, lambda file, _: file.unlink()])(file, ground)
    found, wrong = checkpoints.sound(run.checkpoints)
    check(found != newest and len(wrong) >= 1, f"the damaged one counts as whole: {found}")
    if found is None:
        try:
            ground.start(run, resume=True)
            check(False, "it went on from nothing")
        except UserError as error:
            check("no intact checkpoint" in str(error), f"it is not said: {error}")
        return
    if run.state() == "finished":  # it was faster
        return
    finish(ground, run)
    told = [event["text"] for event in run.events()[0] if event["kind"] == "note"]
    check(any(f"goes on from {found.name}" in text for text in told), f"nobody says that {wrong}: {told}")


def full_of_votes(ground: Ground) -> None:
    """The disk fills up while votes are given: each is kept whole or refused with a sentence, and none is lost silently."""
    with small_disk(ground.store.root, 4 << 20):
        log, kept = VoteLog(ground.store.root), []
        _fill(ground.store.root / "ballast", ground.dice.randrange(200 << 10))
        for number in range(400):
            turns = [{"role": "user", "content": str(number)}]
            size = ground.dice.randrange(5000)
            columns = (Column("base"), Column("mine", "ab"))
            vote = Vote("s", str(number), turns, columns, (0, 1), 1, ("a" * size, "b"), (1, 1))
            try:
                log.add(vote)
                kept.append(str(number))
            except UserError as error:
                check("No space left" in str(error), f"why is not said: {error}")
                if ground.dice.random() < 0.05:
                    (ground.store.root / "ballast").unlink(missing_ok=True)
        check([one.prompt for one in log.read()] == kept, "a vote was lost, or half a one counts")


def half_lines(ground: Ground) -> None:
    """Writers killed in mid-line: what follows stands alone, and no whole line is lost."""
    run = ground.create()
    log = EventLog(run.events_file)
    told = 0
    for number in range(30):
        if ground.dice.random() < 0.3:
            with run.events_file.open("ab") as file:
                line = json.dumps({"t": 1.0, "kind": "step", "step": 99, "max_steps": 30, "loss": 1.0}).encode()
                file.write(line[: ground.dice.randrange(1, len(line))])
            log = EventLog(run.events_file)  # the next process
        log.append("step", step=number, max_steps=30, loss=1.0)
        told += 1
    seen = [event["step"] for event in run.events()[0] if event["kind"] == "step"]
    check([step for step in seen if step != 99] == list(range(told)), f"lines were lost: {seen}")
    check(os.path.getsize(run.events_file) > 0, "the file is empty")
