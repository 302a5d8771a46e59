"""Disk: what is kept outside of the runs (quantized bases, uploads), where it lies, how large it is, and clearing it."""

import time
from html import escape
from typing import Any

import gradio as gr

from qlora_gui import cache
from qlora_gui.runs import uploads
from qlora_gui.runs.store import RunStore
from qlora_gui.ui.rendering import html
from qlora_gui.ui.theme import QUIET

_SMALL: dict[str, Any] = {"size": "sm", "min_width": 110, "scale": 0}


def build(store: RunStore) -> None:
    """Draw it, folded; it is read when it is unfolded."""
    with gr.Accordion("Disk: quantized bases and uploads that are kept", open=False, elem_id="disk") as box:
        told = gr.HTML(elem_id="disk-told")
        with gr.Row(elem_classes=["tight", "actions"]):
            clear = gr.Button("Clear…", visible=False, elem_id="disk-clear", **_SMALL)
        with gr.Row(elem_classes=["tight", "actions"], visible=False, elem_id="disk-confirm") as confirm:
            question = gr.HTML()
            sure = gr.Button("Clear them", variant="stop", elem_id="disk-sure", **_SMALL)
            keep = gr.Button("Keep them", **_SMALL)

    def look() -> dict[Any, Any]:
        found = cache.entries()
        files = uploaded(uploads.entries(store.named()), uploads.removed())
        return {told: listed(found) + files, clear: gr.update(visible=bool(found)), confirm: gr.update(visible=False)}

    def ask() -> dict[Any, Any]:
        size = _size(sum(entry.bytes for entry in cache.entries()))
        said = f"Delete {size} of quantized bases? Each is made again the next time it is needed."
        return {confirm: gr.update(visible=True), question: html.note(said, bad=True)}

    def remove() -> dict[Any, Any]:
        freed = cache.clear()
        left = " What is still listed is in use just now." if cache.entries() else ""
        updates = look()
        return updates | {told: html.note(f"{_size(freed)} freed.{left}") + updates[told]}

    shown = [told, clear, confirm]
    box.expand(look, None, shown, **QUIET)
    clear.click(ask, None, [confirm, question], **QUIET)
    keep.click(lambda: gr.update(visible=False), None, confirm, **QUIET)
    sure.click(remove, None, shown, concurrency_limit=1, **QUIET)


def listed(entries: list[cache.Entry]) -> str:
    """The kept bases as a table, with their sum and place."""
    if not entries:
        return html.hint("No quantized base is kept: the first training or comparison of a base writes one.")
    total = _size(sum(entry.bytes for entry in entries))
    where = f'<p class="hint">{total} in <code>{escape(str(cache.folder()))}</code></p>'
    return where + html.table(("base", "size"), [(entry.name, _size(entry.bytes)) for entry in entries], numbers=(1,))


def uploaded(entries: list[uploads.Upload], removed: list[tuple[str, float]]) -> str:
    """The uploads as a table, what keeps each, and what was removed lately; "" where there never was one."""
    gone = ", ".join(f"{name} ({time.strftime('%Y-%m-%d', time.localtime(when))})" for name, when in removed)
    body = html.hint(f"Uploads removed, for no run named them: {gone}.") if gone else ""
    if not entries:
        return body
    total = _size(sum(one.bytes for one in entries))
    rule = (
        f"an upload that no run names is removed {uploads.KEPT_DAYS} days after it came, or after {uploads.YOUNG_DAYS} where "
        f"all of them take more than {_size(uploads.MOST_BYTES)}"
    )
    where = f'<p class="hint">Uploads: {total} in <code>{escape(str(uploads.folder()))}</code>; {rule}</p>'
    rows = [(one.name, _size(one.bytes), f"{one.days:.0f} days", _users(one)) for one in entries]
    return where + html.table(("upload", "size", "age", "named by"), rows, numbers=(1, 2)) + body


def _users(one: uploads.Upload) -> str:
    if not one.runs:
        return "no run"
    more = f" and {len(one.runs) - 3:,} more" if len(one.runs) > 3 else ""
    return ", ".join(one.runs[:3]) + more


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 / 2 else f"{count / 2**20:.0f} MB"
