"""`--headless-sweep` and `--headless-queue`: many runs that wait for the GPU in turn."""

import sys
import time
from collections.abc import Sequence

from qlora_gui import hardware
from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.memory import cpu_guard, sweeps
from qlora_gui.memory.budget import Budget
from qlora_gui.runs import queue
from qlora_gui.runs.events import Ended
from qlora_gui.runs.store import LIVE, Run, RunStore
from qlora_gui.runs.sweep import Sweep, create, words

_POLL_SECONDS = 1.0
_GOING = ("queued", *LIVE)


def sweep(store: RunStore, definition: Sweep, budget: Budget, wait: bool = True) -> int:
    """Queue the runs of a sweep that fit into memory, and follow them to their end unless `wait` is off.

    Ctrl+C ends the following, not the runs. Returns 0 when all finished, 1 when one did not, 130 when interrupted.
    Raises UserError for bad input, and when none fits; then nothing is left behind.
    """
    for config in definition.configs:
        cpu_guard.check(config)
    cells = sweeps.planned(definition, budget)
    chosen = sweeps.fitting(cells)
    print(f"Sweep {definition.name}: {len(cells)} runs over {', '.join(definition.varies)}; memory is estimated")
    for cell in cells:
        refused = "refused, " if cell.refused else ""
        print(
            f"  {cell.config.name:<24} {words(cell.varied):<40} {refused}{cell.verdict_text[:1].lower() + cell.verdict_text[1:]}"
        )
    runs = create(store, definition, chosen)
    queue.add(store, runs)
    print(f"{len(runs)} runs wait in {store.root}; they go on without this terminal.", flush=True)
    return _followed(definition, runs) if wait else 0


def add(store: RunStore, config: RunConfig) -> int:
    """Make a run and let it wait for its turn. Returns 0. Raises UserError."""
    hardware.settle()
    cpu_guard.check(config)
    run = store.create(config)
    queue.add(store, [run])
    print(f"Run {run.id} waits in {run.path}: place {_place(store, run)} in the queue.")
    return 0


def show(store: RunStore) -> int:
    """Print who runs and who waits, and see that the queue is being served. Returns 0."""
    queue.ensure_starter(store)
    lines = [f"{run.state():<10} {run.id}" for run in store.all() if run.is_locked()]
    lines += [f"{number:>2}. waits  {run.id}" for number, run in enumerate(queue.waiting(store), 1)]
    lines += [
        f"held back  {run.id}: it was marked as waiting elsewhere, so nobody starts it"
        for run in queue.held_back(store)
    ]
    print("\n".join(lines) if lines else f"Nothing runs or waits in {store.root}.")
    return 0


def _place(store: RunStore, run: Run) -> int:
    return next((number for number, waiting in enumerate(queue.waiting(store), 1) if waiting.id == run.id), 0)


def _followed(definition: Sweep, runs: Sequence[Run]) -> int:
    """Print each run's states and how it ended; returns the exit code."""
    states: dict[str, str] = {}
    try:
        while True:
            for run in runs:
                state = run.state()
                if states.get(run.id) != state and state != "queued":
                    print(
                        f"{run.id} ({words(definition.cell(run.config()))}): {state}{_losses(run, state)}", flush=True
                    )
                states[run.id] = state
            if not any(state in _GOING for state in states.values()):
                break
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        print("The runs go on; see python app.py --headless-queue, or the page.", file=sys.stderr)
        return 130
    except UserError:  # a folder was deleted meanwhile
        return 1
    return 0 if all(state == "finished" for state in states.values()) else 1


def _losses(run: Run, state: str) -> str:
    end = run.history().latest(Ended)
    if state in _GOING or end is None or end.loss_before is None or end.loss_after is None:
        return ""  # a loss that was no number is null
    return f", held-out loss {end.loss_before:.4f} → {end.loss_after:.4f}"
