"""What the Compare tab can offer: bases that have adapters, their adapters, and why the others are not offered."""

import time
from collections.abc import Sequence
from functools import lru_cache

from qlora_gui.config import RunConfig
from qlora_gui.runs import base_names
from qlora_gui.ui.runs.summary import Summary

_LOOK_SECONDS = 10  # that what lies in the hub's cache is taken as known


def key(config: RunConfig) -> str:
    """A base by name, revision, and what is unusual in its quantization: adapters of one key share a base."""
    plain = RunConfig()
    words = [config.base_model + (f" @ {config.revision}" if config.revision else "")]
    words += [config.quant_type] if config.quant_type != plain.quant_type else []
    words += ["double quantization off"] if config.double_quant != plain.double_quant else []
    return " · ".join(words)


def bases(runs: Sequence[Summary]) -> list[str]:
    """The bases that have at least one adapter, that of the newest run first; then what adapters made elsewhere name
    besides."""
    return list(configs(runs))


def configs(runs: Sequence[Summary]) -> dict[str, RunConfig]:
    """A config for each of the `bases`, which names it with its quantization."""
    found: dict[str, RunConfig] = {}
    for run in runs:
        if run.config and run.adapter:
            found.setdefault(key(run.config), run.config)
    for run in runs:
        if not (run.elsewhere and run.adapter and _names_a_base(run)):
            continue
        if not any(_fits(run, config.base_model) for config in found.values()):
            name, revision = _at_hand(run.base, run.revision, int(time.monotonic() // _LOOK_SECONDS))
            config = RunConfig().model_copy(update={"base_model": name, "revision": revision})
            found.setdefault(key(config), config)
    return found


def base_of(asked: Sequence[Summary], runs: Sequence[Summary]) -> str:
    """The base to show for these adapters: the first's that has one; "" where none has."""
    known = configs(runs)
    for run in (*filter(lambda run: run.config, asked), *asked):
        if run.adapter and (base := next((base for base in known if _belongs(run, base, known[base])), "")):
            return base
    return ""


def adapters(runs: Sequence[Summary], base: str) -> list[str]:
    """The adapters that belong to this base, newest first; all of them for a base that nothing names.

    Adapters made elsewhere belong to it by their base's name; those that do not say it, or only the path of another machine,
    come last and with every base: shapes and vocabulary decide.
    """
    known, offered = configs(runs), [run for run in runs if run.adapter and (run.config or run.elsewhere)]
    config = known.get(base)
    if config is None:
        return [run.id for run in offered]
    by_name = [run.id for run in offered if _belongs(run, base, config)]
    return by_name + [run.id for run in offered if run.elsewhere and not _names_a_base(run) and run.id not in by_name]


def refused(runs: Sequence[Summary], base: str) -> list[str]:
    """A sentence for every run that is not offered with this base."""
    reasons, config = [], configs(runs).get(base)
    for run in runs:
        if not run.read:
            reasons.append(f"{run.id}: it is being read.")
        elif run.config is None and not run.elsewhere:
            reasons.append(f"{run.id}: its run.json cannot be read.")
        elif not run.adapter:
            why = "it has no adapter_model.safetensors" if run.elsewhere else f"it has no adapter yet ({run.state})"
            reasons.append(f"{run.id}: {why}.")
        elif config and not _belongs(run, base, config) and (run.config or _names_a_base(run)):
            reasons.append(f"{run.id}: it was trained on another base, {key(run.config) if run.config else run.base}.")
    return reasons


def share_a_base(runs: Sequence[Summary]) -> bool:
    """Whether adapters can be measured together: their runs have one base, and no name made elsewhere speaks against it."""
    own = {key(run.config): run.config for run in runs if run.config}
    if len(own) > 1:
        return False
    named = [run for run in runs if run.elsewhere and _names_a_base(run)]
    bases_named = [config.base_model for config in own.values()] + [run.base for run in named[:1]]
    return all(_fits(run, base) for run in named for base in bases_named)


def _belongs(run: Summary, base: str, config: RunConfig) -> bool:
    return key(run.config) == base if run.config else _fits(run, config.base_model)


def _fits(run: Summary, base: str) -> bool:
    """Whether an adapter made elsewhere names this base, in its words."""
    return bool(run.base) and base_names.relation(run.base, base) is not None


def _names_a_base(run: Summary) -> bool:
    """Whether an adapter made elsewhere says what its base is: a path of another machine does not."""
    return bool(run.base) and not base_names.is_elsewhere(run.base)


@lru_cache(maxsize=256)
def _at_hand(named: str, revision: str, moment: int) -> tuple[str, str]:
    """`base_names.at_hand`, which looks through folders, asked once in a while."""
    return base_names.at_hand(named, revision)
