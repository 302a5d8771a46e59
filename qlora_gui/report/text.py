"""How the report words numbers and runs: `[-0.51, -0.37]`, and "the 0.56B model with rank 20 (calm-lynx)"."""

from collections.abc import Sequence
from pathlib import Path

from qlora_gui.config import marked
from qlora_gui.report import comparability
from qlora_gui.report.facts import Experiment

_MOST = 3  # settings that are named in a sentence


def cut(text: str, most: int) -> str:
    """At most so many characters, and how many were left out."""
    left = len(text) - most
    return text if left <= 0 else f"{text[:most]}… [{left:,} more characters]"


def and_(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def shortened(text: str, experiment: Experiment) -> str:
    """Text of a run with the short names of its base and data in place of their paths on this machine."""
    if experiment.config is None:
        return text
    for path, name in ((experiment.config.base_model, experiment.base), (experiment.config.dataset, experiment.data)):
        text = text.replace(path, name) if Path(path).is_absolute() else text
    return text


def begun(text: str) -> str:
    """A sentence that begins with "the" or "there" with its capital; the id of a run stays as it is."""
    return f"T{text[1:]}" if text.startswith(("the ", "there ")) else text


def knob(name: str) -> str:
    """A knob's name as words."""
    return {"base_model": "the base", "dataset": "the data"}.get(name, name.replace("_", " "))


def called(experiment: Experiment, other: Experiment) -> str:
    """A run by what makes it differ from another, then its id: "the 0.56B model with rank 20 (calm-lynx)"."""
    mine, others = comparability.settings(experiment), comparability.settings(other)
    if not mine or not others:
        return experiment.id
    differ = [name for name in comparability.knobs() if mine[name] != others[name]]
    noun = _model(experiment, other) if "base_model" in differ else "the adapter"
    titled = marked("titled")
    named = [f"{knob(name)} {mine[name]}" for name in differ if name not in titled]
    if "dataset" in differ:
        named.insert(0, f"the data {mine['dataset']}")
    if not named:
        return experiment.id if noun == "the adapter" else f"{noun} ({experiment.id})"
    if len(named) > _MOST:
        named = [*named[: _MOST - 1], f"{len(named) - _MOST + 1} other settings"]
    return f"{noun} with {and_(named)} ({experiment.id})"


def _model(experiment: Experiment, other: Experiment) -> str:
    """A base by its size where that tells it from the other, else by its name."""
    return (
        f"the {experiment.size} model"
        if experiment.size and experiment.size != other.size
        else f"the base {experiment.base}"
    )
