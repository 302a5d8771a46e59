"""Resume, and the second press where a run would go on with other data or another base than it was begun with."""

from typing import Any

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.runs import launch
from qlora_gui.runs.changes import ChangedError
from qlora_gui.runs.event_file import mark
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import actions
from qlora_gui.ui.rendering import html

_SMALL: dict[str, Any] = {"size": "sm", "min_width": 110, "scale": 0}


class ResumeQuestion:
    """The question, hidden until it is to be asked; `prefix` begins the ids on the page."""

    def __init__(self, store: RunStore, prefix: str):
        self._store = store
        with gr.Row(elem_classes=["tight", "actions"], visible=False, elem_id=f"{prefix}-changed") as self.box:
            self.text = gr.HTML(elem_id=f"{prefix}-changed-what")
            self.sure = gr.Button("Resume anyway", variant="stop", elem_id=f"{prefix}-resume-changed", **_SMALL)
            self.keep = gr.Button("Leave it", elem_id=f"{prefix}-leave-changed", **_SMALL)

    def wire(self, button: gr.Button, which: Any, then: dict[str, Any], raw: Any) -> None:
        """Let `button` resume the run named by `which` (an id, or a list of one), then call `then`."""
        button.click(self.press, which, [self.box, self.text], **raw).then(**then)
        self.sure.click(self.press_again, which, self.box, **raw).then(**then)
        self.keep.click(lambda: gr.update(visible=False), None, self.box, **raw)

    def press(self, named: str | list[str]) -> dict[Any, Any]:
        """Resume, or ask first."""
        question = resume(self._store, _run_id(named))
        return {
            self.box: gr.update(visible=bool(question)),
            self.text: html.note(question, bad=True) if question else "",
        }

    def press_again(self, named: str | list[str]) -> Any:
        """Resume with what has changed."""
        resume(self._store, _run_id(named), changed=True)
        return gr.update(visible=False)


def _run_id(named: str | list[str]) -> str:
    return named if isinstance(named, str) else named[0]


def resume(store: RunStore, run_id: str, changed: bool = False) -> str:
    """Go on from the last checkpoint; gives what to ask first, where data or base are others than they were, else ""."""
    try:
        run = store.get(run_id)
        end = mark(run.events_file) or {}
        if end.get("changed") and not changed:  # only the trainer could see it, and has reported it
            return str(end.get("message"))
        launch.start(run, store, resume=True, changed=changed)
    except ChangedError as error:
        return str(error)
    except UserError as error:
        actions.warn(error)
    return ""
