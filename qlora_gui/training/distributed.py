"""Several processes that train one run, started by `accelerate launch`: who is who, and what they must agree on.

Alone, everything here does nothing. Rank 0 is the one that writes to the run's folder.
"""

import atexit
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from qlora_gui.errors import UserError
from qlora_gui.system import signals

Value = TypeVar("Value")
_FAILED = "qlora_gui/failed"
_sharded = False
# Rank 0 may quantize or download for hours while the others wait.
_PATIENCE = timedelta(hours=6)
_FSDP = "ACCELERATE_USE_FSDP"
_NOT_SUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


def rank() -> int:
    """This process's number over all machines; 0 alone."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes there are, over all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def begin(device_type: str) -> None:
    """Join the group of processes. Raises UserError for kinds of distributed training that are not supported."""
    global _sharded
    _sharded = os.environ.pop(_FSDP, "").lower() == "true"  # popped: `fsdp` does it, accelerate must not do it again
    for name, what in _NOT_SUPPORTED.items():
        if os.environ.get(name, "").lower() == "true":
            raise UserError(f"The accelerate config asks for {what}, which is not supported: take MULTI_GPU or FSDP.")
    if world() == 1:
        return
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # the prepared model needs no autocast
    if device_type == "cpu":
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")  # "cpu:0" would copy what is mapped from the disk
    from accelerate import PartialState

    PartialState(cpu=device_type == "cpu", timeout=_PATIENCE)


def sharded() -> bool:
    """Whether the 4-bit base is sharded over the processes; then their forward passes must go in step."""
    return _sharded and world() > 1


def end(at_once: bool = False) -> None:
    """Wait for the others, and part; `at_once` leaves them to end by themselves (`interrupts`)."""
    if at_once and world() > 1:
        atexit.register(os._exit, 0)  # taking leave of the group would wait for them
    elif world() > 1:
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()


def agreed(value: Value) -> Value:
    """Rank 0's value, on all."""
    if world() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: Value) -> list[Value]:
    """The values of all, by rank."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def summed(values: Sequence[float]) -> list[float]:
    """The sum over all processes of each value."""
    return [sum(column) for column in zip(*gathered(list(values)), strict=True)]


def first(make: Callable[[], Value]) -> Value:
    """Let rank 0 make something (a download, a file) before the others make it from what is there then.

    What it raises as UserError is raised by all.
    """
    if world() == 1:
        return make()
    made: Any = None
    fault = ""
    if rank() == 0:
        try:
            made = make()
        except UserError as error:
            fault = str(error)
    if fault := agreed(fault):
        raise UserError(fault)
    return made if rank() == 0 else make()


def tell_failure(message: str) -> None:
    """Leave a message for rank 0, which alone may write why a run failed."""
    if store := _store():
        store.set(_FAILED, message)


def on_failure_of_others(log: Callable[[str], object]) -> None:
    """On rank 0: when accelerate ends this process because another failed, `log` is given the reason first.

    In a thread, for the main one may hang in a collective that will never end.
    """
    if world() == 1 or rank() != 0:
        return

    def ended() -> None:
        store = _store()
        reason = store.get(_FAILED).decode() if store and store.check([_FAILED]) else ""
        log(reason or "Another process of this run ended, or it was stopped from outside: see the log.")
        sys.stdout.flush()
        os._exit(1)

    signals.watch_terminate(ended)


def await_reason(error: Exception, seconds: float = 10) -> None:
    """On rank 0: where `error` is only that the others cannot be reached, wait for the message of the one that failed.

    Whoever started the processes ends those that are left; the watch of `on_failure_of_others` then reports the reason.
    """
    if world() == 1 or rank() != 0:
        return
    import torch.distributed as dist

    if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
        time.sleep(seconds)


def _store() -> Any:
    """The key-value store by which the processes met, None before they have."""
    import torch.distributed as dist

    return dist.distributed_c10d._get_default_store() if dist.is_available() and dist.is_initialized() else None
