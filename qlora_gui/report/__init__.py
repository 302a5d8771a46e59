"""The report: what runs were for, what they measured, and what follows from it, written from their folders alone."""

from collections.abc import Sequence

from qlora_gui.report import collect, document, html, markdown
from qlora_gui.report.blocks import Block
from qlora_gui.runs.store import RunStore

RENDERERS = {".md": markdown.render, ".html": html.render}


def written(store: RunStore, run_ids: Sequence[str] = ()) -> list[Block]:
    """The report on these runs, or on all; to be rendered. Raises UserError for an unknown id, and without any run."""
    return document.blocks(collect.facts_of(store, run_ids))
