"""Curves: points by rising x, thinned for drawing, with round numbers for the axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_POINTS = 160
_LEAST_SPAN = 1e-300  # less is no span: a step between ticks of it would be zero


@dataclass(frozen=True)
class Series:
    """One line: its name, its points by rising x; dots for few, separate measurements."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    dotted: bool = False


def thinned(points: Sequence[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means over equal stretches of x, with the first and the last point kept as they are."""
    if len(points) <= most:
        return list(points)
    left, width = points[0][0], (points[-1][0] - points[0][0]) / (most - 2) or 1.0
    stretches: dict[int, list[tuple[float, float]]] = {}
    for point in points[1:-1]:
        stretches.setdefault(min(int((point[0] - left) / width), most - 3), []).append(point)
    means = [(group[len(group) // 2][0], sum(y for _, y in group) / len(group)) for group in stretches.values()]
    return [points[0], *means, points[-1]]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers, about `count` of them, that enclose low and high."""
    if high - low <= _LEAST_SPAN:
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (step * factor) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def short(value: float) -> str:
    """A number in few characters: 1200, 1.25, 2.0e-04."""
    if value == 0:
        return "0"
    if 0.01 <= abs(value) < 1e6:
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.1e}"
