"""A run in one line, read from its folder; `index` keeps it until the run's files have changed."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.evaluation import job
from qlora_gui.evaluation.verdict import LABELS
from qlora_gui.runs import base_names
from qlora_gui.runs import elsewhere as elsewheres
from qlora_gui.runs.events import Eval
from qlora_gui.runs.scan import Seen
from qlora_gui.runs.store import Run

UNREAD = "…"
COLUMNS = (
    "Run",
    "State",
    "Base",
    "Data",
    "Steps",
    "Held-out loss, base",
    "Held-out loss, now",
    "Change, %",
    "Verdict",
    "Created",
)


@dataclass(frozen=True)
class Summary:
    """What a table shows of a run. `config` is None when its run.json cannot be read, and of an adapter made elsewhere,
    which names its base as `base` and `revision` ("" where it does not)."""

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
    sweep: tuple[str, tuple[str, ...]] | None = None  # its name, and the knobs that vary in it
    read: bool = True  # else nothing is known yet but that it is there
    elsewhere: bool = False
    base: str = ""
    revision: str = ""

    @property
    def change(self) -> float | None:
        """From the loss before to the one after, in percent."""
        return 100 * (self.after - self.before) / self.before if self.before and self.after is not None else None

    @cached_property
    def text(self) -> str:
        """All cells, to be searched."""
        return " ".join(map(str, self.row())).casefold()

    def row(self) -> list[object]:
        """The cells of `COLUMNS`."""
        unknown = "(run.json is damaged)" if self.read else "…"
        base, data = (self.config.base_model, self.config.dataset) if self.config else (unknown, "")
        if self.elsewhere:
            base = self.base or "(not named)"
        return [
            self.id,
            f"queued, {self.place}." if self.place else self.state,
            base_names.last(base) if self.elsewhere else Path(base).name,
            Path(data).name,
            None if self.elsewhere else self.step,
            _rounded(self.before, 3),
            _rounded(self.after, 3),
            _rounded(self.change, 1),
            LABELS.get(self.verdict, ""),
            _made(self.made),
        ]


def _made(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OSError, OverflowError, ValueError):  # a file system may keep times that no calendar has
        return ""


def read(run: Run, seen: Seen) -> Summary:
    """One run, read from its folder."""
    history = run.history()
    try:
        config = run.config()
    except UserError:
        config = None
    elsewhere = run.is_elsewhere()
    base, revision = _base_of(run) if elsewhere else ("", "")
    evals = history.all(Eval)
    evaluated = job.result(run)
    return Summary(
        id=run.id,
        state=run.state(),
        config=config,
        step=history.step_reached,
        before=evals[0].loss if evals else None,
        after=evals[-1].loss if len(evals) > 1 else None,
        adapter=run.has_adapter(),
        checkpoint=run.last_checkpoint() is not None,
        place=0,
        verdict=evaluated.verdict.kind if evaluated else "",
        made=seen.made,
        sweep=run.sweep(),
        elsewhere=elsewhere,
        base=base,
        revision=revision,
    )


def _base_of(run: Run) -> tuple[str, str]:
    """What an adapter made elsewhere calls its base, and its revision; "" where its config cannot be read."""
    try:
        return base_names.resolved(*elsewheres.named_base(run.path))
    except UserError:
        return "", ""


def unread(seen: Seen) -> Summary:
    """What is known of a run before it is read."""
    state = "stopping" if seen.stopping else "running"
    state = state if seen.locked else "queued" if seen.queued else UNREAD
    return Summary(seen.id, state, None, 0, None, None, False, False, 0, "", seen.made, read=False)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
