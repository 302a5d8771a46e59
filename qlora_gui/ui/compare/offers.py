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


def bases(runs: Sequence[Summary]) -> list[str]:
    """The bases that have at least one adapter, that of the newest run first."""
    return list(dict.fromkeys(key(run.config) for run in runs if run.config and run.adapter))


def adapters(runs: Sequence[Summary], base: str) -> list[str]:
    """The runs whose adapter belongs to this base, newest first; all of them for a base that no run names."""
    if base not in bases(runs):
        return [run.id for run in runs if run.config and run.adapter]
    return [run.id for run in runs if run.config and run.adapter and key(run.config) == base]


def refused(runs: Sequence[Summary], base: str) -> list[str]:
    """A sentence for every run that is not offered with this base."""
    reasons, named = [], base in bases(runs)
    for run in runs:
        if not run.read:
            reasons.append(f"{run.id}: it is being read.")
        elif run.config is None:
            reasons.append(f"{run.id}: its run.json cannot be read.")
        elif not run.adapter:
            reasons.append(f"{run.id}: it has no adapter yet ({run.state}).")
        elif named and key(run.config) != base:
            reasons.append(f"{run.id}: it was trained on another base, {key(run.config)}.")
    return reasons
