"""Disk: what is kept outside of the runs (quantized bases, uploads), where it lies, how large it is, and clearing it."""

import time
from html import escape
from typing import Any

import gradio as gr

from qlora_gui import cache
from qlora_gui.formatting import amount
from qlora_gui.runs import uploads
from qlora_gui.runs.store import RunStore
from qlora_gui.ui.rendering import html
from qlora_gui.ui.theme import QUIET

_SMALL: dict[str, Any] = {"size": "sm", "min_width": 110, "scale": 0}


class DiskPanel:
    """The panel, drawn folded; it is read when it is unfolded."""

    def __init__(self, store: RunStore):
        self._store = store
        title = "Disk: cached quantized models and uploads"
        with gr.Accordion(title, open=False, elem_id="disk") as self.box:
            self.contents = gr.HTML(elem_id="disk-contents")
            with gr.Row(elem_classes=["tight", "actions"]):
                self.clear = gr.Button("Clear…", visible=False, elem_id="disk-clear", **_SMALL)
            with gr.Row(elem_classes=["tight", "actions"], visible=False, elem_id="disk-confirm") as self.confirm:
                self.question = gr.HTML()
                self.sure = gr.Button("Clear", variant="stop", elem_id="disk-sure", **_SMALL)
                self.keep = gr.Button("Cancel", **_SMALL)

    def wire(self) -> None:
        """Connect the events."""
        outputs = [self.contents, self.clear, self.confirm]
        self.box.expand(self.look, None, outputs, **QUIET)
        self.clear.click(self.ask, None, [self.confirm, self.question], **QUIET)
        self.keep.click(lambda: gr.update(visible=False), None, self.confirm, **QUIET)
        self.sure.click(self.remove, None, outputs, concurrency_limit=1, **QUIET)

    def look(self) -> dict[Any, Any]:
        """List what is kept."""
        entries = cache.entries()
        files = uploaded(uploads.entries(self._store.named()), uploads.removed())
        return {
            self.contents: listed(entries) + files,
            self.clear: gr.update(visible=bool(entries)),
            self.confirm: gr.update(visible=False),
        }

    def ask(self) -> dict[Any, Any]:
        """Ask before anything is deleted."""
        size = amount(sum(entry.bytes for entry in cache.entries()))
        text = f"Delete {size} of cached quantized models? Each is made again the next time it is needed."
        return {self.confirm: gr.update(visible=True), self.question: html.note(text, bad=True)}

    def remove(self) -> dict[Any, Any]:
        """Delete the quantized bases."""
        freed = cache.clear()
        left = " The rest is in use." if cache.entries() else ""
        updates = self.look()
        return updates | {self.contents: html.note(f"{amount(freed)} freed.{left}") + updates[self.contents]}


def listed(entries: list[cache.Entry]) -> str:
    """The kept bases as a table, with their sum and place."""
    if not entries:
        return html.hint("No cached models: the first training or comparison of a base writes one.")
    total = amount(sum(entry.bytes for entry in entries))
    where = f'<p class="hint">{total} in <code>{escape(str(cache.folder()))}</code></p>'
    return where + html.table(("base", "size"), [(entry.name, amount(entry.bytes)) for entry in entries], numbers=(1,))


def uploaded(entries: list[uploads.Upload], removed: list[tuple[str, float]]) -> str:
    """The uploads as a table, what keeps each, and what was removed lately; "" where there never was one."""
    gone = ", ".join(f"{name} ({time.strftime('%Y-%m-%d', time.localtime(when))})" for name, when in removed)
    body = html.hint(f"Uploads removed, because no run named them: {gone}.") if gone else ""
    if not entries:
        return body
    total = amount(sum(upload.bytes for upload in entries))
    rule = (
        f"an upload that no run names is removed {uploads.KEPT_DAYS} days after it arrived, or after {uploads.YOUNG_DAYS} if "
        f"together they take more than {amount(uploads.MOST_BYTES)}"
    )
    where = f'<p class="hint">Uploads: {total} in <code>{escape(str(uploads.folder()))}</code>; {rule}</p>'
    rows = [(upload.name, amount(upload.bytes), f"{upload.days:.0f} days", _users(upload)) for upload in entries]
    return where + html.table(("upload", "size", "age", "named by"), rows, numbers=(1, 2)) + body


def _users(upload: uploads.Upload) -> str:
    if not upload.runs:
        return "no run"
    more = f" and {len(upload.runs) - 3:,} more" if len(upload.runs) > 3 else ""
    return ", ".join(upload.runs[:3]) + more
