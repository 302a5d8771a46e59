"""Which losses may be compared: of the same held-out rows, cut into the same tokens; and what differs between runs."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from qlora_gui import config as configs
from qlora_gui.config import RunConfig
from qlora_gui.report.facts import Experiment

# Knobs that change what a run costs, not what it learns.
_COST_ONLY = frozenset({"name", "gradient_checkpointing", "attention", "auto_fit"})
ALWAYS = ("rank", "alpha", "bias", "epochs")
SAME_LOSS = 1e-3  # nats a token: the base's losses on the same rows differ by less, whatever the batch


def knobs() -> list[str]:
    """The knobs that change what a run learns, in the form's order."""
    return [
        name
        for name, field in configs.fields().items()
        if name not in _COST_ONLY and configs.extra(field, "group") != "Logging"
    ]


def settings(one: Experiment) -> dict[str, str]:
    """A run's knobs that change what it learns, as texts; base and data by the names that tell them apart."""
    if one.config is None:
        return {}
    values = {name: plain(getattr(one.config, name)) for name in knobs()}
    return values | {"base_model": one.base, "dataset": one.data}


def differing(experiments: Sequence[Experiment]) -> list[str]:
    """The knobs in which runs differ; runs whose run.json cannot be read have no say."""
    known = [found for one in experiments if (found := settings(one))]
    return [name for name in knobs() if len({found[name] for found in known}) > 1]


def plain(value: Any) -> str:
    """A knob's value as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value) or "(empty)"


def rows_of(one: Experiment) -> Hashable | None:
    """What stands for the held-out rows a run measured its losses on; None where it measured none."""
    if one.config is None or not one.held_out():
        return None
    sums = tuple(sorted(value for name, value in one.fingerprint.items() if name != "name"))
    where = sums or (one.config.dataset, one.config.dataset_split)
    split = () if len(sums) > 1 else (one.config.eval_fraction, one.config.seed)  # of two files one is held out
    data = one.event("data")
    return where, split, data.get("format"), data.get("held_out"), one.config.system_prompt


def tokens_of(one: Experiment) -> tuple[Any, Any]:
    """How the base's tokenizer cuts those rows, as far as its folder tells: supervised tokens, vocabulary."""
    held_out = one.held_out()
    return held_out[-1].get("tokens") if held_out else None, one.event("base").get("vocabulary")


def base_of(one: Experiment) -> Hashable:
    """What stands for a run's base: its fingerprint, else its name."""
    told = one.evaluation.base.fingerprint if one.evaluation else None
    quantized = (one.config.quant_type, one.config.double_quant) if one.config else ()
    return told or one.event("base").get("fingerprint") or one.base, quantized


def same_rows(experiments: Sequence[Experiment]) -> list[list[Experiment]]:
    """Runs whose losses while training are of the same rows and tokens, in groups of two and more."""
    return _groups([one for one in experiments if rows_of(one)], _alike_while_training)


def evaluated_alike(experiments: Sequence[Experiment]) -> list[list[Experiment]]:
    """Runs evaluated on the same rows against the same base, in groups of two and more."""
    return _groups([one for one in experiments if one.evaluation], _evaluated_alike)


def _alike_while_training(one: Experiment, other: Experiment) -> bool:
    cut_alike = tokens_of(one) == tokens_of(other) and tokens_of(one)[0] is not None
    return rows_of(one) == rows_of(other) and (cut_alike or base_of(one) == base_of(other))


def _evaluated_alike(one: Experiment, other: Experiment) -> bool:
    first, second = one.evaluation, other.evaluation
    assert first and second
    return (
        base_of(one) == base_of(other)
        and (first.data.rows, first.data.tokens) == (second.data.rows, second.data.tokens)
        and abs(first.loss.base - second.loss.base) < SAME_LOSS
    )


def families(experiments: Sequence[Experiment]) -> list[tuple[str, list[Experiment]]]:
    """Runs that differ in one knob alone: the knob, and the runs in the order of its values."""
    found = []
    for name in differing(experiments):
        others = [knob for knob in knobs() if knob != name]
        groups: dict[tuple[str, ...], list[Experiment]] = {}
        for one in experiments:
            if values := settings(one):
                groups.setdefault(tuple(values[knob] for knob in others), []).append(one)
        for group in groups.values():
            if len({settings(one)[name] for one in group}) > 1:
                found.append((name, sorted(group, key=lambda one: _order(one.config, name))))
    return found


def _order(config: RunConfig | None, name: str) -> tuple[float, str]:
    value = getattr(config, name)
    return (value, "") if isinstance(value, (int, float)) else (0.0, plain(value))


def _groups(
    experiments: Sequence[Experiment], alike: Callable[[Experiment, Experiment], bool]
) -> list[list[Experiment]]:
    groups: list[list[Experiment]] = []
    for one in experiments:
        group = next((group for group in groups if alike(group[0], one)), None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    return [group for group in groups if len(group) > 1]
