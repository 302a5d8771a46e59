"""What a config says about several processes, without asking accelerate."""

import yaml

from qlora_gui import hub
from qlora_gui.runs.config import RunConfig

_MOST = 2**16  # characters of such a file


def sharers(config: RunConfig) -> int:
    """Among how many processes the 4-bit base is shared out: 1 where each holds it whole."""
    told = _accelerate_config(config.accelerate_config) if config.accelerate_config else {}
    if not config.fsdp and told.get("distributed_type") != "FSDP":
        return 1
    count = config.num_processes if config.num_processes > 1 else told.get("num_processes", 1)
    return max(count, 1) if isinstance(count, int) else 1


def _accelerate_config(path: str) -> dict[str, object]:
    file = hub.local(path)
    if file is None or not file.is_file():  # whoever starts the run is told
        return {}
    try:
        with file.open(encoding="utf-8") as text:
            found = yaml.safe_load(text.read(_MOST))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
