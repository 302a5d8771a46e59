"""A line chart as one SVG element, for a page without scripts: axes, lines, dots, and values on hover by <title>."""

from collections.abc import Sequence
from html import escape

from qlora_gui.report.text import clean
from qlora_gui.runs.curves import Series, short, thinned, ticks

WIDTH, HEIGHT = 480, 210
COLOURS = 6
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 8, 26  # margins, for the labels
_MOST = 120  # points that are drawn of a line


def svg(title: str, series: Sequence[Series]) -> str:
    """The chart of all series that have a point; "" when none has."""
    shown = [(number, one, thinned(one.points, _MOST)) for number, one in enumerate(series) if one.points]
    if not shown:
        return ""
    xs = [x for _, _, points in shown for x, _ in points]
    ys = [y for _, _, points in shown for _, y in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5), ticks(min(ys), max(ys), 4)
    left, right = min(xs), max(max(xs), min(xs) + 1e-12)
    low, high = y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)
        return _LEFT + across, _TOP + (high - y) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    parts = []
    for y in y_ticks:
        height = at(left, y)[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {height:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{short(y)}</text>')
    for x in x_ticks:
        if left <= x <= right:
            parts.append(f'<text x="{at(x, low)[0]:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{short(x)}</text>')
    for number, one, points in shown:
        style = f"s{number % COLOURS}" + (" dashed" if one.dashed else "")
        places = [at(x, y) for x, y in points]
        parts.append(f'<path class="{style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>')
        dotted = one.dotted or len(points) == 1
        for (x, y), (across, down) in zip(points, places, strict=True):
            told = escape(f"{clean(one.name)} {short(y)}, step {short(x)}".strip())
            radius = 3 if dotted else 0
            spot = f'<circle class="hit" cx="{across:.1f}" cy="{down:.1f}" r="7"><title>{told}</title></circle>'
            dot = f'<circle class="dot s{number % COLOURS}" cx="{across:.1f}" cy="{down:.1f}" r="{radius}"/>'
            parts.append((dot if dotted else "") + spot)
    said = "; ".join(f"{clean(one.name)} {short(points[0][1])} to {short(points[-1][1])}" for _, one, points in shown)
    label = escape(f"{clean(title)}: {said}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
