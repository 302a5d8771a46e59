"""What the panel of a run shows, as HTML: drawn once a second at most, for all pages that follow the run."""

import time
from functools import cached_property, lru_cache
from pathlib import Path

from qlora_gui.diagnostics import Finding
from qlora_gui.errors import UserError
from qlora_gui.runs import elsewhere, event_file, fetched
from qlora_gui.runs.history import RunHistory
from qlora_gui.runs.store import ELSEWHERE, Run
from qlora_gui.ui import evaluation_views, findings, memory_views, views
from qlora_gui.ui.rendering import html
from qlora_gui.ui.runs import index

_LOG_LINES = 60
_MOST_RUNS = 8


class Drawing:
    """One run as it was in one moment; what is drawn of it is made when it is first asked for.

    `face` and `log_size` change with what there is to draw: without and with the log.
    """

    def __init__(self, run: Run, state: str):
        self.run, self.state, self.live = run, state, state in views.LIVE
        events_size, self.log_size = (
            path.stat().st_size if path.exists() else 0 for path in (run.events_file, run.log_file)
        )
        self.reading = index.reading(run)
        self.face = f"{run.id} {state} {events_size} {self.reading}"
        self.can_resume = state != "finished" and run.last_checkpoint() is not None
        self.has_adapter = run.has_adapter()

    @cached_property
    def history(self) -> RunHistory:
        return RunHistory(event_file.tail(self.run.events_file)) if self.reading else self.run.history()

    @cached_property
    def log(self) -> str:
        return html.log(self.run.log_tail(_LOG_LINES))

    @cached_property
    def head(self) -> str:
        """Name, state and progress."""
        return views.headline(self.run.id, self.state, self.history)

    @cached_property
    def overview(self) -> str:
        """What it does or how it ended, whether it fits, its latest numbers."""
        doing = html.hint(views.stage(self.state, self.history)) if self.live else self._outcome()
        remarks = (
            html.hint(self.reading)
            + memory_views.summary(self.history)
            + views.notes(self.history)
            + views.skipped_lines(self.history)
        )
        return self._strange() + doing + remarks + views.tiles(self.history)

    @cached_property
    def data(self) -> str:
        return views.data_summary(self.history)

    @cached_property
    def plots(self) -> str:
        return "" if self.state == ELSEWHERE else views.curves(self.history)

    @cached_property
    def probes(self) -> str:
        return evaluation_views.timeline(self.history)

    @cached_property
    def numbers(self) -> str:
        return views.numbers(self.history)

    @cached_property
    def diagnosis(self) -> list[Finding]:
        """The findings on it."""
        return [] if self.reading else findings.of_run(self.run, self.history)

    def _strange(self) -> str:
        """Why nothing is written into this run, and perhaps not all of it is read."""
        try:
            self.run.check_writable()
        except UserError as error:
            return html.note(str(error), bad=True)
        return ""

    def _outcome(self) -> str:
        if self.state == ELSEWHERE:
            return _made_elsewhere(self.run)
        return views.outcome(
            self.state, self.history, self.run.log_tail(1), self.can_resume, self.has_adapter, self.run.is_held_back()
        )


def _made_elsewhere(run: Run) -> str:
    """What is known of an adapter that this program did not train, and what to do with it."""
    source = fetched.source(run.path)
    sentences = [f"Made elsewhere{f' (from {source})' if source else ''}: it has no training history here."]
    try:
        named, here = elsewhere.named_base(run.path)[0], elsewhere.base_here(run.path)[0]
    except UserError as error:
        return html.note(*sentences, str(error), bad=True)
    if not here:
        why = f"'{named}', a folder that is not on this machine" if named else "no base"
        sentences.append(f"It names {why}: choose one in Compare, and under Evaluate and Take along.")
    else:
        sentences.append(f"It names the base {named}" + (f", for which {here} is taken." if here != named else "."))
    if fault := elsewhere.why_no_weights(run.path):
        return html.note(*sentences, fault, bad=True)
    return html.note(
        *sentences,
        "Compare it with the base, or measure it on rows that you name under Evaluate, which it should not have been trained on.",
    )


def draw(run: Run) -> Drawing:
    """The run as it is now, or while its state is the same as it was up to a second ago."""
    return _draw(run.path, run.state(), int(time.monotonic()))


@lru_cache(_MOST_RUNS)
def _draw(path: Path, state: str, second: int) -> Drawing:
    return Drawing(Run(path), state)
