"""What a button does to a run. What a person can fix is shown as a message, never as a traceback."""

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import gradio as gr

from qlora_gui import config as configs
from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.files import explained
from qlora_gui.runs import launch, queue
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import links


def warn(message: UserError | str) -> None:
    """Show one sentence at the corner of the page; it is escaped, for the page takes it as HTML."""
    gr.Warning(escape(str(message)), title="Not done", duration=12)


def stop(store: RunStore, run_id: str) -> None:
    """Ask the trainer to finish its step, save and end."""
    try:
        run = store.get(run_id)
        if run.is_live():
            with explained("The stop marker", run.path):
                run.request_stop()
    except UserError as error:
        warn(error)


def kill(store: RunStore, run_id: str) -> None:
    """End the trainer at once, without saving."""
    try:
        run = store.get(run_id)
        if not launch.kill(run) and run.is_locked():
            warn(f"No process of the run '{run.id}' is found on this machine: end it where it was started.")
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
    launch.check_free(store, config=config)
    run = store.create(config)
    try:
        launch.start(run, store)
    except UserError:
        if not run.is_locked():
            store.delete(run)
        raise
    return run


def enqueue(store: RunStore, config: RunConfig) -> Run:
    """Create a run and let it wait for the GPU. Raises UserError; then no folder is left behind."""
    run = store.create(config)
    try:
        queue.add(store, [run])
    except UserError:
        store.delete(run)
        raise
    return run


def leave_queue(store: RunStore, run_id: str) -> None:
    """Take a waiting run out of the queue."""
    try:
        queue.leave(store, store.get(run_id))
    except UserError as error:
        warn(error)


def move(store: RunStore, run_id: str, by: int) -> None:
    """Let a waiting run change its place: -1 is one earlier."""
    try:
        queue.move(store, store.get(run_id), by)
    except UserError as error:
        warn(error)


def again(store: RunStore, before_start: Callable[[], None], run_id: str, knobs: Mapping[str, Any]) -> Any:
    """Train a run anew, as it ran but for these knobs; gives the link to the new run.

    `before_start` frees what a training run may need.
    """
    try:
        run = store.get(run_id)
        as_it_ran = run.history().config_as_it_ran(run.config())
        config = configs.make(as_it_ran.model_dump() | {**knobs, "name": ""})
        before_start()
        return links.to("train", start(store, config).id)
    except UserError as error:
        warn(error)
        return gr.skip()
