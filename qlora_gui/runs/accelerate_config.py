"""An accelerate config: what of it this program passes on to `accelerate launch`, each value checked; all else is refused.

Such a file can start programs, name another machine as the rendezvous, whose messages torch then unpickles, and set the
environment. So nobody reads it but this module, and accelerate is given flags, never the file.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qlora_gui import hub, settings_yaml
from qlora_gui.errors import UserError

_MOST, _MOST_BRACKETS = 2**14, 200  # bytes of such a file; what opens a list or a mapping takes the scanner long
_MOST_PROCESSES = 1024
_KINDS = ("NO", "MULTI_GPU", "FSDP")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")


@dataclass(frozen=True)
class DistributedSettings:
    """The checked settings of a distributed run. `processes` counts those of all machines; 0 where the file does not say."""

    fsdp: bool = False
    several: bool = False
    processes: int = 0
    machines: int = 1
    rank: int = 0
    ip: str = ""
    port: int = 0
    gpus: str = "all"
    affinity: bool = False
    debug: bool = False

    def flags(self, processes: int = 0, fsdp: bool = False) -> list[str]:
        """The words for `accelerate launch`; `processes` and `fsdp` are the run's own and come first.

        Raises UserError where nobody says how many processes there are.
        """
        count = processes or self.processes
        if not count:
            raise UserError("The accelerate config does not say num_processes: add it there, or set num_processes.")
        words = ["--use_fsdp", "--fsdp_version", "2"] if fsdp or self.fsdp else []
        words += ["--multi_gpu"] if not words and self.several and count > 1 else []
        words += ["--num_processes", str(count), "--num_machines", str(self.machines)]
        words += ["--machine_rank", str(self.rank), "--main_process_port", str(self.port), "--gpu_ids", self.gpus]
        words += ["--main_process_ip", self.ip] if self.ip else []
        words += ["--mixed_precision", "no", "--dynamo_backend", "no"]  # the prepared model needs no autocast
        words += ["--enable_cpu_affinity"] if self.affinity else []
        return words + (["--debug"] if self.debug else [])


def read(named: str, local_only: bool = False) -> DistributedSettings:
    """Read a config file. `local_only` refuses whatever leads to another machine.

    Raises UserError for a file that is not there, and by its name for a setting that is not known or not allowed.
    """
    file = hub.local(named)
    if file is None or not file.is_file():
        raise UserError(f"The accelerate config '{named}' does not exist: check the path.")
    settings = _settings(file, named)
    for name, value in settings.items():
        known = _PASSED_ON.get(name) or _IDLE.get(name)
        if known is None:
            raise UserError(
                f"The accelerate config '{named}' sets {name}, which this program does not pass on: take it out."
            )
        if not known(value):
            raise UserError(
                f"The accelerate config '{named}' sets {name} to a value that this program does not pass on: "
                "change it, or take it out."
            )
    return _build(settings, named, local_only)


def _build(settings: Mapping[str, Any], named: str, local_only: bool) -> DistributedSettings:
    kind = str(settings.get("distributed_type", "")).replace("False", "NO")
    if kind not in _KINDS:
        raise UserError(f"The accelerate config '{named}' needs a distributed_type: {', '.join(_KINDS)}.")
    made = DistributedSettings(
        fsdp=kind == "FSDP",
        several=kind == "MULTI_GPU",
        processes=max(settings.get("num_processes") or 0, 0) or int(kind == "NO"),
        machines=settings.get("num_machines") or 1,
        rank=settings.get("machine_rank") or 0,
        ip=str(settings.get("main_process_ip") or ""),
        port=settings.get("main_process_port") or 0,
        gpus=str(settings["gpu_ids"]).replace(" ", "") if settings.get("gpu_ids") is not None else "all",
        affinity=bool(settings.get("enable_cpu_affinity")),
        debug=bool(settings.get("debug")),
    )
    away = [name for name in ("main_process_ip", "main_process_port", "machine_rank") if settings.get(name)]
    away += ["num_machines"] if made.machines > 1 else []
    if local_only and away:
        raise UserError(
            f"The accelerate config '{named}' sets {away[0]}: a page with guests starts runs only on its own machine; "
            "the owner can start this one from the command line."
        )
    if made.machines > 1 and not made.ip:
        raise UserError(f"The accelerate config '{named}' has several machines and no main_process_ip: add it.")
    if made.rank >= made.machines:
        raise UserError(f"The accelerate config '{named}' has machine_rank {made.rank} of {made.machines} machines.")
    return made


def _settings(file: Path, named: str) -> dict[str, Any]:
    """The settings in a file, YAML or JSON. Anchors are refused: merged, they grow without bound."""
    try:
        with file.open("rb") as body:
            text = body.read(_MOST + 1).decode("utf-8-sig")
        if len(text) > _MOST or text.count("[") + text.count("{") > _MOST_BRACKETS:
            raise ValueError("it is too long, or too deep")
        if any(isinstance(token, (yaml.AnchorToken, yaml.AliasToken)) for token in yaml.scan(text)):
            raise ValueError("it holds anchors")
        values = settings_yaml.parsed(text)
    except OSError as error:
        raise UserError(f"The accelerate config '{named}' cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"The accelerate config '{named}' is not a YAML file of settings: {reason}.") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) and len(name) <= 64 for name in values):
        raise UserError(f"The accelerate config '{named}' holds no settings: make one with accelerate config.")
    return values


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: value is None or (type(value) is int and least <= value <= most)


def _word(*words: Any) -> Callable[[Any], bool]:
    """One of these, and no other type that equals it."""
    return lambda value: any(type(value) is type(word) and value == word for word in words)


def _is_host(value: Any) -> bool:
    if value is None:
        return True
    try:
        return isinstance(value, str) and bool(_HOST.fullmatch(value) or ipaddress.ip_address(value))
    except ValueError:
        return False


def _is_gpus(value: Any) -> bool:
    return value is None or (
        type(value) in (int, str) and bool(re.fullmatch(r"all|\d{1,3}( ?, ?\d{1,3})*", str(value)))
    )


def _is_empty(value: Any) -> bool:
    return value is None or value in ({}, [])


def _is_of_fsdp(value: Any) -> bool:
    """Names and plain values; none of them is passed on, for this program shards by itself."""
    return value is None or (
        isinstance(value, dict)
        and all(isinstance(name, str) and name.startswith("fsdp_") for name in value)
        and all(item is None or isinstance(item, (str, int, float, bool)) for item in value.values())
    )


# What reaches the launcher, as a flag.
_PASSED_ON: dict[str, Callable[[Any], bool]] = {
    "distributed_type": _word(*_KINDS, False),  # YAML reads a bare NO as false
    "num_processes": _whole(-1, _MOST_PROCESSES),
    "num_machines": _whole(1, _MOST_PROCESSES),
    "machine_rank": _whole(0, _MOST_PROCESSES),
    "main_process_ip": _is_host,
    "main_process_port": _whole(0, 65535),
    "gpu_ids": _is_gpus,
    "enable_cpu_affinity": _word(True, False, None),
    "debug": _word(True, False, None),
}
# What `accelerate config` writes into every file, as far as it changes nothing; it is not passed on.
_IDLE: dict[str, Callable[[Any], bool]] = {
    "compute_environment": _word("LOCAL_MACHINE"),
    "mixed_precision": _word("no", "fp16", "bf16", "fp8", False, None),
    "fsdp_config": _is_of_fsdp,
    "rdzv_backend": _word("static", None),
    "same_network": _word(True, False, None),
    "main_training_function": _word("main", None),
    "use_cpu": _word(False, None),
    "downcast_bf16": _word("no", False, None),
    "dynamo_backend": _word("NO", "no", False, None),
    **dict.fromkeys(("tpu_use_cluster", "tpu_use_sudo"), _word(False, None)),
    **dict.fromkeys(
        ("tpu_env", "deepspeed_config", "megatron_lm_config", "mpirun_config", "fp8_config", "dynamo_config",
         "parallelism_config"),
        _is_empty,
    ),
}  # fmt: skip
