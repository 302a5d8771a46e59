"""A line chart as HTML: an SVG that stretches with the page, labels that keep their size, values on hover.

Not Gradio's LinePlot: that of 6.31 keeps the colours of the lines it saw first, so that a line which comes later (the
first training loss after the base's held-out loss, another run) is drawn without a stroke.
"""

from collections.abc import Sequence
from pathlib import Path

from qlora_gui.runs.curves import MAX_POINTS, Series, short, thinned, ticks
from qlora_gui.ui.rendering.html import escaped

SERIES_COLOURS = 6
STYLE = Path(__file__).with_name("chart.css")


def line_chart(title: str, series: Sequence[Series], height: int = 200, x_name: str = "step") -> str:
    """The chart of all series that have a point; a sentence when none has."""
    shown = [(number, line) for number, line in enumerate(series) if line.points]
    if not shown:
        return f'<figure class="chart"><figcaption><b>{escaped(title)}</b> no values yet</figcaption></figure>'
    xs = [x for _, line in shown for x, _ in line.points]
    ys = [y for _, line in shown for _, y in line.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5), ticks(min(ys), max(ys), 4)
    left = min(xs)
    right = max(xs) if max(xs) > left else left + max(abs(left), 1.0)
    low, high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        return 1000 * (x - left) / (right - left), 1000 * (high - y) / (high - low)

    grid = "".join(f"M0 {at(left, y)[1]:.1f}H1000" for y in y_ticks)
    lines, keys = "", ""
    for number, line in shown:
        points = [at(x, y) for x, y in thinned(line.points, MAX_POINTS)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        style = f"s{number % SERIES_COLOURS}" + (" dashed" if line.dashed else "")
        lines += f'<path class="{style}" d="{path}"/>'
        if line.dotted or len(points) == 1:
            dots = "".join(f"M{x:.1f} {y:.1f}h.01" for x, y in points)
            lines += f'<path class="dots s{number % SERIES_COLOURS}" d="{dots}"/>'
        keys += f'<span class="key {style}">{escaped(line.name)}</span>' if line.name else ""
    labels = "".join(
        f'<span class="y" style="bottom:{100 - at(left, y)[1] / 10:.1f}%">{short(y)}</span>' for y in y_ticks
    )
    labels += "".join(
        f'<span class="x" style="left:{at(x, low)[0] / 10:.1f}%">{short(x)}</span>'
        for x in x_ticks
        if left <= x <= right
    )
    ends = (f"{line.name} {short(line.points[0][1])} to {short(line.points[-1][1])}".strip() for _, line in shown)
    summary = f"{title}: {'; '.join(ends)}"
    return (
        f'<figure class="chart"><figcaption><b>{escaped(title)}</b>{keys}</figcaption>'
        f'<div class="plot" style="height:{height}px" role="img" aria-label="{escaped(summary)}">'
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="grid" d="{grid}"/>{lines}</svg>'
        f"{labels}{_spots([line for _, line in shown], left, right, x_name)}</div></figure>"
    )


def _spots(series: Sequence[Series], left: float, right: float, x_name: str) -> str:
    """Invisible strips, one per x, that show the values there when pointed at."""
    values: dict[float, list[str]] = {}
    for line in series:
        for x, y in thinned(line.points, MAX_POINTS):
            values.setdefault(x, []).append(f"{line.name} {short(y)}".strip())
    xs = sorted(values)
    spots = ""
    for number, x in enumerate(xs):
        where = 100 * (x - left) / (right - left)
        after = 100 * (xs[number + 1] - left) / (right - left) if number + 1 < len(xs) else where + 1.5
        side = " late" if where > 75 else " early" if where < 25 else ""
        values_here = escaped(f"{x_name} {short(x)}\n" + "\n".join(values[x]))
        spots += (
            f'<i class="spot{side}" style="left:{where:.2f}%;width:{after - where:.2f}%"><span>{values_here}</span></i>'
        )
    return spots
