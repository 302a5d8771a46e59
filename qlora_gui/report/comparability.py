"""Which losses may be compared: of the same held-out rows, cut into the same tokens; and what differs between runs."""

from collections.abc import Callable, Hashable, Sequence

from qlora_gui import config as configs
from qlora_gui.config import RunConfig
from qlora_gui.formatting import setting
from qlora_gui.report.facts import Experiment
from qlora_gui.runs.events import Base, Data, Eval

# Knobs that change what a run costs, not what it learns.
ALWAYS = ("rank", "alpha", "bias", "epochs")
SAME_LOSS = 1e-3  # nats per token: the base's losses on the same rows differ by less, whatever the batch


def knobs() -> list[str]:
    """The knobs that change what a run learns, in the form's order."""
    cost = configs.marked("cost")
    return [name for name in configs.fields() if name not in cost]


def settings(experiment: Experiment) -> dict[str, str]:
    """A run's knobs that change what it learns, as texts; base and data by the names that tell them apart."""
    if experiment.config is None:
        return {}
    values = {name: setting(getattr(experiment.config, name)) or "(empty)" for name in knobs()}
    return values | {"base_model": experiment.base, "dataset": experiment.data}


def differing(experiments: Sequence[Experiment]) -> list[str]:
    """The knobs in which runs differ; runs whose run.json cannot be read are left out."""
    known = [values for experiment in experiments if (values := settings(experiment))]
    return [name for name in knobs() if len({values[name] for values in known}) > 1]


def rows_of(experiment: Experiment) -> Hashable | None:
    """What stands for the held-out rows a run measured its losses on; None where it measured none."""
    if experiment.config is None or not experiment.history.held_out():
        return None
    sums = tuple(sorted(value for name, value in experiment.fingerprint.items() if name != "name"))
    where = sums or (experiment.config.dataset, experiment.config.dataset_split)
    # Of two files one is held out.
    split = () if len(sums) > 1 else (experiment.config.eval_fraction, experiment.config.seed)
    data = experiment.history.latest(Data)
    counts = (data.format, data.held_out) if data else (None, None)
    return where, split, *counts, experiment.config.system_prompt


def tokens_of(experiment: Experiment) -> tuple[int | None, int | None]:
    """How the base's tokenizer cuts those rows, as far as its folder tells: supervised tokens, vocabulary."""
    base = experiment.history.latest(Base)
    measured = [event for event in experiment.history.by_step(Eval) if event.loss is not None]
    return measured[-1].tokens if measured else None, base.vocabulary if base else None


def base_of(experiment: Experiment) -> Hashable:
    """What stands for a run's base: its fingerprint, else its name."""
    evaluated_on = experiment.evaluation and experiment.evaluation.base
    quantized = (experiment.config.quant_type, experiment.config.double_quant) if experiment.config else ()
    base = experiment.history.latest(Base)
    return (evaluated_on and evaluated_on.fingerprint) or (
        base.fingerprint if base else None
    ) or experiment.base, quantized


def same_rows(experiments: Sequence[Experiment]) -> list[list[Experiment]]:
    """Runs whose losses while training are of the same rows and tokens, in groups of two and more."""
    return _groups([experiment for experiment in experiments if rows_of(experiment)], _alike_while_training)


def evaluated_alike(experiments: Sequence[Experiment]) -> list[list[Experiment]]:
    """Runs evaluated on the same rows against the same base, in groups of two and more."""
    return _groups([experiment for experiment in experiments if experiment.evaluation], _evaluated_alike)


def _alike_while_training(experiment: Experiment, other: Experiment) -> bool:
    cut_alike = tokens_of(experiment) == tokens_of(other) and tokens_of(experiment)[0] is not None
    return rows_of(experiment) == rows_of(other) and (cut_alike or base_of(experiment) == base_of(other))


def _evaluated_alike(experiment: Experiment, other: Experiment) -> bool:
    first, second = experiment.evaluation, other.evaluation
    assert first and second
    return (
        base_of(experiment) == base_of(other)
        and (first.data.rows, first.data.tokens) == (second.data.rows, second.data.tokens)
        and abs(first.loss.base - second.loss.base) < SAME_LOSS
    )


def families(experiments: Sequence[Experiment]) -> list[tuple[str, list[Experiment]]]:
    """Runs that differ in one knob alone: the knob, and the runs in the order of its values."""
    result = []
    for name in differing(experiments):
        others = [knob for knob in knobs() if knob != name]
        groups: dict[tuple[str, ...], list[Experiment]] = {}
        for experiment in experiments:
            if values := settings(experiment):
                groups.setdefault(tuple(values[knob] for knob in others), []).append(experiment)
        for group in groups.values():
            if len({settings(experiment)[name] for experiment in group}) > 1:
                result.append((name, sorted(group, key=lambda experiment: _order(experiment.config, name))))
    return result


def _order(config: RunConfig | None, name: str) -> tuple[float, str]:
    value = getattr(config, name)
    return (value, "") if isinstance(value, (int, float)) else (0.0, setting(value))


def _groups(
    experiments: Sequence[Experiment], alike: Callable[[Experiment, Experiment], bool]
) -> list[list[Experiment]]:
    groups: list[list[Experiment]] = []
    for experiment in experiments:
        group = next((group for group in groups if alike(group[0], experiment)), None)
        if group is None:
            groups.append([experiment])
        else:
            group.append(experiment)
    return [group for group in groups if len(group) > 1]
