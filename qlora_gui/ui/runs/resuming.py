"""Resume, and the second press where a run would go on with other data or another base than it was begun with."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.runs import launch
from qlora_gui.runs.changes import ChangedError
from qlora_gui.runs.events import mark
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import actions
from qlora_gui.ui.rendering import html

_SMALL: dict[str, Any] = {"size": "sm", "min_width": 110, "scale": 0}


@dataclass
class Asking:
    """The question, hidden until it is to be asked."""

    box: gr.Row
    question: gr.HTML
    sure: gr.Button
    keep: gr.Button


def build(prefix: str) -> Asking:
    """Draw the question; `prefix` begins the ids on the page."""
    with gr.Row(elem_classes=["tight", "actions"], visible=False, elem_id=f"{prefix}-changed") as box:
        question = gr.HTML(elem_id=f"{prefix}-changed-what")
        sure = gr.Button("Resume all the same", variant="stop", elem_id=f"{prefix}-resume-changed", **_SMALL)
        keep = gr.Button("Leave it", elem_id=f"{prefix}-leave-changed", **_SMALL)
    return Asking(box, question, sure, keep)


def wire(asking: Asking, store: RunStore, button: gr.Button, which: Any, then: dict[str, Any], raw: Any) -> None:
    """Let `button` resume the run named by `which` (an id, or a list of one), then call `then`."""

    def press(named: str | list[str]) -> dict[Any, Any]:
        run_id = named if isinstance(named, str) else named[0]
        said = resume(store, run_id)
        return {asking.box: gr.update(visible=bool(said)), asking.question: html.note(said, bad=True) if said else ""}

    def press_again(named: str | list[str]) -> Any:
        resume(store, named if isinstance(named, str) else named[0], changed=True)
        return gr.update(visible=False)

    button.click(press, which, [asking.box, asking.question], **raw).then(**then)
    asking.sure.click(press_again, which, asking.box, **raw).then(**then)
    asking.keep.click(lambda: gr.update(visible=False), None, asking.box, **raw)


def resume(store: RunStore, run_id: str, changed: bool = False) -> str:
    """Go on from the last checkpoint; gives what to ask first, where data or base are others than they were, else ""."""
    try:
        run = store.get(run_id)
        end = mark(run.events_file) or {}
        if end.get("changed") and not changed:  # only the trainer could see it, and has said so
            return str(end.get("message"))
        launch.start(run, store, resume=True, changed=changed)
    except ChangedError as error:
        return str(error)
    except UserError as error:
        actions.warn(error)
    return ""
