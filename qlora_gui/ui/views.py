"""Pure functions: events and results -> sentences, tables and charts. Nothing here touches a file or a component."""

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_gui.config import RunConfig
from qlora_gui.data import row_stats
from qlora_gui.data.bad_rows import place
from qlora_gui.formatting import GB, clock, gigabytes, setting
from qlora_gui.inference.protocol import Answer
from qlora_gui.runs import event_text
from qlora_gui.runs.event_text import data_remarks, data_warnings
from qlora_gui.runs.events import Data, Ending, Eval, Stage, Step
from qlora_gui.runs.history import RunHistory
from qlora_gui.runs.store import ELSEWHERE, LIVE
from qlora_gui.ui.rendering import html
from qlora_gui.ui.rendering.chart import Series, line_chart

_ENDINGS = {
    "eos": "ended by itself (EOS)",
    "stop string": "ended at a stop text",
    "length": "cut at the length limit!",
    "stopped": "stopped by you",
}


def headline(run_id: str, state: str, history: RunHistory) -> str:
    """`brave-otter · running · step 120 of 480 · 6:12 left`, as HTML with a progress bar."""
    step, end = history.latest(Step), history.latest(Ending)
    words, done = [state], 0
    if step:
        done = max(step.step, end.step if end and state not in LIVE else 0)
        words.append(f"step {done} of {step.max_steps}")
    if step and state == "running" and done < step.max_steps:
        words.append(f"{clock(step.eta or 0)} left")
    line = " · ".join(html.escape(word) for word in words)
    share = 1.0 if state == "finished" else done / max(step.max_steps, 1) if step else 0.0
    bar = "" if state == ELSEWHERE else html.bar(share)
    return f'<div class="headline"><b>{html.escape(run_id)}</b> <span>· {line}</span></div>{bar}'


def stage(state: str, history: RunHistory) -> str:
    """What a live run is doing right now, in words."""
    if state == "stopping":
        return "Stopping: finishing this step, then saving the adapter."
    event = history.latest(Stage)
    if state not in LIVE:
        return ""
    return f"{event.text}…" if event else "Starting the training process…"


def tiles(history: RunHistory) -> str:
    """The latest numbers of a run."""
    step, held = history.latest(Step), history.latest(Eval)
    if not step:
        return ""
    values = [("training loss", number(step.loss, 3))]
    if held:
        values.append((f"held-out loss, step {held.step}", number(held.loss, 3)))
    values.append(("learning rate", number(step.learning_rate, 1, "e")))
    values.append(("tokens/s", number(step.tokens_per_second, 0)))
    values.append(("memory", gigabytes(step.memory or 0)))
    return html.tiles(values)


def notes(history: RunHistory) -> str:
    """What a run has remarked since it was last started."""
    return "".join(html.hint(note.text) for note in history.notes)


def skipped_lines(history: RunHistory) -> str:
    """That lines of the run's events were skipped, as a box; that they are a sample, in small print."""
    skipped, thinned = event_text.skipped_lines(history), event_text.thinned_kinds(history)
    return html.note(*skipped, bad=True) * bool(skipped) + "".join(map(html.hint, thinned))


def curves(history: RunHistory) -> str:
    """Loss, learning rate and memory of one run."""
    loss = line_chart(
        "Loss",
        [
            Series("training", history.points(Step, "loss")),
            Series("held-out", history.points(Eval, "loss"), dashed=True, dotted=True),
        ],
        height=190,
    )
    rate = line_chart("Learning rate", [Series("", history.points(Step, "learning_rate"))], height=70)
    memory = [(step, value / GB) for step, value in history.points(Step, "memory")]
    return f'{loss}<div class="two">{rate}{line_chart("Memory, GB", [Series("", memory)], height=70)}</div>'


def numbers(history: RunHistory) -> str:
    """The numbers of the charts as a table, newest first."""
    held = {event.step: event.loss for event in history.by_step(Eval)}
    steps = {event.step: event for event in history.by_step(Step)}
    rows = []
    for step in sorted(held.keys() | steps.keys(), reverse=True)[:200]:
        event = steps.get(step) or Step(step=step, max_steps=0, loss=None)  # measured, and not logged
        rows.append(
            (
                step,
                number(event.loss, 4),
                number(held.get(step), 4),
                number(event.learning_rate, 2, "e"),
                number(event.grad_norm, 2),
                number(event.tokens_per_second, 0),
                f"{event.memory / GB:.2f}" if event.memory else "",
            )
        )
    head = ("step", "loss", "held-out loss", "learning rate", "gradient", "tokens/s", "memory, GB")
    return html.table(head, rows, numbers=range(7)) if rows else html.hint("No step has been logged yet.")


def data_summary(history: RunHistory) -> str:
    """What became of the rows, with the dropped ones by number and reason."""
    data = history.latest(Data)
    if data is None:
        return ""
    counts = (
        f"Data: {data.used:,} rows to train on · {data.held_out:,} held out · "
        f"{data.truncated:,} truncated · {data.dropped:,} dropped"
    )
    body = html.hint(counts) + dropped(data.dropped, data.dropped_rows)
    body += html.hint(" · ".join(row_stats.sentences(data.facts or {})))
    return body + row_remarks(vars(data)) + left_out(data.skipped or 0, data.skipped_rows)


