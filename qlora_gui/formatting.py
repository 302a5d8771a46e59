"""How values are written for people: numbers, settings, intervals, bytes and times."""

from collections.abc import Mapping
from typing import Any

GB = 2**30  # bytes: the GB that GPUs, and the memory of machines, are sold by
MB = 2**20


def number(value: float, digits: int = 6) -> str:
    """0.0002 -> "0.0002", 0.00005 -> "5e-5", 16.0 -> "16"."""
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e")


def setting(value: Any, joint: str = ", ") -> str:
    """The value of a setting: yes or no, a number, the parts of a list or mapping with `joint` between them, a text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return joint.join(f"{name} {setting(item, joint)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return joint.join(setting(item, joint) for item in value)
    return number(value) if isinstance(value, float) else str(value)


def difference(mean: float, low: float, high: float) -> str:
    """A difference with its interval: "-0.440 [-0.510, -0.370]"."""
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def shares(low: float, high: float) -> str:
    """An interval of shares: "61% to 86%"."""
    return f"{low:.0%} to {high:.0%}"


def interval(low: float, high: float) -> str:
    """An interval of numbers: "0.61-0.86"."""
    return f"{low:.2f}-{high:.2f}"


def counted(count: int, word: str) -> str:
    """`1 tie`, `3 ties`."""
    return f"{count} {word}" + ("" if count == 1 else "s")


def gigabytes(size: float) -> str:
    """Bytes as "15.9 GB"."""
    return f"{size / GB:,.1f} GB"


def amount(size: float) -> str:
    """Bytes as gigabytes, as "93 MB" below half of one, as "0.4 MB" where they are few."""
    if size >= GB / 2:
        return gigabytes(size)
    return f"{size / MB:.0f} MB" if size >= 10 * MB else f"{size / MB:.1f} MB"


def clock(seconds: float) -> str:
    """90 -> "1:30"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
