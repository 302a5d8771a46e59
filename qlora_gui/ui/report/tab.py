"""Report: choose runs, read the report on them in the page, and take it along as Markdown or as one HTML file."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.files import explained, write_whole
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


class ReportTab:
    """The tab's components, and what happens when they are used."""

    def __init__(self, store: RunStore):
        self.store = store
        self.empty = gr.HTML(_EMPTY, elem_id="no-report")
        with gr.Column(visible=False, elem_classes="tight") as self.panel:
            self.chosen = gr.Dropdown(
                [], value=[], multiselect=True, label="Runs to report on (none chosen: all)", elem_id="report-runs"
            )
            with gr.Row(elem_classes=["tight", "actions"]):
                self.write = gr.Button("Write the report", variant="primary", elem_id="write-report", **_SMALL)
                self.as_markdown = gr.DownloadButton("Download .md", visible=False, elem_id="report-md", **_SMALL)
                self.as_page = gr.DownloadButton("Download .html", visible=False, elem_id="report-html", **_SMALL)
            self.status = gr.HTML(elem_id="report-status")
            self.shown = gr.HTML(_HINT, elem_id="report")
        self.seen = gr.State("")

    def refresh(self, before: str, picked: list[str]) -> Any:
        """Updates when runs came or went."""
        ids = [run.id for run in index.glance(self.store).summaries]
        now = repr(ids)
        if now == before:
            return gr.skip()
        still_there = [run_id for run_id in picked if run_id in ids]
        return {
            self.seen: now,
            self.empty: gr.update(visible=not ids),
            self.panel: gr.update(visible=bool(ids)),
            self.chosen: gr.update(choices=ids, value=still_there),
        }

    def follow(self, link: links.Link, picked: list[str]) -> Any:
        """The runs that a link names."""
        return link["runs"] if link["tab"] == "report" and link["runs"] else picked

    @streams
    def make(self, picked: list[str]) -> Iterator[dict[Any, Any]]:
        """Write the report, show it, and offer its files."""
        yield {self.status: html.hint("Reading the folders…")}
        try:
            blocks = written(self.store, picked)
        except UserError as error:
            actions.warn(error)
            yield {self.status: html.faults([str(error)])}
            return
        buttons = {self.as_markdown: ".md", self.as_page: ".html"}
        try:
            files = {button: _cached_file(button, blocks, suffix) for button, suffix in buttons.items()}
            updates, message = {button: gr.update(value=file, visible=True) for button, file in files.items()}, ""
        except UserError as error:  # it can be read all the same
            updates = dict.fromkeys(buttons, gr.update(visible=False))
            message = html.faults([str(error)])
        yield {self.status: message, self.shown: _HERE + pages.body(blocks), **updates}

    @streams
    def make_if_asked(self, link: links.Link) -> Iterator[dict[Any, Any]]:
        """An address that names runs shows their report at once."""
        if link["tab"] == "report" and link["runs"]:
            yield from self.make(link["runs"])

    def wire(self, link: gr.State) -> None:
        """Connect the events."""
        refreshing: dict[str, Any] = {
            "fn": self.refresh,
            "inputs": [self.seen, self.chosen],
            "outputs": [self.seen, self.empty, self.panel, self.chosen],
        } | RAW
        drawn = [self.status, self.shown, self.as_markdown, self.as_page]
        gr.Timer(2 * TICK_SECONDS).tick(**refreshing)
        link.change(**refreshing).then(self.follow, [link, self.chosen], self.chosen, **RAW).then(
            self.make_if_asked, link, drawn, **RAW
        )
        self.write.click(self.make, self.chosen, drawn, trigger_mode="once", **RAW)


def _cached_file(button: gr.DownloadButton, blocks: list[Block], suffix: str) -> str:
    """The report as a file that the page may hand out, in Gradio's own cache: the same report is the same file."""
    body = RENDERERS[suffix](blocks)
    folder = Path(button.GRADIO_CACHE) / f"report-{hashlib.sha256(body.encode()).hexdigest()[:16]}"
    with explained("The report to download", folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"report{suffix}", body)
    return str(folder / f"report{suffix}")
