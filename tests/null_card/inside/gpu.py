"""Parts of `benchmarks/gpu.py` on a card, dry: tiny shapes, true values."""

import importlib
import sys
from typing import Any

from tests.null_card.host import ROOT

sys.path.append(str(ROOT / "benchmarks"))


def part(name: str) -> list[dict[str, Any]]:
    """The lines of a part."""
    return list(importlib.import_module(f"gpu_parts.{name}").run(True))
