"""A sweep: knobs given as lists, and every combination of their values as a run."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_gui import config as configs
from qlora_gui import settings_yaml
from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.formatting import setting
from qlora_gui.references import ModelRef
from qlora_gui.runs.store import Run, RunStore, made_up_name

MOST_RUNS = 64


@dataclass(frozen=True)
class Sweep:
    """`varies` are the knobs that were given as lists, in their order; `configs` the grid, the last knob fastest."""

    name: str
    varies: tuple[str, ...]
    configs: tuple[RunConfig, ...]

    def cell(self, config: RunConfig) -> dict[str, Any]:
        """The varied settings of one of its runs."""
        return {name: getattr(config, name) for name in self.varies}


def is_list(name: str, value: Any) -> bool:
    """Whether a value of a knob is a list of values: for a knob that takes a list itself, a list of such."""
    if not isinstance(value, list):
        return False
    field = configs.fields().get(name)
    takes_lists = field is not None and list[str] in configs.types_of(field)
    return not takes_lists or any(isinstance(item, list) or item == "all-linear" for item in value)


def expand(values: Mapping[str, Any]) -> Sweep:
    """The grid of values of which some are lists. Raises UserError for none, too many, or a run that is not valid."""
    varied = {name: _distinct(name, value) for name, value in values.items() if is_list(name, value)}
    if not varied:
        raise UserError("Nothing varies: give a setting a list of values, like 'rank: [8, 16, 64]'.")
    if wrong := [name for name in varied if name in configs.marked("single")]:
        raise UserError(f"'{wrong[0]}' cannot vary: give the sweep one name.")
    count = 1
    for choices in varied.values():
        count *= len(choices)
    if count > MOST_RUNS:
        raise UserError(f"That would be {count:,} runs: a sweep may have {MOST_RUNS}, so give fewer values.")
    fixed = {name: value for name, value in values.items() if name not in varied}
    name = configs.make({"name": fixed.pop("name", "")}).name or made_up_name()
    made = []
    for number, cell in enumerate(itertools.product(*varied.values()), 1):
        mine = dict(zip(varied, cell, strict=True))
        try:
            config = configs.make(fixed | mine | {"name": f"{name}-{number}"})
            ModelRef.find(config.base_model, config.revision).check_revision()
            made.append(config)
        except UserError as error:
            raise UserError(f"With {words(mine)}: {error}") from None
    return Sweep(name, tuple(varied), tuple(made))


def _distinct(name: str, value: list[Any]) -> list[Any]:
    """The values without repetition. Raises UserError for an empty list."""
    if not value:
        raise UserError(f"The list of '{name}' is empty: give it values, or leave it out.")
    distinct: list[Any] = []
    for item in value:
        if item not in distinct:
            distinct.append(item)
    return distinct


def parse(text: str) -> dict[str, Any]:
    """Lines like `rank: 8, 16, 64` or `rank: [8, 16, 64]` as {knob: list}. Raises UserError."""
    try:
        lists = settings_yaml.parsed(text) if text.strip() else {}
        if isinstance(lists, dict):
            return {str(name).strip().replace("-", "_"): listed(value) for name, value in lists.items()}
    except ValueError as error:
        raise UserError(f"The settings to vary cannot be read: {error}.") from None
    raise UserError("Write one setting per line, with its values, like 'rank: 8, 16, 64'.")


def listed(value: Any) -> list[Any]:
    """The values that one names: `8, 16` is one text to YAML, so its parts are read once more."""
    if isinstance(value, list):
        return value
    return (
        [settings_yaml.parsed(part) for part in value.split(",") if part.strip()] if isinstance(value, str) else [value]
    )


def names_several(name: str, text: Any) -> bool:
    """Whether a text given for a knob is several values with commas between them; never for knobs of free text."""
    field = configs.fields()[name]
    free = str in configs.types_of(field) and configs.choices(field) is None
    return isinstance(text, str) and "," in text and not free


def words(cell: Mapping[str, Any]) -> str:
    """{"rank": 8, "bias": "all"} -> `rank 8, bias all`."""
    return ", ".join(f"{name.replace('_', ' ')} {setting(value, '+')}" for name, value in cell.items())


def by_value(ends: Sequence[tuple[Mapping[str, Any], float]], name: str) -> dict[str, float]:
    """The mean loss with each value of one knob, over those combinations of the others that have all its values.

    So a run that failed or was refused does not bias the comparison. {} where nothing can be compared.
    """
    values = list(dict.fromkeys(setting(cell[name], "+") for cell, _ in ends))
    rest: dict[str, dict[str, float]] = {}
    for cell, loss in ends:
        others = words({knob: value for knob, value in cell.items() if knob != name})
        rest.setdefault(others, {})[setting(cell[name], "+")] = loss
    whole = [losses for losses in rest.values() if len(losses) == len(values)]
    if len(values) < 2 or not whole:
        return {}
    return {value: sum(losses[value] for losses in whole) / len(whole) for value in values}


def create(store: RunStore, sweep: Sweep, chosen: Sequence[RunConfig]) -> list[Run]:
    """Make the folders of some runs of a sweep. Raises UserError; then none of them is left."""
    made: list[Run] = []
    try:
        for config in chosen:
            made.append(store.create(config, {"name": sweep.name, "varies": list(sweep.varies)}))
    except UserError:
        for run in made:
            store.delete(run)
        raise
    return made
