"""The regular expressions of an adapter_config.json, tried within a limit of time before anything relies on them.

PEFT matches them against the name of every module, and a pattern like `(a+)+$` takes practically forever.
"""

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from qlora_gui.data.template_renderer import RENDERER
from qlora_gui.errors import UserError
from qlora_gui.formatting import gigabytes
from qlora_gui.system import signals

SECONDS = 2.0  # of computing, for all names of a base; usual patterns take some milliseconds
_LOOK_SECONDS = 0.1


class _TooSlow(BaseException):
    """The time is over. No Exception, so that it gets out of whatever runs."""


def check(adapter: str, config: Mapping[str, Any], names: Collection[str]) -> None:
    """Raise UserError where the patterns of a config take too long on these names of modules, with the field's name.

    Those that are no patterns at all are left to whoever uses them.
    """
    for field, tried in _tries(config).items():
        try:
            with _limited():
                for name in names:
                    tried(name)
        except _TooSlow:
            raise UserError(
                f"The adapter '{adapter}' cannot be compared: matching its {field} against the names of the modules did "
                f"not finish within {SECONDS:g} s; fix that in its adapter_config.json."
            ) from None
        except RecursionError:
            raise UserError(
                f"The adapter '{adapter}' cannot be compared: the pattern in its {field} is nested too deeply; fix that in "
                "its adapter_config.json."
            ) from None
        except (re.error, TypeError, ValueError, OverflowError):
            continue


def _tries(config: Mapping[str, Any]) -> dict[str, Callable[[str], object]]:
    """What PEFT does with a module's name, by the field that it does it for."""
    tries: dict[str, Callable[[str], object]] = {}
    for field in ("target_modules", "exclude_modules"):
        if value := config.get(field):
            # A text is a pattern, and a list may be long: either is matched as PEFT does it.
            settings = {"target_modules": ["none"]} | {field: value}
            tries[field] = _first_made(lambda settings=settings: LoraConfig(**settings), check_target_module_exists)  # type: ignore[misc]
    if value := config.get("layers_pattern"):
        layers = [value] if isinstance(value, str) else list(value)
        tries["layers_pattern"] = lambda name: [
            re.match(rf"(?:^|.*?\.){layer}\.(?P<idx>\d+)\.", name) for layer in layers
        ]
    for field in ("alpha_pattern", "rank_pattern"):
        if isinstance(value := config.get(field), Mapping):
            tries[field] = lambda name, keys=tuple(value): get_pattern_key(keys, name)  # type: ignore[misc]
    return tries


def _first_made(make: Callable[[], Any], use: Callable[[Any, str], object]) -> Callable[[str], object]:
    """`use` with what `make` gives, which is made at the first name, within the limit."""
    made: list[Any] = []

    def tried(name: str) -> object:
        if not made:
            made.append(make())
        return use(made[0], name)

    return tried


@contextmanager
def _limited() -> Iterator[None]:
    """Within, the main thread may compute for so long; a stop ends it, too.

    Matching holds Python's lock, so that no other thread could; signals are looked at even then. Elsewhere than in the
    main thread, and on Windows, there is no limit.
    """
    began = time.process_time()

    def look() -> None:
        time.sleep(0.001)  # lets the thread that hears of a stop run
        RENDERER.interrupt()
        if time.process_time() - began > SECONDS:
            raise _TooSlow

    with signals.regularly(_LOOK_SECONDS, look):
        yield


def check_memory(adapter: str, config: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]) -> None:
    """Raise UserError where the ranks of a config take more memory than there is, on linears of these inputs and outputs.

    PEFT makes LoRA of that rank on every module that the config names, whatever the weights are.
    """
    ranks = config.get("rank_pattern") or {}
    names: Sequence[str] = list(ranks)
    free = psutil.virtual_memory().available / 2
    try:
        targets = LoraConfig(
            **{key: config[key] for key in ("target_modules", "exclude_modules") if config.get(key) is not None}
        )
        needed = 0
        for name, (inputs, outputs) in sizes.items():
            if config.get("target_modules") == "all-linear" or check_target_module_exists(targets, name):
                rank = int(ranks.get(get_pattern_key(names, name), config.get("r", 8)))
                needed += 4 * rank * (inputs + outputs)
    except (re.error, TypeError, ValueError, AttributeError, OverflowError):
        return  # PEFT says what is wrong with it
    if needed > free:
        largest = max([int(config.get("r", 8)), *map(int, ranks.values())])
        raise UserError(
            f"The adapter '{adapter}' cannot be compared: its adapter_config.json asks for rank {largest:,}, whose weights "
            f"would take {gigabytes(needed)}, and {gigabytes(free)} are free for them."
        )
