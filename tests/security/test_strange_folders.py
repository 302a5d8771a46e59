"""Run folders and adapters that a stranger made: links, pipes and devices where this program reads, writes and deletes."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_gui import plain_files, report
from qlora_gui.errors import UserError
from qlora_gui.evaluation import job
from qlora_gui.inference.client import CompareClient, trained_on
from qlora_gui.preferences.votes import VoteLog
from qlora_gui.runs import launch, queue
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import run_view
from qlora_gui.ui.runs import index
from tests.adapters import made_adapter, made_run
from tests.security.attacks import Attempts

WRITTEN = (
    "train.log",
    "events.jsonl",
    "evaluate.log",
    "evaluate.jsonl",
    "evaluation.json",
    "stop",
    "queued",
    ".lock",
    ".evaluate.lock",
    ".reserve",
    ".saving",
    "checkpoints",
    "README.md",
)
READ = ("run.json", *WRITTEN, "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja")
KINDS = ("link to a file", "link to nothing", "link to a folder", "hard link", "pipe", "device")
SECRET = "the owner's secret\n"


class Outside:
    """What lies outside of a stranger's folder, and must stay as it is."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "victims" / "checkpoint-3").mkdir(parents=True)
        for place in ("victim", "victims/victim", "victims/checkpoint-3/victim"):
            (folder / place).write_text(SECRET)
        self.before = self.now()

    def now(self) -> dict[str, tuple[float, str]]:
        return {
            str(path.relative_to(self.folder)): (path.stat().st_mtime, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }

    def put(self, kind: str, at: Path) -> None:
        if at.is_dir() and not at.is_symlink():
            shutil.rmtree(at)
        at.unlink(missing_ok=True)
        if kind == "hard link":
            os.link(self.folder / "victim", at)
        elif kind == "pipe":
            os.mkfifo(at)
        else:
            target = {"link to a file": "victim", "link to nothing": "made", "link to a folder": "victims"}.get(kind)
            at.symlink_to(self.folder / target if target else "/dev/zero")


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    (tmp_path / "outside").mkdir()
    return Outside(tmp_path / "outside")


def at_once(do: Callable[[], Any], seconds: float = 20) -> Any:
    """What a call gives or the UserError that it raises; fails where it hangs or raises something else."""
    found: list[Any] = []

    def call() -> None:
        try:
            found.append(do())
        except UserError as error:
            found.append(error)
        except BaseException as error:
            found.append(AssertionError(f"raised {type(error).__name__}: {error}"))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "it hangs"
    if isinstance(found[0], AssertionError):
        raise found[0]
    return found[0]


@pytest.mark.attack("links, pipes and devices in a run's folder: written to, emptied, deleted through")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_or_deleted_through_a_strangers_folder(
    kind: str, store: RunStore, llama: Path, outside: Outside, attempt: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(store, llama, "given")
    monkeypatch.setattr(launch, "_START_SECONDS", 3.0)
    for name in WRITTEN:
        spare = store.root.parent / "spare"
        shutil.copytree(run.path, spare, symlinks=True)
        outside.put(kind, run.path / name)
        for do in (
            lambda: launch.start(run, store),
            lambda: launch.start(run, store, resume=True),
            lambda: queue.add(store, [run]),
            lambda: queue.leave(store, run),
            lambda: job.start([run]),
        ):
            refused = at_once(do)
            attempt(isinstance(refused, UserError), name)
            # A waiting mark of a strange kind is told as "queued already", before anything is opened.
            attempt(name in str(refused) or name in ("queued", "stop"), f"{name}: {refused}")
        at_once(run.request_stop)
        attempt(outside.now() == outside.before, name)
        assert at_once(lambda: store.delete(run)) is None
        attempt(outside.now() == outside.before and not run.path.exists(), name)
        spare.rename(run.path)


@pytest.mark.attack("links, pipes and devices in a run's folder: written to, emptied, deleted through")
def test_the_trainer_itself_writes_into_no_strange_folder(
    store: RunStore, llama: Path, outside: Outside, attempt: Attempts
) -> None:
    run = made_run(store, llama, "given")
    outside.put("link to a folder", run.checkpoints)
    command = [sys.executable, "-m", launch.MODULE, str(run.path), "--resume"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=launch.child_environment())
    attempt(done.returncode == 1 and "checkpoints' is a symbolic link" in done.stderr, done.stderr)
    attempt(outside.now() == outside.before, "checkpoints")


@pytest.mark.attack("links, pipes and devices in a run's folder: written to, emptied, deleted through")
def test_a_linked_run_is_read_and_only_its_link_deleted(
    store: RunStore, llama: Path, tmp_path: Path, attempt: Attempts
) -> None:
    other = RunStore(tmp_path / "elsewhere")
    real = made_run(other, llama, "real")
    (store.root).mkdir()
    (store.root / "linked").symlink_to(real.path)
    before = sorted(path.read_bytes() for path in real.path.rglob("*") if path.is_file())
    linked = store.get("linked")
    assert linked.state() == "failed"
    for do in (
        lambda: launch.start(linked, store, resume=True),
        lambda: queue.add(store, [linked]),
        lambda: job.start([linked]),
    ):
        attempt("is a symbolic link" in str(at_once(do)), "a linked run")
    assert at_once(lambda: store.delete(linked)) is None
    attempt(not (store.root / "linked").is_symlink(), "the link stays")
    attempt(sorted(path.read_bytes() for path in real.path.rglob("*") if path.is_file()) == before, "the run")


@pytest.mark.attack("links, pipes and devices in a run's folder: shown, or waited for by the page")
@pytest.mark.parametrize("kind", KINDS)
def test_the_page_neither_hangs_at_a_strangers_folder_nor_shows_what_is_elsewhere(
    kind: str, store: RunStore, llama: Path, outside: Outside, attempt: Attempts
) -> None:
    run = made_run(store, llama, "given")
    for name in READ:
        spare = store.root.parent / "spare"
        shutil.copytree(run.path, spare, symlinks=True)
        outside.put(kind, run.path / name)
        for look in (
            run.state,
            run.events,
            run.log_tail,
            run.config,
            run.queue_mark,
            run.last_checkpoint,
            lambda: job.state(run),
            lambda: job.result(run),
            lambda: queue.waiting(store),
            lambda: index.summaries(store),
            lambda: (lambda drawn: drawn.head + drawn.overview + drawn.log)(run_view.draw(run)),
            lambda: trained_on(run.path),
            lambda: "".join(render(report.written(store)) for render in report.RENDERERS.values()),
        ):
            seen = at_once(look)
            # A second name of the owner's own file says the same as a copy of it: there is nothing to tell them by.
            attempt(kind == "hard link" or SECRET.strip() not in str(seen), name)
        shutil.rmtree(run.path)
        spare.rename(run.path)


def test_what_is_strange_is_said(store: RunStore, llama: Path, outside: Outside) -> None:
    run = made_run(store, llama, "given")
    outside.put("link to a file", run.log_file)
    assert "train.log' is a symbolic link that leads out of its folder" in run.log_tail()
    assert "train.log' is a symbolic link" in str(at_once(lambda: launch.start(run, store)))
    assert "is a symbolic link" in run_view.draw(run).overview


@pytest.mark.attack("links, pipes and devices in an adapter: read by the worker")
def test_an_adapter_of_links_and_pipes_is_refused(
    llama: Path, tmp_path: Path, outside: Outside, attempt: Attempts
) -> None:
    adapter = made_adapter(llama, tmp_path / "adapter", 1, r=2, target_modules=["q_proj"])
    client = CompareClient()
    try:
        for kind in ("pipe", "link to a file", "device"):
            for name in ("chat_template.jinja", "tokenizer.json", "events.jsonl", "adapter_model.safetensors"):
                given = tmp_path / "given"
                shutil.copytree(adapter, given)
                outside.put(kind, given / name)
                asked = lambda given=given: client.columns(str(llama), "", [given])  # noqa: E731
                refused = at_once(asked, 60)
                attempt(isinstance(refused, UserError) and name in str(refused), f"{kind} {name}: {refused}")
                attempt(SECRET.strip() not in str(refused), name)
                shutil.rmtree(given)
    finally:
        client.close()


def test_links_of_the_hubs_cache_are_followed(llama: Path, tmp_path: Path) -> None:
    """Its snapshots hold links to the blobs beside them."""
    made = made_adapter(llama, tmp_path / "made", 1, r=2, target_modules=["q_proj"])
    model = tmp_path / "models--a--b"
    snapshot = model / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for number, file in enumerate(sorted(made.iterdir())):
        file.rename(model / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    plain_files.check_readable(snapshot)
    assert trained_on(snapshot)["base_model"] == str(llama)
    assert json.loads(plain_files.read_text(snapshot / "adapter_config.json"))["r"] == 2
    (snapshot / "stolen").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("x")
    with pytest.raises(plain_files.StrangeFile, match="leads out of its folder"):
        plain_files.check_readable(snapshot)


@pytest.mark.attack("links, pipes and devices in a run's folder: written to, emptied, deleted through")
def test_votes_and_the_queues_log_are_written_to_plain_files_only(
    store: RunStore, llama: Path, outside: Outside, attempt: Attempts
) -> None:
    run = made_run(store, llama, "given")
    outside.put("link to a file", store.root / queue.LOG)
    outside.put("link to nothing", store.root / "votes.jsonl")
    attempt(isinstance(at_once(lambda: VoteLog(store.root).take_back("x", False)), UserError), "votes.jsonl")
    attempt(isinstance(at_once(lambda: queue.add(store, [run])), UserError), queue.LOG)
    attempt(outside.now() == outside.before, "the adapters folder")
