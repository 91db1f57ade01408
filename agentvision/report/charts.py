"""Charts of a run as Vega-Lite specifications, drawn to SVG or PNG without a browser or a network.

A chart is data: rows, the series to draw, the axes' words. Training is noisy, so a line is drawn twice: the steps as
they were, faint, and a centred moving mean over them, bold. Inside the report text takes the page's colour
(`currentColor`), so the same chart is legible on light and dark; a picture on its own has a white ground.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agentvision.errors import RunError

Row = Mapping[str, Any]

PALETTE = ("#3b82c4", "#d9822b", "#2f9e77", "#a663cc", "#d1495b", "#8a8f98", "#b59a2d", "#4aa8b5", "#7d6b5d")
EASY, HARD = PALETTE[0], PALETTE[1]

MAX_POINTS = 500
"""Of a line; a longer run is drawn as the means of so many stretches."""

_SHORT = "datum.value != 0 && abs(datum.value) < 0.001 ? format(datum.value, '.1~e') : datum.label"
"""How Vega writes a number on an axis: 3e-5, not 0.00003, which would push the axis out of line."""


@dataclass(frozen=True, slots=True)
class Chart:
    """What to draw over the steps of a run.

    `series` maps a metric's name to its label; those that no row has are left out. `domain` fixes the y axis. `kind`
    "area" stacks the series (they should add up to something), "line" does not.
    """

    title: str
    y: str
    series: Mapping[str, str]
    kind: Literal["line", "area"] = "line"
    domain: tuple[float, float] | None = None
    caption: str = ""
    smooth: bool = True
    colors: Sequence[str] = PALETTE

    def present(self, metrics: Sequence[Row]) -> dict[str, str]:
        """The series that at least one row has a number for."""
        return {name: label for name, label in self.series.items() if any(_is_number(row.get(name)) for row in metrics)}


def window(metrics: Sequence[Row]) -> int:
    """Steps that the moving mean spans: an odd number, about a fifteenth of the run."""
    return 2 * (len(metrics) // 30) + 1


def chart_svg(chart: Chart, metrics: Sequence[Row], *, width: int = 400, height: int = 170) -> str | None:
    """The chart as an SVG for the report, without its legend; None when no row has any of its series.

    The legend is the page's affair (`legend`): the page's font is not known here, and its words would run together.
    """
    spec = line_spec(chart, metrics, width=width, height=height, legend=False)
    return None if spec is None else _svg(spec | {"background": "transparent", "config": _config("currentColor")})


def legend(chart: Chart, metrics: Sequence[Row]) -> list[tuple[str, str]]:
    """(colour, label) of each series drawn; empty when there is only one."""
    labels = list(chart.present(metrics).values())
    colors = _colors(labels, chart.colors)
    return list(zip(colors, labels, strict=True)) if len(labels) > 1 else []


def line_spec(
    chart: Chart, metrics: Sequence[Row], *, width: int, height: int, legend: bool = True
) -> dict[str, Any] | None:
    """The Vega-Lite specification of a chart over `metrics`, rows with a `step`."""
    series = chart.present(metrics)
    if not series:
        return None
    span = window(metrics) if chart.smooth and chart.kind == "line" else 1
    if chart.kind == "area":  # what a step does not have adds nothing to its stack
        metrics = [{**dict.fromkeys(series, 0), **{k: v for k, v in row.items() if v is not None}} for row in metrics]
    runs = {label: _series(metrics, name) for name, label in series.items()}
    steps = [row["step"] for row in metrics if _is_number(row.get("step"))]
    return _spec(
        runs,
        steps=(min(steps), max(steps)),
        span=span,
        y=chart.y,
        kind=chart.kind,
        domain=chart.domain,
        colors=chart.colors,
        size=(width, height),
        legend=legend,
    )


def policy_picture(metrics: Sequence[Row], path: Path | str) -> Path:
    """Draw the learned policy, the call rate of easy and of hard questions over training, to an .svg or .png file.

    `metrics` are the rows of a run's `metrics.jsonl`, with `call_rate_easy` and `call_rate_hard`.

    Raises:
        RunError: no row has these numbers, or the file's name ends in neither.
    """
    chart = Chart(
        title="",
        y="share of questions with a tool call",
        series={"call_rate_hard": "needs the original", "call_rate_easy": "answerable at a quarter"},
        domain=(0, 1),
        colors=(HARD, EASY),
    )
    spec = line_spec(chart, metrics, width=560, height=240)
    if spec is None:
        raise RunError(
            f"{path}: no step has 'call_rate_easy' or 'call_rate_hard'; their data set must know which is which"
        )
    return _save(spec | {"background": "white", "padding": 12, "config": _config("#333333")}, Path(path))


def sweep_picture(
    runs: Mapping[str, Sequence[Row]], path: Path | str, *, metric: str = "call_rate", y: str = "call rate"
) -> Path:
    """Draw one metric of several runs over training, a line a run (the call rate for each θ: VisionThink, Fig. 3a).

    `runs` maps a line's label to the rows of a `metrics.jsonl`. Raises `RunError` as `policy_picture` does.
    """
    lines = {label: _series(rows, metric) for label, rows in runs.items()}
    lines = {label: points for label, points in lines.items() if points}
    if not lines:
        raise RunError(f"{path}: none of the runs {', '.join(runs) or '(none)'} has the metric {metric!r}")
    span = window(max(runs.values(), key=len))
    domain = (0.0, 1.0) if all(0 <= v <= 1 for points in lines.values() for _, v in points) else None
    steps = [step for points in lines.values() for step, _ in points]
    shown = (min(steps), max(steps))
    spec = _spec(
        lines, steps=shown, span=span, y=y, kind="line", domain=domain, colors=PALETTE, size=(560, 280), legend=True
    )
    return _save(spec | {"background": "white", "padding": 12, "config": _config("#333333")}, Path(path))


def _spec(
    runs: Mapping[str, Sequence[tuple[float, float]]],
    *,
    steps: tuple[float, float],
    span: int,
    y: str,
    kind: str,
    domain: tuple[float, float] | None,
    colors: Sequence[str],
    size: tuple[int, int],
    legend: bool,
) -> dict[str, Any]:
    points = [
        {"x": step, "y": value, "mean": smooth, "series": label}
        for label, line in runs.items()
        for (step, value), smooth in zip(line, moving_mean([v for _, v in line], span), strict=True)
    ]
    labels = list(runs)
    color = {
        "field": "series",
        "type": "nominal",
        "sort": labels,
        "title": None,
        "scale": {"domain": labels, "range": _colors(labels, colors)},
        "legend": {"orient": "top", "symbolType": "stroke", "symbolOpacity": 1, "columns": 4} if legend else None,
    }
    # minExtent: the plots of a page begin at one line, however wide their numbers are.
    x_axis = {
        "field": "x",
        "type": "quantitative",
        "title": "step",
        "scale": {"nice": False, "domain": list(steps)} if steps[0] < steps[1] else {},
        "axis": {"tickCount": min(max(3, size[0] // 60), max(1, int(steps[1] - steps[0])))},  # whole steps
    }
    y_axis = {
        "field": "y",
        "type": "quantitative",
        "title": y,
        "axis": {"minExtent": 32, "tickCount": max(3, size[1] // 36), "labelExpr": _SHORT},
        "scale": {"domain": list(domain), "nice": False} if domain else {"zero": kind == "area"},
    }
    if kind == "area":
        encoding = {
            "x": x_axis,
            "y": y_axis | {"stack": "zero"},
            "color": color,
            "order": {"field": "series", "sort": labels},
        }
        return _whole(points, [{"mark": {"type": "area", "opacity": 0.75}, "encoding": encoding}], size)
    bold = {
        "mark": {"type": "line", "strokeWidth": 2, "point": max(map(len, runs.values())) < 12},
        "encoding": {"x": x_axis, "y": y_axis | {"field": "mean"}, "color": color},
    }
    faint = {
        "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.35},
        "encoding": {"x": x_axis, "y": y_axis, "color": color},
    }
    return _whole(points, [faint, bold] if span > 1 else [bold], size)


def _colors(labels: Sequence[str], colors: Sequence[str]) -> list[str]:
    return [colors[i % len(colors)] for i in range(len(labels))]


def _whole(points: list[dict[str, Any]], layers: list[dict[str, Any]], size: tuple[int, int]) -> dict[str, Any]:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": size[0],
        "height": size[1],
        "data": {"values": points},
        "layer": layers,
    }


def moving_mean(values: Sequence[float], span: int) -> list[float]:
    """Centred moving mean; near the ends over what is there."""
    half = span // 2
    cut = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in cut]


def _series(metrics: Iterable[Row], name: str) -> list[tuple[float, float]]:
    numbers = [row for row in metrics if _is_number(row.get(name)) and _is_number(row.get("step"))]
    line = [(row["step"], float(row[name])) for row in numbers]
    size = -(-len(line) // MAX_POINTS)
    parts = [line[start : start + size] for start in range(0, len(line), size)] if size > 1 else []
    return [(part[len(part) // 2][0], sum(v for _, v in part) / len(part)) for part in parts] or line


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _config(ink: str) -> dict[str, Any]:
    font = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
    return {
        "font": font,
        "view": {"stroke": None},
        "axis": {
            "labelColor": ink,
            "titleColor": ink,
            "labelOpacity": 0.8,
            "titleOpacity": 0.8,
            "titleFontWeight": "normal",
            "titleFontSize": 11,
            "labelFontSize": 10,
            "gridColor": ink,
            "gridOpacity": 0.1,
            "domainColor": ink,
            "domainOpacity": 0.3,
            "tickColor": ink,
            "tickOpacity": 0.3,
            "tickSize": 4,
        },
        "axisX": {"grid": False},
        "legend": {"labelColor": ink, "labelFontSize": 11, "symbolStrokeWidth": 3, "labelLimit": 260, "padding": 0},
    }


def _svg(spec: dict[str, Any]) -> str:
    import vl_convert

    return vl_convert.vegalite_to_svg(spec)


def _save(spec: dict[str, Any], path: Path) -> Path:
    import vl_convert

    if path.suffix not in (".svg", ".png"):
        raise RunError(f"{path}: a picture is drawn as .svg or .png, not {path.suffix!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        path.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
    else:
        path.write_bytes(vl_convert.vegalite_to_png(spec, scale=2))
    return path
