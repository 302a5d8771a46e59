"""Diagnostics: why a run may go wrong, is going wrong, or went wrong; each finding with its evidence and a fix.

A check is a function from `Seen` to a `Finding` or None: to add one, write it and put it into its file's CHECKS.
"""

from collections.abc import Sequence
from typing import Any

from qlora_gui.config import RunConfig
from qlora_gui.diagnostics import adapter, answers, curves, data, settings
from qlora_gui.diagnostics.evidence import Seen, Values
from qlora_gui.diagnostics.finding import Finding, examine
from qlora_gui.memory.estimate import MemoryPlan
from qlora_gui.memory.model_shape import Shape
from qlora_gui.runs.events import Event

__all__ = ["Finding", "after", "before", "during"]


def before(
    config: RunConfig, shape: Shape | None = None, facts: Values | None = None, memory: MemoryPlan | None = None
) -> list[Finding]:
    """What settings, and as far as they are given data, base and memory plan, say before a run starts; worst first."""
    return examine(Seen(config, shape, facts or {}, memory), settings.CHECKS + data.CHECKS)


def during(config: RunConfig, events: Sequence[Event]) -> list[Finding]:
    """What the events of a run say, whether it still trains or has ended; worst first."""
    return examine(_of_run(config, events), data.CHECKS + curves.CHECKS)


def after(config: RunConfig, events: Sequence[Event], evaluation: Values | None) -> list[Finding]:
    """All findings on a run: settings, data, curves, and its adapter where it was evaluated; worst first."""
    checks = adapter.CHECKS + answers.CHECKS + curves.CHECKS + data.CHECKS + settings.CHECKS
    return examine(_of_run(config, events, evaluation or {}), checks)


def _of_run(config: RunConfig, events: Sequence[Event], evaluation: Values | None = None) -> Seen:
    seen = Seen(config, events=events, evaluation=evaluation or {})
    facts: dict[str, Any] = seen.event("data").get("facts") or {}
    return Seen(config, facts=facts, events=events, evaluation=evaluation or {})
