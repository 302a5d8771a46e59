"""What a button does to a run. What a person can mend is shown as a message, never as a traceback."""

from html import escape

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.runs import launch
from qlora_gui.runs.config import RunConfig
from qlora_gui.runs.store import Run, RunStore


def warn(message: UserError | str) -> None:
    """Show one sentence at the corner of the page; it is escaped, for the page takes it as HTML."""
    gr.Warning(escape(str(message)), title="Not done", duration=12)


def stop(store: RunStore, run_id: str) -> None:
    """Ask the trainer to finish its step, save and end."""
    try:
        run = store.get(run_id)
        if run.is_live():
            run.request_stop()
    except UserError as error:
        warn(error)


def kill(store: RunStore, run_id: str) -> None:
    """End the trainer at once, without saving."""
    try:
        launch.kill(store.get(run_id))
    except UserError as error:
        warn(error)


def resume(store: RunStore, run_id: str) -> None:
    """Go on from the last checkpoint."""
    try:
        launch.start(store.get(run_id), store, resume=True)
    except UserError as error:
        warn(error)


def delete(store: RunStore, run_id: str) -> None:
    """Remove the run's folder."""
    try:
        store.delete(store.get(run_id))
    except UserError as error:
        warn(error)


def start(store: RunStore, config: RunConfig) -> Run:
    """Create a run and start training it. Raises UserError; then no folder is left behind."""
    for other in store.all():
        if other.is_locked():
            raise UserError(f"The run '{other.id}' is {other.state()}: stop it or let it finish first.")
    run = store.create(config)
    try:
        launch.start(run, store)
    except UserError:
        if not run.is_locked():
            store.delete(run)
        raise
    return run
