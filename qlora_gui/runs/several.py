"""What a config says about distributed runs, without asking accelerate."""

from qlora_gui import hardware
from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.runs import accelerate_config
from qlora_gui.runs import gpus as cards
from qlora_gui.system import kind


def sharers(config: RunConfig) -> int:
    """The number of processes that the 4-bit base is sharded over: 1 where each holds it whole."""
    settings = accelerate_config.DistributedSettings()
    if config.accelerate_config:
        try:
            settings = accelerate_config.read(config.accelerate_config)
        except UserError:  # reported when the run is started
            return 1
    if not (config.fsdp or settings.fsdp):
        return 1
    return max(config.num_processes if config.num_processes > 1 else settings.processes, 1)


def check(config: RunConfig, local_only: bool = False) -> None:
    """Raise UserError for a GPU that is not there, for more processes than there are GPUs, or, without one, cores, and
    for an accelerate config that cannot be used, with `local_only` one that leads to another machine.
    """
    cards.check(config.gpu)
    count = config.num_processes
    if (count > 1 or config.accelerate_config) and kind.is_windows():
        raise UserError(
            "Several processes that train together need Linux: on Windows start the program in WSL2, or set num_processes "
            "to 1 and leave accelerate_config empty."
        )
    if config.accelerate_config:  # which may name several machines
        accelerate_config.read(config.accelerate_config, local_only).flags(_own(config))
        return
    if count == 1:
        return
    gpus = cards.gpus()
    most = len(gpus) or hardware.cores()
    if count <= most:
        return
    have = f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}" if gpus else f"no GPU, and {most} cores"
    raise UserError(
        f"This machine has {have}, but num_processes is {count}: set it to {most if gpus else 1}, or give an "
        "accelerate_config for several machines."
    )


def launcher_words(config: RunConfig) -> list[str]:
    """The arguments of `accelerate launch` for a run that more than one process trains. Raises UserError."""
    if config.accelerate_config:
        return accelerate_config.read(config.accelerate_config).flags(_own(config), config.fsdp)
    # MULTI_GPU also on a CPU: it is the launcher of one process per device, and asks for no GPU itself.
    return accelerate_config.DistributedSettings(several=True).flags(config.num_processes, config.fsdp)


def _own(config: RunConfig) -> int:
    """The number of processes that a run sets itself, 0 where it leaves that to the file."""
    return config.num_processes if config.num_processes > 1 else 0
