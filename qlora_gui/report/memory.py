"""The memory of a run as figures: what was predicted and what was measured, each said to be that."""

from collections.abc import Sequence
from dataclasses import replace

from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.memory import budget as budgets
from qlora_gui.memory import known_models
from qlora_gui.memory.budget import Budget
from qlora_gui.memory.estimate import gigabytes, plan
from qlora_gui.memory.model_shape import Shape
from qlora_gui.report.facts import Figure, Kind
from qlora_gui.runs.curves import by_step
from qlora_gui.runs.events import FINAL, Event, last

WHAT = "peak memory"
_CLOSED_FORM = "closed form from the base's shape, for the longest batch there can be"


def shape_of(config: RunConfig | None) -> Shape | None:
    """The base's shape as far as it is known without asking a hub."""
    try:
        return known_models.find(config, ask=False) if config else None
    except UserError:
        return None


def figures(config: RunConfig | None, shape: Shape | None, events: Sequence[Event]) -> tuple[Figure, ...]:
    """Predicted and measured, what says most first; either is missing where nothing is known. `config` is as it ran."""
    found = [*_died(events), *_tried(events), *_seen(events)]
    if not any(figure.kind == "predicted" for figure in found):
        found = [*_planned(config, shape, events), *found]
    return tuple(found)


def _died(events: Sequence[Event]) -> list[Figure]:
    """What a run that died of memory had been predicted, and what it held."""
    autopsy = (last(list(events), "started", *FINAL) or {}).get("autopsy")
    if not isinstance(autopsy, dict):
        return []
    told: tuple[tuple[Kind, str], ...] = (
        ("predicted", _CLOSED_FORM),
        ("measured", "torch's allocator, when it ran out of memory"),
    )
    return [
        Figure(WHAT, gigabytes(autopsy[kind]), kind, how) for kind, how in told if isinstance(autopsy.get(kind), int)
    ]


def _tried(events: Sequence[Event]) -> list[Figure]:
    """What the longest batch took before the first step, and what had been predicted for it."""
    event = last(list(events), "memory")
    if event is None:
        return []
    on = f" on {event['gpu']}" if event.get("gpu") else ""
    return [
        Figure(WHAT, gigabytes(event["predicted"]), "predicted", "closed form, for the run's own longest batch"),
        Figure(
            WHAT, gigabytes(event["measured"]), "measured", f"torch's allocator, two steps on the longest batch{on}"
        ),
    ]


def _seen(events: Sequence[Event]) -> list[Figure]:
    """The most that logged steps held."""
    held = [event["memory"] for event in by_step(events, "step") if isinstance(event.get("memory"), int)]
    if not held:
        return []
    sampled = ", a sample of all" if last(list(events), "thinned") else ""
    on_cpu = (last(list(events), "base") or {}).get("device", "cpu") == "cpu"
    how = "resident size of the training process" if on_cpu else "torch's allocator, peak of the whole process"
    return [Figure(WHAT, gigabytes(max(held)), "measured", f"{how}, the most of {len(held):,} logged steps{sampled}")]


def _planned(config: RunConfig | None, shape: Shape | None, events: Sequence[Event]) -> list[Figure]:
    """The plan of a run that says nothing of one itself."""
    if config is None or shape is None:
        return []
    budget = _budget(last(list(events), "base") or {})
    try:
        found = plan(config, shape, budget)
    except UserError:  # its target_modules name no linear of the base
        return []
    how = f"{_CLOSED_FORM}: {found.rows} x {found.length} tokens, checkpointing {found.checkpointing}"
    return [Figure(WHAT, gigabytes(found.total), "predicted", how)]


def _budget(base: Event) -> Budget:
    """The device that a run trained on, by its `base` event; this machine's where it never came so far."""
    here, name = budgets.here(), str(base.get("device", ""))
    number = 4 if base.get("dtype") == "float32" else 2
    if not name or name == here.gpu:
        return here
    if name == "cpu":
        return replace(here if here.kind == "cpu" else Budget("CPU", 0, 0, "cpu"), number=number)
    return Budget(name, 0, 0, "cuda", number=number)  # of another machine: only the total is asked for
