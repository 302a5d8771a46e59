"""What a child process of this program is started with."""

import os
from pathlib import Path

from qlora_gui.system import console

SECRETS = ("QLORA_GUI_AUTH", "QLORA_GUI_JUDGE_KEY")
_ROOT = Path(__file__).parents[1]
# What tells one process of several who it is: what it starts is none of them.
_OF_SEVERAL = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")


def environment() -> dict[str, str]:
    """The environment of a child: it finds this package from any working directory, prints at once, has no secret of
    the page's."""
    several = _OF_SEVERAL if "TORCHELASTIC_RUN_ID" in os.environ else ()
    mine = {name: value for name, value in os.environ.items() if name not in SECRETS and not name.startswith(several)}
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return (
        mine
        | console.environment()
        | {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
    )
