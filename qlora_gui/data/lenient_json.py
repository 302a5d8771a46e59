"""JSON as data files have it: what is no number (NaN, infinity) is None, and half a character is marked."""

import json
import math
from typing import Any

from qlora_gui.data import utf8


def parsed(body: str) -> Any:
    """JSON -> value. Raises ValueError or RecursionError."""
    value = json.loads(body, parse_constant=lambda word: None, parse_float=_finite)
    return utf8.whole(value) if "\\u" in body else value  # only an escape can spell half a character


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None
