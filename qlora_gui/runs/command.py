"""A RunConfig as the command line that starts the same run."""

import shlex

from qlora_gui import config as configs
from qlora_gui.config import RunConfig


def command_line(config: RunConfig, preset: str | None = None) -> str:
    """`python app.py --headless-train ...` with just the flags that differ from preset and defaults.

    Where neither base nor data is named the command line starts from the demo's preset: then this does too.
    """
    if preset is None and (config.base_model, config.dataset) == ("demo", "demo"):
        preset = "demo"
    start = configs.resolve(preset=preset) if preset else RunConfig()
    words = ["python", "app.py", "--headless-train"]
    if preset:
        words += ["--preset", preset]
    for name in RunConfig.model_fields:
        value = getattr(config, name)
        if value != getattr(start, name):
            words += _flag(name, value)
    return shlex.join(words)


def _flag(name: str, value: object) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag] if value else [flag.replace("--", "--no-", 1)]
    if isinstance(value, list):
        return [flag, ",".join(value)]
    if isinstance(value, float):
        return [flag, str(int(value)) if value.is_integer() else repr(value)]
    # "--flag=value", for a text that begins with a dash would be taken for a flag
    return [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]