def row_remarks(event: Mapping[str, Any]) -> str:
    """What else there is to know about the rows of a `data` event: warnings in a box, remarks in small print."""
    return html.note(*data_warnings(event)) + "".join(map(html.hint, data_remarks(event)))


def left_out(count: int, rows: Sequence[Mapping[str, Any]], title: str = "Why rows are left out") -> str:
    """Faulty rows with their reasons, folded up."""
    return html.listed(f"{title} ({count:,})", _faults(count, rows))


def faulty(count: int, rows: Sequence[Mapping[str, Any]]) -> str:
    """Faulty rows with their reasons in the open."""
    items = "".join(f"<li>{html.escape(fault)}</li>" for fault in _faults(count, rows))
    return (
        f'<div class="note bad faulty"><p>Rows that cannot be used ({count:,})</p><ul tabindex="0">{items}</ul></div>'
    )


def _faults(count: int, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each row; the file is named only where there are several."""
    files = {row.get("file") for row in rows}
    file = str(files.pop()) if len(files) == 1 else ""
    more = [f"and {count - len(rows):,} more"] if count > len(rows) else []
    return [f"{place(row, file)}: {row['reason']}" for row in rows] + more


def dropped(count: int, rows: Sequence[Mapping[str, Any]]) -> str:
    """Dropped rows with their reasons, folded up."""
    if not count:
        return ""
    listed = "".join(f"<li>row {html.escape(str(row['row']))}: {html.escape(str(row['reason']))}</li>" for row in rows)
    more = f"<li>and {count - len(rows):,} more</li>" if count > len(rows) else ""
    return f'<details class="hint"><summary>Why rows are dropped ({count:,})</summary><ul>{listed}{more}</ul></details>'


def outcome(
    state: str, history: RunHistory, log_end: str, can_resume: bool, has_adapter: bool, held_back: bool = False
) -> str:
    """A run that is over: how it ended, what it gained, and what to do next."""
    if state in LIVE:
        return ""
    if state == "queued" and held_back:
        what = "It is marked as waiting, but not by this folder's queue: it came from elsewhere, and nothing will start it."
        return html.note(what, "Take it out of the queue, and train its settings yourself if you trust them.", bad=True)
    if state == "queued":
        return html.note("It is waiting for the GPU and starts automatically, even with this page closed.")
    end = history.ending or Ending()
    resume = "Press Resume to go on from the last checkpoint." if can_resume else ""
    if state in ("finished", "stopped"):
        after = f" at step {end.step}" if state == "stopped" and end.step else ""
        took = f" in {clock(end.seconds)}" if end.seconds else ""
        next_step = "Compare it with the base." if has_adapter else ""
        return html.note(f"{state.capitalize()}{after}{took}. {end.message or gain(end)}", resume or next_step)
    if state == "failed":
        cause = end.message or "no reason was recorded"
        if (end.autopsy or {}).get("changes"):
            return html.note(f"Failed: {cause}", "Retry it with one of the changes below.", bad=True)
        hint = resume or "Fix the cause and train again; the settings are in Runs."
        return html.note(f"Failed: {cause}", "" if end.bug is False else "The log below says more.", hint, bad=True)
    tail = f"Last log line: {log_end}" if log_end else "The log is empty."
    hint = resume or "It had no checkpoint yet: train again."
    return html.note(
        "Died: the training process is gone without an error message "
        "(killed, out of memory, or the machine went down).",
        tail,
        hint,
        bad=True,
    )


def gain(end: Ending) -> str:
    """Losses before and after in a sentence."""
    before, after = end.loss_before, end.loss_after
    if before is None or after is None:
        return "No rows were held out, so there is no loss to compare."
    change = 100 * (after - before) / before if before else 0.0
    word = "lower" if change < 0 else "higher"
    verdict = f"{abs(change):.0f}% {word}" if abs(change) >= 0.5 else "no real change"
    return f"Held-out loss went from {before:.3f} (the base) to {after:.3f} (the adapter): {verdict}."


def differing(configs: Mapping[str, RunConfig]) -> list[list[str]]:
    """The knobs in which runs differ: rows of knob, then one value per run."""
    rows = []
    for name in RunConfig.model_fields:
        values = [setting(getattr(config, name)) for config in configs.values()]
        if name != "name" and len(set(values)) > 1:
            rows.append([name, *values])
    return rows


def knobs(config: RunConfig) -> list[list[str]]:
    """All knobs that are not empty, as rows of name and value."""
    return [[name, setting(value)] for name, value in config.model_dump().items() if value not in ("", None)]


def ending(answer: Answer) -> str:
    """How a column's answer ended, as HTML: `41 tokens · 14.2 tokens/s · ended by itself (EOS)`."""
    word = _ENDINGS.get(answer.ended, answer.ended)
    style = ' class="limit"' if answer.ended == "length" else ""
    rate = number(answer.tokens_per_second, 1)
    return f"{answer.tokens} tokens · {rate} tokens/s · <span{style}>{html.escape(word)}</span>"


def number(value: float | None, digits: int, style: str = "f") -> str:
    """A number with so many digits, or nothing."""
    return "" if value is None else f"{value:.{digits}{style}}"
