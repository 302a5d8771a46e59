"""The line above the tabs: the device, and whether a run is live."""

from html import escape
from urllib.parse import quote

import gradio as gr

from qlora_gui import hardware
from qlora_gui.runs.store import RunStore
from qlora_gui.ui.theme import QUIET, TICK_SECONDS


def header(store: RunStore) -> gr.HTML:
    """Draw the line; it stays up to date while the page is visible."""
    line = gr.HTML(text(store), elem_id="topbar")
    seen = gr.State("")

    def look(seen: str) -> object:
        now = text(store)
        return gr.skip() if now == seen else (now, now)

    gr.Timer(2 * TICK_SECONDS).tick(look, seen, [line, seen], **QUIET)
    return line


def text(store: RunStore) -> str:
    """The line as HTML."""
    devices = " + ".join(map(str, hardware.devices()))
    live = next((run for run in store.all() if run.is_locked()), None)
    doing = "idle"
    if live:
        doing = f'<a href="?tab=train&amp;run={quote(live.id)}">{escape(live.id)}</a> is {live.state()}'
    return f'<div class="topbar"><h1>QLoRA</h1><span>{escape(devices)} · {doing}</span></div>'
