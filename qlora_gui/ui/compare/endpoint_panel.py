"""The switch that lets other programs ask the chosen columns, under this page's own address and token."""

from typing import Any

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.inference import client
from qlora_gui.serving.batching import Models
from qlora_gui.serving.server import Endpoint
from qlora_gui.ui import actions
from qlora_gui.ui.compare.columns import Room
from qlora_gui.ui.rendering import html
from qlora_gui.ui.theme import RAW

_ABOUT = (
    "Other programs (promptfoo, lm-eval, Open WebUI, an editor) can ask these columns through an API in OpenAI's form. It is for "
    "judging, not for traffic."
)
_GUESTS = "Others can reach this page, so it has no endpoint for programs: the owner starts one with qlora-gui serve."
_OFF = html.hint("Off.")


class EndpointPanel:
    """Its switch, and what to enter in the other program."""

    def __init__(self, endpoint: Endpoint, for_guests: bool):
        self.endpoint, self._for_guests = endpoint, for_guests
        with gr.Accordion("For other programs", open=False, elem_id="endpoint"):
            gr.HTML(html.hint(_GUESTS if for_guests else _ABOUT))
            self.switch = gr.Checkbox(
                label="Serve these columns", elem_id="endpoint-switch", visible=not for_guests, min_width=170
            )
            self.status = gr.HTML(_OFF, elem_id="endpoint-status", visible=not for_guests)

    def set(self, room: Room, given: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """Serve the chosen columns, or nothing any more."""
        try:
            self.endpoint.models = self._models(room, given) if given[self.switch] else None
        except UserError as error:
            actions.warn(error)
            return {self.switch: False, self.status: html.faults([str(error)])}
        return {self.status: self.text(request)}

    def _models(self, room: Room, given: dict[Any, Any]) -> Models:
        load = client.columns_of(*room.asked(given))
        return Models(load, [load.base_model, *given[room.chosen]])

    def look(self, request: gr.Request) -> dict[Any, Any]:
        """What is served now, for a page that is opened."""
        return {self.switch: self.endpoint.models is not None, self.status: self.text(request)}

    def text(self, request: gr.Request) -> str:
        """What another program needs to know."""
        models = self.endpoint.models
        if models is None:
            return _OFF
        host = request.headers.get("host", "127.0.0.1")
        rows = [
            ("Base URL", f"http://{host}/v1"),
            ("API key", "the token that ends the address printed in the terminal; none with --no-token"),
            ("Models", ", ".join(models.names)),
        ]
        served = html.hint("Other columns are served after switching it off and on again.")
        return html.table((), rows) + served

    def wire(self, room: Room, link: gr.State) -> None:
        """Connect the events; none where others can reach the page: what is not visible can be called all the same."""
        if self._for_guests:
            return

        def set_switch(given: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
            return self.set(room, given, request)

        both = [self.switch, self.status]
        self.switch.input(set_switch, room.inputs() | {self.switch}, both, **RAW)
        link.change(self.look, None, both, **RAW)
