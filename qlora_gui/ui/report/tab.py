"""Report: choose runs, read the report on them in the page, and take it along as Markdown or as one HTML file."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.files import told, write_whole
from qlora_gui.report import RENDERERS, written
from qlora_gui.report import html as pages
from qlora_gui.report.blocks import Block
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import actions, links
from qlora_gui.ui.rendering import html
from qlora_gui.ui.runs import index
from qlora_gui.ui.streaming import streams
from qlora_gui.ui.theme import RAW, TICK_SECONDS

_EMPTY = html.empty("No runs yet. Open Train and press Start: the demo is filled in already.")
_HINT = html.empty("Press Write the report: it is made from what the runs' folders hold, and takes a moment.")
_SMALL: dict[str, Any] = {"size": "md", "min_width": 110, "scale": 0}
# In the page the report takes the page's colours and letters, and keeps its own tables and lists.
_HERE = """<style>
.gradio-container .report { --ink: var(--body-text-color); --soft: var(--body-text-color-subdued); --ground: transparent;
  --line: var(--border-color-primary); --tint: var(--background-fill-secondary); --accent: var(--primary-600);
  font-family: inherit; padding: 8px 0 24px; margin: 0; }
.gradio-container .report :is(table, tr) { border: 0; }
.gradio-container .report :is(th, td) { border: 0; border-bottom: 1px solid var(--line); padding: 5px 14px 5px 0; }
.gradio-container .report ul { list-style: disc; }
.gradio-container .report a { margin: 0; }
</style>"""


def tab(store: RunStore, link: gr.State) -> None:
    """Draw the tab and wire it."""
    empty = gr.HTML(_EMPTY, elem_id="no-report")
    with gr.Column(visible=False, elem_classes="tight") as room:
        chosen = gr.Dropdown(
            [], value=[], multiselect=True, label="Runs to report on (none chosen: all)", elem_id="report-runs"
        )
        with gr.Row(elem_classes=["tight", "actions"]):
            write = gr.Button("Write the report", variant="primary", elem_id="write-report", **_SMALL)
            as_markdown = gr.DownloadButton("Download .md", visible=False, elem_id="report-md", **_SMALL)
            as_page = gr.DownloadButton("Download .html", visible=False, elem_id="report-html", **_SMALL)
        status = gr.HTML(elem_id="report-status")
        shown = gr.HTML(_HINT, elem_id="report")
    seen = gr.State("")

    def refresh(before: str, picked: list[str]) -> Any:
        ids = [one.id for one in index.glance(store).found]
        now = repr(ids)
        if now == before:
            return gr.skip()
        kept = [run_id for run_id in picked if run_id in ids]
        return {
            seen: now,
            empty: gr.update(visible=not ids),
            room: gr.update(visible=bool(ids)),
            chosen: gr.update(choices=ids, value=kept),
        }

    def follow(link: links.Link, picked: list[str]) -> Any:
        return link["runs"] if link["tab"] == "report" and link["runs"] else picked

    @streams
    def make(picked: list[str]) -> Iterator[dict[Any, Any]]:
        yield {status: html.hint("Reading the folders…")}
        try:
            blocks = written(store, picked)
        except UserError as error:
            actions.warn(error)
            yield {status: html.faults([str(error)])}
            return
        try:
            files = {as_markdown: _kept(as_markdown, blocks, ".md"), as_page: _kept(as_page, blocks, ".html")}
            buttons, said = {button: gr.update(value=file, visible=True) for button, file in files.items()}, ""
        except UserError as error:  # it can be read all the same
            buttons = dict.fromkeys((as_markdown, as_page), gr.update(visible=False))
            said = html.faults([str(error)])
        yield {status: said, shown: _HERE + pages.body(blocks), **buttons}

    @streams
    def make_if_asked(link: links.Link) -> Iterator[dict[Any, Any]]:
        """An address that names runs shows their report at once."""
        if link["tab"] == "report" and link["runs"]:
            yield from make(link["runs"])

    looking: dict[str, Any] = {
        "fn": refresh,
        "inputs": [seen, chosen],
        "outputs": [seen, empty, room, chosen],
    } | RAW
    made = [status, shown, as_markdown, as_page]
    gr.Timer(2 * TICK_SECONDS).tick(**looking)
    link.change(**looking).then(follow, [link, chosen], chosen, **RAW).then(make_if_asked, link, made, **RAW)
    write.click(make, chosen, made, trigger_mode="once", **RAW)


def _kept(button: gr.DownloadButton, blocks: list[Block], suffix: str) -> str:
    """The report as a file that the page may hand out, in Gradio's own cache: the same report is the same file."""
    body = RENDERERS[suffix](blocks)
    folder = Path(button.GRADIO_CACHE) / f"report-{hashlib.sha256(body.encode()).hexdigest()[:16]}"
    with told("The report to download", folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"report{suffix}", body)
    return str(folder / f"report{suffix}")
