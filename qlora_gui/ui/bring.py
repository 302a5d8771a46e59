"""The panel that brings an adapter made elsewhere into the store: from the hub, or from a folder of this machine."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.runs import fetched
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import actions, links
from qlora_gui.ui.rendering import html
from qlora_gui.ui.streaming import streams
from qlora_gui.ui.theme import RAW


class BringPanel:
    """The panel, drawn folded, in the tab `tab` ("runs" or "compare"), where what was brought is chosen then."""

    def __init__(self, store: RunStore, tab: str):
        self._store, self._tab = store, tab
        with gr.Accordion("Add an adapter made elsewhere", open=False, elem_id=f"{tab}-bring"):
            self.named = gr.Textbox(
                label="Adapter",
                info="Hub id (owner/name or owner/name@revision) or folder. PEFT's and the tokenizer's files alone are taken.",
                elem_id=f"{tab}-bring-name",
                max_lines=1,
            )
            self.add = gr.Button("Add", size="sm", scale=0, min_width=110, elem_id=f"{tab}-bring-add")
            self.status = gr.HTML(elem_id=f"{tab}-bring-status")

    def wire(self, link: gr.State, chosen: Any) -> None:
        """Connect the events; in Compare what is `chosen` there stays so."""
        for event in (self.add.click, self.named.submit):
            outputs = [self.status, self.add, link]
            event(self.bring, [self.named, chosen], outputs, trigger_mode="once", **RAW)

    @streams
    def bring(self, named: str | None, chosen: list[str]) -> Iterator[list[Any]]:
        """Bring it, with a sentence of what came of it."""
        said: list[str] = []
        link: Any = gr.skip()
        yield [html.hint("Fetching…"), gr.update(interactive=False), link]
        try:
            folder = fetched.bring(named or "", self._store, said.append)
            kept = [name for name in chosen if name != folder.name] if self._tab == "compare" else []
            link = links.to(self._tab, *kept, folder.name)
            status = html.note(said[-1] if said else f"It is in {folder} already.")
        except UserError as error:
            actions.warn(error)
            status = html.faults([str(error)])
        yield [status, gr.update(interactive=True), link]
