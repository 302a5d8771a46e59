"""The line above the tabs: the device, and whether a run is live."""

from html import escape
from urllib.parse import quote

import gradio as gr

from qlora_gui import hardware
from qlora_gui.runs import scan
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import links
from qlora_gui.ui.rendering import html
from qlora_gui.ui.runs import index
from qlora_gui.ui.runs.summary import Summary
from qlora_gui.ui.theme import QUIET, TICK_SECONDS

# The run's name goes to its view without leaving the page, which would lose the form; its address is for a new tab.
_GO = """element.addEventListener('click', (event) => {
  const name = event.target.closest('a[data-run]');
  if (!name || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  trigger('click', {run: name.dataset.run});
});"""


def header(store: RunStore, link: gr.State) -> gr.HTML:
    """Draw the line; it stays up to date while the page is visible. A press on the live run's name goes to it."""
    line = gr.HTML(text(store), elem_id="topbar", js_on_load=_GO)
    seen = gr.State("")

    def look(seen: str) -> object:
        now = text(store, index.glance(store))
        return gr.skip() if now == seen else (now, now)

    def go(event: gr.EventData) -> links.Link:
        return links.to("train", event.run)

    line.click(go, None, link, **QUIET)
    gr.Timer(2 * TICK_SECONDS).tick(look, seen, [line, seen], **QUIET)
    return line


def text(store: RunStore, look: index.Look | None = None) -> str:
    """The line as HTML, of a look at all runs."""
    devices = " + ".join(map(str, hardware.devices()))
    if not hardware.settled():
        devices += " (torch is being asked whether it sees it)"
    live = [one for one in (look or index.now(store)).found if one.state in ("running", "stopping")]
    doing = ", ".join(map(_named, live)) or "idle"
    line = f'<div class="topbar"><h1>QLoRA</h1><span>{escape(devices)} · {doing}</span></div>'
    trouble = hardware.trouble()
    return line + html.note(trouble, bad=True) * bool(trouble) + _unseen(store)


def _unseen(store: RunStore) -> str:
    """What lies in the folder of the runs and cannot be shown; "" mostly."""
    said = [scan.why_unlisted(store.root)]
    if named := scan.left_out(store.root):
        said.append(
            f"Not shown, for the name is not UTF-8: {', '.join(named[:3])}{'…' * (len(named) > 3)}. Rename the folder."
        )
    return "".join(html.note(one, bad=True) for one in said if one)


def _named(run: Summary) -> str:
    """A live run's name, as a way to it, and its state."""
    address = f'href="?tab=train&amp;run={quote(run.id)}" data-run="{escape(run.id)}"'
    return f"<a {address}>{escape(run.id)}</a> is {run.state}"
