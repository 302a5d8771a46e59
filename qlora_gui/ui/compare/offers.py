"""What the Compare tab can offer: bases that have adapters, their adapters, and why the others are not offered."""

from collections.abc import Sequence

from qlora_gui.config import RunConfig
from qlora_gui.ui.runs.summary import Summary


def key(config: RunConfig) -> str:
    """A base by name, revision, and what is unusual in its quantization: adapters of one key share a base."""
    plain = RunConfig()
    words = [config.base_model + (f" @ {config.revision}" if config.revision else "")]
    words += [config.quant_type] if config.quant_type != plain.quant_type else []
    words += ["double quantization off"] if config.double_quant != plain.double_quant else []
    return " · ".join(words)


def bases(found: Sequence[Summary]) -> list[str]:
    """The bases that have at least one adapter, that of the newest run first."""
    return list(dict.fromkeys(key(one.config) for one in found if one.config and one.adapter))


def adapters(found: Sequence[Summary], base: str) -> list[str]:
    """The runs whose adapter belongs to this base, newest first; all of them for a base that no run names."""
    if base not in bases(found):
        return [one.id for one in found if one.config and one.adapter]
    return [one.id for one in found if one.config and one.adapter and key(one.config) == base]


def refused(found: Sequence[Summary], base: str) -> list[str]:
    """A sentence for every run that is not offered with this base."""
    said, named = [], base in bases(found)
    for one in found:
        if not one.read:
            said.append(f"{one.id}: it is being read.")
        elif one.config is None:
            said.append(f"{one.id}: its run.json cannot be read.")
        elif not one.adapter:
            said.append(f"{one.id}: it has no adapter yet ({one.state}).")
        elif named and key(one.config) != base:
            said.append(f"{one.id}: it was trained on another base, {key(one.config)}.")
    return said
