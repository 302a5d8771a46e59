"""Where a base's config.json comes from: its folder, the hub's cache, the shipped table of known bases, the hub."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from qlora_gui import hub, plain_files
from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.memory import model_shape as shapes
from qlora_gui.memory import unsupported
from qlora_gui.memory.model_shape import Shape
from qlora_gui.references import ModelRef
from qlora_gui.simulation import client

DEMO = "HuggingFaceTB/SmolLM2-135M"  # the shape of the demo base
_VARIANTS = ("-instruct", "-it", "-chat", "-base")  # tuned variants have the shape of their base


def find(config: RunConfig, ask: bool = True, count: bool = False) -> Shape:
    """The shape of `config.base_model`, without its weights; `ask` allows asking the hub, which may take seconds.

    So does `count` for counting the parameters of an architecture that the closed form does not know; what was counted
    once is known. Raises UserError when no config.json can be had, or it is of a base that cannot be trained.
    """
    base = config_json(config, ask)
    unsupported.check(base, config.base_model)
    shape = shapes.read(base)
    return counted(shape, base, count) if shape.rough else shape


def config_json(config: RunConfig, ask: bool = True) -> Mapping[str, Any]:
    """The config.json of `config.base_model`: its folder's, the cached one, a known one, or the hub's.

    Raises UserError when none can be had.
    """
    name, ref = config.base_model, ModelRef.find(config.base_model)
    if ref.is_demo:
        return _entry(DEMO)
    if ref.folder is not None:
        return _read(ref.folder / "config.json", f"The base model folder '{name}'")
    if not ref.may_be_on_hub:
        raise UserError(f"The base model folder '{name}' does not exist: check the path.")
    cached = hub.cached_file("models", name, "config.json", config.revision)
    if cached is not None:
        return _read(cached, f"The cached base model '{name}'")
    listed = _listed(name)
    if listed is not None and not config.revision:
        return _entry(listed)
    if not ask:
        raise UserError(f"The hub has not been asked about '{name}' yet.")
    return _asked(name, config.revision)


def series() -> dict[str, list[str]]:
    """Known bases by family name, each from small to large."""
    return {family: list(bases) for family, bases in _table().items()}


def smaller(name: str) -> list[str]:
    """Known bases of the same series with fewer parameters, the largest first; tuned variants keep their kind."""
    listed = _listed(name)
    if listed is None:
        return []
    tail = name[len(listed) :] if name.lower().startswith(listed.lower()) else ""
    bases = next(bases for bases in series().values() if listed in bases)
    size = of_known(listed).parameters
    return [f"{base}{tail}" for base in reversed(bases) if of_known(base).parameters < size]


@lru_cache(maxsize=64)
def of_known(name: str) -> Shape:
    """The shape of a base of the shipped table, by its exact hub id."""
    return shapes.read(_entry(name))


def _entry(name: str) -> Mapping[str, Any]:
    entry: Mapping[str, Any] = next(bases[name] for bases in _table().values() if name in bases)
    return entry


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = json.loads(
        Path(__file__).with_name("known_models.json").read_text(encoding="utf-8")
    )
    return table


def _listed(name: str) -> str | None:
    """The entry of the table that a hub id means; the owner does not matter, so that mirrors are known too."""
    wanted = _plain(name)
    return next((base for bases in _table().values() for base in bases if _plain(base) == wanted), None)


def _plain(name: str) -> str:
    plain = name.rpartition("/")[2].lower()
    for variant in _VARIANTS:
        plain = plain.removesuffix(variant)
    return plain


@lru_cache(maxsize=32)
def _asked(name: str, revision: str) -> Mapping[str, Any]:
    hub.require("models", name, revision)
    config = hub.fetch_json(name, "config.json", revision)
    if config is None:
        raise UserError(f"The hub gives no config.json of '{name}': its memory cannot be planned.")
    return config


def _read(path: Path, what: str) -> Mapping[str, Any]:
    try:
        value = json.loads(plain_files.read_text(path, plain_files.MOST_CONFIG, follow=True))
    except plain_files.StrangeFile as error:
        raise UserError(f"{what} cannot be read: {error}.") from None
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{what} has no config.json that can be read: give the folder of a transformers model.")
    return value


def counted(shape: Shape, base: Mapping[str, Any], ask: bool) -> Shape:
    """The shape with the true numbers of its parameters, where they are known from before or `ask` allows some seconds.

    `base` is the base's config.json. Where it cannot be counted the shape stays as rough as it was.
    """
    question = {"base": dict(base)}
    file = client.folder() / f"count-{client.key(question)}.json"
    try:
        counts = json.loads(file.read_text(encoding="utf-8"))
        return replace(shape, counted=(int(counts["in_4_bits"]), int(counts["all"])))
    except (OSError, ValueError, TypeError, KeyError):  # absent or damaged
        if not ask:
            return shape
    try:
        counts = client.asked(client.PARAMETERS, question)
    except UserError:
        return shape
    client.keep(file, counts)
    return replace(shape, counted=(counts["in_4_bits"], counts["all"]))
