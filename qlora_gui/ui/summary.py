"""A run in one line, read from its folder; read again only when its files have changed."""

import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from qlora_gui.errors import UserError
from qlora_gui.judge import job
from qlora_gui.runs import queue
from qlora_gui.runs.config import RunConfig
from qlora_gui.runs.events import last
from qlora_gui.runs.store import YOUNG_SECONDS, Run, RunStore

WORDS = {"better": "better", "worse": "worse", "unclear": "not sure"}
COLUMNS = ("Run", "State", "Base", "Data", "Steps", "Loss before", "Loss after", "Change %", "Against its base", "Made")
KINDS = ("str", "str", "str", "str", "number", "number", "number", "number", "str", "str")


@dataclass(frozen=True)
class Summary:
    """What a table shows of a run. `config` is None when its run.json cannot be read."""

    id: str
    state: str
    config: RunConfig | None
    step: int
    before: float | None
    after: float | None
    adapter: bool
    checkpoint: bool
    place: int  # in the queue, 1 is next; 0 where it does not wait
    verdict: str  # better, worse or unclear; "" where it was not evaluated
    made: float

    def row(self) -> list[object]:
        """The cells of `COLUMNS`."""
        base, data = (self.config.base_model, self.config.dataset) if self.config else ("(run.json is damaged)", "")
        change = 100 * (self.after - self.before) / self.before if self.before and self.after is not None else None
        return [
            self.id,
            f"queued, {self.place}." if self.place else self.state,
            Path(base).name,
            Path(data).name,
            self.step,
            _rounded(self.before, 3),
            _rounded(self.after, 3),
            _rounded(change, 1),
            WORDS.get(self.verdict, ""),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(self.made)),
        ]


def summaries(store: RunStore) -> list[Summary]:
    """All runs, newest first."""
    places = {run.id: place for place, run in enumerate(queue.waiting(store), 1)}
    return [replace(summary(run), place=places.get(run.id, 0)) for run in store.all()]


def summary(run: Run) -> Summary:
    """One run; cached by the size and age of its events and evaluation, and by whether it lives or waits."""
    seen = (*_seen(run.events_file), *_seen(run.path / job.FILE), run.stop_file.exists(), run.queue_file.exists())
    # A young run changes its state without a word in its events.
    return _summary(run.path, seen, run.is_locked(), not 0 <= time.time() - run.created() < YOUNG_SECONDS)


def _seen(file: Path) -> tuple[int, int]:
    """Size and age of a file, to notice that it changed."""
    try:
        stat = file.stat()
        return stat.st_size, stat.st_mtime_ns
    except OSError:
        return 0, 0


@lru_cache(maxsize=1000)
def _summary(path: Path, seen: tuple[int, ...], locked: bool, old: bool) -> Summary:
    run = Run(path)
    events, _ = run.events()
    try:
        config = run.config()
    except UserError:
        config = None
    evals = [event for event in events if event["kind"] == "eval"]
    step = last(events, "step", "finished", "stopped")
    evaluated = job.result(run)
    return Summary(
        id=run.id,
        state=run.state(),
        config=config,
        step=step.get("step", 0) if step else 0,
        before=evals[0]["loss"] if evals else None,
        after=evals[-1]["loss"] if len(evals) > 1 else None,
        adapter=run.has_adapter(),
        checkpoint=run.last_checkpoint() is not None,
        place=0,
        verdict=evaluated["verdict"]["kind"] if evaluated else "",
        made=run.created(),
    )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
