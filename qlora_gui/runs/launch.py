"""Start, stop and find the child process that trains a run. It outlives the process that started it."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

import filelock
import psutil

from qlora_gui import hub, plain_files, torch_view
from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.runs import changes, checkpoints, gpus, scan, several
from qlora_gui.runs.events import Started
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.system import processes

MODULE = "qlora_gui.training"
LAUNCHER = "accelerate.commands.launch"
_START_SECONDS = (
    180.0  # on a machine that is very busy, or with accelerate before the trainer; one that ends is seen to
)
_OTHER_SECONDS = 40.0  # that a second start waits for the first


def child_environment() -> dict[str, str]:
    """The environment of a child that may compute on a card: `processes.environment`, and how torch numbers them."""
    mine = {name: value for name, value in processes.environment().items() if name != gpus.CARD_VARIABLE}
    return torch_view.numbering() | mine


class BusyError(UserError):
    """Another run has the GPU."""


def start(run: Run, store: RunStore, resume: bool = False, changed: bool = False) -> None:
    """Start training a run; returns when the child has taken the run's lock. `changed` resumes it also with other data
    or another base than it was begun with.

    Raises BusyError when another run of the store is live, ChangedError when data or base have changed, UserError when
    there is nothing to resume from, or when the child died at once.
    """
    try:
        # One start at a time, whoever asks: the second one finds the first one's run live.
        with store.starting(timeout=_OTHER_SECONDS):
            _start(run, store, resume, changed)
    except filelock.Timeout:
        raise BusyError("Another run is being started: try again in a moment.") from None
    except OSError as error:
        raise UserError(f"No run can be started in '{store.root}': {error.strerror or error}.") from None


def check_free(store: RunStore, run: Run | None = None, config: RunConfig | None = None) -> set[str]:
    """Raise BusyError where live runs of the store, other than this one, leave no GPU to one of `config`, and UserError
    where nobody can say which are there.

    Else gives the addresses of the cards that they hold. A run that was not given a single card holds all of them.
    """
    if why := scan.why_unlisted(store.root):
        raise UserError(why)
    live = [Run(entry.path) for entry in scan.scan(store.root) if (run is None or entry.id != run.id) and entry.locked]
    if not live:
        return set()
    held = {card: other for other in live for card in [_card_of(other)]}
    alone = config is None or config.num_processes > 1 or bool(config.accelerate_config)
    if None not in held and not alone and config is not None:
        device = gpus.chosen(config.gpu, {card for card in held if card})
        if device.address not in held and (config.gpu == gpus.CPU or len(gpus.gpus()) > 1):
            return {card for card in held if card}
        live = [held.get(device.address, live[0])]
    raise BusyError(f"The run '{live[0].id}' is {live[0].state()}: stop it or let it finish first.")


def has_room(store: RunStore, run: Run) -> bool:
    """Whether live runs leave a GPU to this one; for a damaged run.json, whether there are no live runs."""
    try:
        config = run.config()
    except UserError:
        config = None
    try:
        check_free(store, run, config)
        return True
    except UserError:
        return False


def _card_of(run: Run) -> str | None:
    """The address of the one card that a live run was given; None where it may use all."""
    started = run.history().latest(Started)
    card = started.card if started else None
    return card if isinstance(card, str) else None


def check_resume(run: Run, changed: bool = False) -> None:
    """Raise UserError where a run has no checkpoint that is whole, ChangedError (unless `changed`) where it would go on
    with other data or another base."""
    newest, wrong = checkpoints.sound(run.checkpoints)
    if newest is None:
        raise UserError(changes.no_checkpoint(run.id, wrong))
    if not changed:
        changes.check(run)


def _start(run: Run, store: RunStore, resume: bool, changed: bool) -> None:
    if run.is_locked():
        raise UserError(f"The run '{run.id}' is already running.")
    run.check_writable()
    config = run.config()
    taken = check_free(store, run, config)
    if resume:
        check_resume(run, changed)
    several = config.num_processes > 1 or bool(config.accelerate_config)
    alone = not several or config.gpu == gpus.CPU
    card = gpus.environment(config.gpu, taken) if alone else gpus.environment_of_several()
    run.stop_file.unlink(missing_ok=True)
    command = command_of(run, resume, changed)
    before = run.events()[1]
    with plain_files.open_to_write(run.log_file, append=True) as log:
        child = detached(command, log, card)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and not run.is_locked():
        if child.poll() is not None:
            if not any(event["kind"] == "started" for event in run.events(before)[0]):
                raise UserError(f"The training process of '{run.id}' ended at once: {run.log_tail(1) or 'no output'}")
            return
        time.sleep(0.05)


def command_of(run: Run, resume: bool, changed: bool = False) -> list[str]:
    """What trains a run: this package alone, or under accelerate where there are several processes.

    Raises UserError for an accelerate config that is not there, or that is not taken.
    """
    words = [MODULE, str(run.path), *(["--resume"] if resume else []), *([changes.FLAG] if changed else [])]
    config = run.config()
    if config.num_processes == 1 and not config.accelerate_config:
        return [sys.executable, "-m", *words]
    if config.accelerate_config:
        _refuse_strangers(config.accelerate_config, run)
    return [sys.executable, "-m", LAUNCHER, *several.launcher_words(config), "-m", *words]


def _refuse_strangers(named: str, run: Run) -> None:
    """Raise UserError for an accelerate config that came with a run or by an upload: strangers make those, too."""
    file = hub.local(named)
    if file and any(file.resolve().is_relative_to(folder.resolve()) for folder in (run.path.parent, hub.cache_dir())):
        raise UserError(
            f"The accelerate config '{named}' lies among runs or uploads, which strangers can make: copy it elsewhere "
            "once you have read it."
        )


def detached(
    command: Sequence[str], log: IO[bytes], more: Mapping[str, str] | None = None, secret: str = ""
) -> subprocess.Popen[bytes]:
    """Start a child that outlives this process, with `more` variables; its output goes into `log`.

    A `secret` is all that it reads on its stdin: no file, process list or child of its own has it.
    """
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if secret else subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=child_environment() | dict(more or {}),
        **processes.apart(),  # a Ctrl+C or a closed terminal is for the parent
    )
    if child.stdin:
        with contextlib.suppress(BrokenPipeError), child.stdin as pipe:  # it has ended already, as its caller will see
            pipe.write(secret.encode())
    threading.Thread(target=child.wait, daemon=True).start()  # else it stays a zombie for as long as we live
    return child


def find(run: Run) -> psutil.Process | None:
    """The process that trains this run, found by its command line, or None; of several the one that launched them."""
    trainers = processes_of(MODULE, run)
    ours = {process.pid for process in trainers}
    return next((process for process in trainers if process.info["ppid"] not in ours), None)


def processes_of(module: str, run: Run) -> list[psutil.Process]:
    """The living processes of a module of this program that were started for a run, by their command lines."""
    here = os.path.realpath(run.path)
    return [
        process
        for process in psutil.process_iter(["cmdline", "ppid"])
        if module in (words := process.info["cmdline"] or [])
        and any(os.path.basename(word) == run.id and os.path.realpath(word) == here for word in words)
    ]


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
