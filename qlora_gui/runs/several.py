"""What a config says about several processes, without asking accelerate."""

from pathlib import Path

import yaml

from qlora_gui.runs.config import RunConfig


def sharers(config: RunConfig) -> int:
    """Among how many processes the 4-bit base is shared out: 1 where each holds it whole."""
    told = _accelerate_config(config.accelerate_config) if config.accelerate_config else {}
    if not config.fsdp and told.get("distributed_type") != "FSDP":
        return 1
    count = config.num_processes if config.num_processes > 1 else told.get("num_processes", 1)
    return max(count, 1) if isinstance(count, int) else 1


def _accelerate_config(path: str) -> dict[str, object]:
    try:
        found = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # whoever starts the run is told
    return found if isinstance(found, dict) else {}
