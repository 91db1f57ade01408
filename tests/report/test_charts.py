"""Charts show the rows they are given, and need no network."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from agentvision.errors import RunError
from agentvision.report import policy_picture, sweep_picture
from agentvision.report.charts import Chart, chart_svg, legend, line_spec, moving_mean, window

ROWS: list[dict[str, Any]] = [
    {"step": k, "call_rate": k / 40, "call_rate_easy": 0.5 - k / 80, "call_rate_hard": k / 40, "kl": None}
    for k in range(40)
]


def texts(svg: str) -> set[str]:
    return {node.text or "" for node in ET.fromstring(svg).iter() if node.tag.endswith("text")}


def test_a_chart_names_its_axes_and_takes_the_pages_colour() -> None:
    svg = chart_svg(Chart(title="Calls", y="call rate", series={"call_rate": "all"}, domain=(0, 1)), ROWS)
    assert svg is not None
    assert {"step", "call rate"} <= texts(svg)
    assert "currentColor" in svg
    assert "href" not in svg


def test_a_chart_without_numbers_is_left_out_and_so_is_a_series() -> None:
    assert chart_svg(Chart(title="KL", y="nats", series={"kl": "k3", "nothing": "none"}), ROWS) is None
    chart = Chart(title="Calls", y="rate", series={"call_rate": "all", "kl": "k3"})
    assert chart.present(ROWS) == {"call_rate": "all"}
    assert legend(chart, ROWS) == []
    both = Chart(
        title="Calls", y="rate", series={"call_rate_hard": "hard", "call_rate_easy": "easy"}, colors=("#1", "#2")
    )
    assert legend(both, ROWS) == [("#1", "hard"), ("#2", "easy")]


def test_the_raw_steps_are_drawn_beside_the_mean_and_numbers_that_are_not_finite_are_gaps() -> None:
    rows = [*ROWS, {"step": 40, "call_rate": float("nan")}, {"step": 41}]
    spec = line_spec(Chart(title="", y="", series={"call_rate": "all"}), rows, width=100, height=100)
    assert spec is not None
    values = spec["data"]["values"]
    assert [point["y"] for point in values] == [row["call_rate"] for row in ROWS]
    assert len(spec["layer"]) == 2
    assert spec["layer"][0]["encoding"]["x"]["scale"]["domain"] == [0, 41]


def test_a_stack_counts_a_missing_share_as_nothing() -> None:
    rows = [{"step": 1, "a": 1.0}, {"step": 2, "a": 0.5, "b": 0.5}, {"step": 3, "a": 1.0, "b": None}]
    spec = line_spec(Chart(title="", y="", series={"a": "A", "b": "B"}, kind="area"), rows, width=100, height=100)
    assert spec is not None
    assert [point["y"] for point in spec["data"]["values"] if point["series"] == "B"] == [0, 0.5, 0]


def test_a_long_run_is_thinned_without_changing_its_mean() -> None:
    rows = [{"step": k, "a": float(k % 7)} for k in range(7000)]
    spec = line_spec(Chart(title="", y="", series={"a": "A"}), rows, width=100, height=100)
    assert spec is not None
    values = [point["y"] for point in spec["data"]["values"]]
    assert len(values) <= 500
    assert sum(values) / len(values) == pytest.approx(3)


def test_the_moving_mean_is_centred_and_keeps_a_constant() -> None:
    assert moving_mean([0, 3, 6, 9], 3) == [1.5, 3, 6, 7.5]
    assert moving_mean([2.0] * 5, 3) == [2.0] * 5
    assert window(ROWS) == 3
    assert window(ROWS[:5]) == 1


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_policys_picture_is_written_with_its_legend(tmp_path: Path, suffix: str) -> None:
    path = policy_picture(ROWS, tmp_path / "docs" / f"policy.{suffix}")
    if suffix == "svg":
        assert {"needs the original", "answerable at a quarter", "step"} <= texts(path.read_text())
    else:
        with Image.open(path) as image:
            assert image.width > 1000


def test_a_sweep_has_a_line_a_run(tmp_path: Path) -> None:
    runs = {f"θ = {theta}": ROWS for theta in (0.15, 0.2, 0.3)}
    svg = sweep_picture(runs, tmp_path / "sweep.svg").read_text()
    assert {"θ = 0.15", "θ = 0.2", "θ = 0.3", "call rate"} <= texts(svg)


def test_what_cannot_be_drawn_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="call_rate_easy"):
        policy_picture([{"step": 1}], tmp_path / "a.svg")
    with pytest.raises(RunError, match="call_rate"):
        sweep_picture({"a": [{"step": 1}]}, tmp_path / "a.svg")
    with pytest.raises(RunError, match=r"\.svg or \.png"):
        policy_picture(ROWS, tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []
