"""Several runs against each other: their curves, where they differ, how they ended; runs of a sweep by what varies."""

from collections.abc import Sequence
from typing import Any

from qlora_gui.formatting import setting
from qlora_gui.runs import sweep
from qlora_gui.runs.curves import Series
from qlora_gui.runs.event_text import not_all
from qlora_gui.runs.events import Eval, Step
from qlora_gui.runs.store import Run
from qlora_gui.ui import views
from qlora_gui.ui.rendering import html
from qlora_gui.ui.rendering.chart import line_chart
from qlora_gui.ui.runs import index
from qlora_gui.ui.runs.summary import COLUMNS, Summary
from qlora_gui.ui.train import form

_LOSSES = range(4, 8)  # columns of numbers in the table of runs


def render(runs: Sequence[Run], summaries: Sequence[Summary]) -> str:
    """Curves in one plot each, and tables; of a sweep grouped by the knobs that vary in it."""
    swept = _sweep_of(summaries)
    names = {summary.id: sweep.words(cell) for summary, cell in swept} or {run.id: run.id for run in runs}
    reading = {run.id: progress for run in runs if (progress := index.reading(run))}
    histories = {run.id: run.history() for run in runs if run.id not in reading}
    held = [Series(names[key], history.points(Eval, "loss"), dotted=True) for key, history in histories.items()]
    loss = [Series(names[key], history.points(Step, "loss")) for key, history in histories.items()]
    curves = line_chart("Held-out loss", held, height=200) + line_chart("Training loss", loss, height=200)
    curves += "".join(html.hint(f"{key}: {text}") for key, history in histories.items() for text in not_all(history))
    curves += "".join(html.hint(f"{key}: {text}") for key, text in reading.items())
    return _grid(swept) + curves if swept else curves + _differences(summaries) + _ends(summaries)


def _sweep_of(summaries: Sequence[Summary]) -> list[tuple[Summary, dict[str, Any]]]:
    """Every run with its cell, in the sweep's order; [] unless all are of one sweep."""
    sweeps = {summary.sweep for summary in summaries}
    first = next(iter(sweeps))
    if len(sweeps) != 1 or first is None or any(summary.config is None for summary in summaries):
        return []
    cells = [(summary, {name: getattr(summary.config, name) for name in first[1]}) for summary in summaries]
    return sorted(cells, key=lambda pair: pair[0].made)


def _grid(swept: Sequence[tuple[Summary, dict[str, Any]]]) -> str:
    """The sweep as a table, the lowest loss first, and what each knob does on average."""
    varies = list(swept[0][1])
    order = sorted(swept, key=lambda pair: (pair[0].after is None, pair[0].after or 0.0))
    rows = [[*(setting(value, "+") for value in cell.values()), *_ended(summary)] for summary, cell in order]
    head = [*map(form.label, varies), "State", *(COLUMNS[place] for place in (5, 6, 8)), "Run"]
    numbers = (len(varies) + 1, len(varies) + 2)
    ends = [(cell, summary.after) for summary, cell in swept if summary.after is not None]
    effects = "".join(_effect(ends, name, varies) for name in varies)
    title = '<h3 class="part">The sweep, by what varies</h3>'
    return title + html.table(head, rows, numbers) + effects


def _ended(summary: Summary) -> list[Any]:
    """State, losses, verdict and id."""
    cells = summary.row()
    return ["" if cell is None else cell for cell in (cells[1], cells[5], cells[6], cells[8], summary.id)]


def _effect(ends: Sequence[tuple[dict[str, Any], float]], name: str, varies: Sequence[str]) -> str:
    """Losses over a knob of numbers as a chart, one line per combination of the others; of other knobs the means."""
    means = sweep.by_value(ends, name)
    if not means:
        return ""
    label = form.label(name)
    if not all(isinstance(cell[name], (int, float)) and not isinstance(cell[name], bool) for cell, _ in ends):
        text = ", ".join(f"{value} {mean:.3f}" for value, mean in means.items())
        return html.hint(f"Mean held-out loss at the end by {label.lower()}, all else equal: {text}.")
    lines: dict[str, list[tuple[float, float]]] = {}
    for cell, loss in ends:
        others = sweep.words({knob: cell[knob] for knob in varies if knob != name})
        lines.setdefault(others, []).append((float(cell[name]), loss))
    series = [Series(others, sorted(spots), dotted=True) for others, spots in lines.items()]
    return line_chart(f"Held-out loss at the end by {label.lower()}", series, height=150, x_name=label)


def _differences(summaries: Sequence[Summary]) -> str:
    configs = {summary.id: summary.config for summary in summaries if summary.config}
    differ = views.differing(configs)
    if not differ:
        return html.hint("Their settings are the same.")
    return '<h3 class="part">Where their settings differ</h3>' + html.table(("setting", *configs), differ)


def _ends(summaries: Sequence[Summary]) -> str:
    rows = [["" if cell is None else cell for cell in summary.row()] for summary in summaries]
    return '<h3 class="part">How they ended</h3>' + html.table(COLUMNS, rows, _LOSSES)
