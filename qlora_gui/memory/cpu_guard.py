"""A large base on the CPU of a machine whose GPU torch cannot use: refused, unless the CPU was asked for."""

from qlora_gui import hardware
from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.memory import known_models
from qlora_gui.runs import gpus

SMALL = 300_000_000  # parameters that a CPU trains in minutes; the demo has 135 million
_ON_PURPOSE = "to train on the CPU on purpose, set gpu to cpu"


def check(config: RunConfig, trouble: str | None = None) -> None:
    """Raise UserError where a run of this base would crawl on the CPU beside a GPU that is not used.

    `trouble` is `hardware.trouble`'s sentence where the caller has it already.
    """
    reason = hardware.trouble() if trouble is None else trouble
    if reason and config.gpu != gpus.CPU and not _is_small(config):
        raise UserError(f"{reason.rstrip('.')}; {_ON_PURPOSE}.")


def _is_small(config: RunConfig) -> bool:
    try:
        return known_models.find(config, ask=False).parameters <= SMALL
    except UserError:  # nobody knows how large it is
        return False
