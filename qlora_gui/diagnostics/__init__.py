"""Diagnostics: why a run may go wrong, is going wrong, or went wrong; each finding with its evidence and a fix.

A check is a function from `Seen` to a `Finding` or None: to add one, write it and put it into its file's CHECKS.
"""

from qlora_gui.config import RunConfig
from qlora_gui.diagnostics import adapter, answers, curves, data, settings
from qlora_gui.diagnostics.evidence import Seen, Values, sound_parts
from qlora_gui.diagnostics.finding import Finding, examine
from qlora_gui.memory.estimate import MemoryPlan
from qlora_gui.memory.model_shape import Shape
from qlora_gui.runs.history import RunHistory

__all__ = ["Finding", "after", "before", "during"]


def before(
    config: RunConfig, shape: Shape | None = None, facts: Values | None = None, memory: MemoryPlan | None = None
) -> list[Finding]:
    """What settings, and as far as they are given data, base and memory plan, say before a run starts; worst first."""
    return examine(Seen(config, shape, facts or {}, memory), settings.CHECKS + data.CHECKS)


def during(config: RunConfig, history: RunHistory) -> list[Finding]:
    """What the events of a run say, whether it still trains or has ended; worst first."""
    return examine(Seen(config, facts=history.facts, history=history), data.CHECKS + curves.CHECKS)


def after(config: RunConfig, history: RunHistory, evaluation: Values | None) -> list[Finding]:
    """All findings on a run: settings, data, curves, and its adapter where it was evaluated; worst first."""
    checks = adapter.CHECKS + answers.CHECKS + curves.CHECKS + data.CHECKS + settings.CHECKS
    return examine(Seen(config, facts=history.facts, history=history, parts=sound_parts(evaluation or {})), checks)
