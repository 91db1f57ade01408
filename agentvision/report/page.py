"""One page about a run: `report.html`, whole in itself. It opens from a disk, without a network and years later.

The page is filled from what the run directory holds, and a missing part is left out: metrics, recipe, events, results
of an evaluation, journals. Charts are drawn beforehand; the one script filters the trajectories. Texts of models and
data are escaped, and the page's own policy forbids every connection and every script but that one.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from agentvision import __version__
from agentvision._whole_file import whole_file
from agentvision.errors import RunError
from agentvision.evaluate.compare import Result, labelled_rows, read_results
from agentvision.journal import read_trajectories
from agentvision.report.cards import card, data_url, image_keys
from agentvision.report.charts import EASY, HARD, PALETTE, Chart, Row, chart_svg, legend, window
from agentvision.report.select import Facts, choose
from agentvision.run_folder import EVALUATION, METRICS, REPORT, RESOLVED, RESULTS, TRAJECTORIES
from agentvision.tracking import is_secret, read_events, read_metrics

_RIGHT = PALETTE[2]

POLICY = Chart(
    title="When the model looks closer",
    y="call rate",
    series={"call_rate_hard": "needs the original", "call_rate_easy": "answerable from the first view"},
    domain=(0, 1),
    colors=(HARD, EASY),
    caption="Share of rollouts in which a tool delivered a view, by whether the question needs it.",
)
CALLS = Chart(
    title="When the model looks closer",
    y="call rate",
    series={"call_rate": "all questions"},
    domain=(0, 1),
    caption="Share of rollouts in which a tool delivered a view.",
)
LEARNED = (
    Chart(title="Reward", y="mean", series={"reward": "total"}, caption="Weighted total of a rollout."),
    Chart(
        title="Accuracy and format",
        y="share of rollouts",
        series={"accuracy": "right", "format": "well formed"},
        domain=(0, 1),
        colors=(_RIGHT, PALETTE[3]),
    ),
    Chart(
        title="Accuracy by need",
        y="share of rollouts",
        series={"accuracy_hard": "needs the original", "accuracy_easy": "answerable from the first view"},
        domain=(0, 1),
        colors=(HARD, EASY),
    ),
    Chart(
        title="Visual tokens",
        y="tokens a question",
        series={
            "visual_tokens_full": "the original at once",
            "visual_tokens_additive": "additive",
            "visual_tokens_replacement": "replacement",
        },
        colors=(PALETTE[5], PALETTE[0], PALETTE[7]),
        caption="Additive counts every view shown; replacement, a later view in the place of the one before.",
    ),
)
DIAGNOSTICS = (
    Chart(title="Entropy", y="nats a token", series={"entropy": "entropy"}),
    Chart(title="KL to the reference", y="nats a token", series={"kl": "k3"}),
    Chart(title="Clipped tokens", y="share", series={"clip_share": "clipped"}),
    Chart(title="Gradient norm", y="before clipping", series={"grad_norm": "norm"}),
    Chart(
        title="Sampler against trainer",
        y="|Δ log-prob|",
        series={"logprob_diff_mean": "mean", "logprob_diff_max": "largest"},
    ),
    Chart(
        title="Importance of the sampled tokens",
        y="effective sample size",
        series={"importance_ess": "of raw ratios", "importance_bounded_share": "truncated or masked"},
    ),
    Chart(
        title="Staleness",
        y="steps behind",
        series={"staleness_mean": "mean of tokens", "staleness_max": "largest"},
    ),
    Chart(
        title="Groups",
        y="groups a step",
        series={"groups": "all", "groups_no_signal": "without signal", "groups_dropped": "dropped"},
    ),
    Chart(title="Tokens written", y="a rollout", series={"output_tokens": "mean", "output_tokens_max": "longest"}),
    Chart(title="Throughput", y="rollouts a second", series={"samples_per_s": "whole step"}),
)
STACKED = (
    ("stop/", "Why episodes end", "share of rollouts", (0.0, 1.0)),
    ("time_", "Time by phase", "seconds a step", None),
)


def write_report(run_dir: Path | str, *, out: Path | str | None = None, most: int = 48) -> Path:
    """Write the report of a run or an evaluation and return its path (`out`, or `report.html` in the directory).

    `most` is the number of trajectories to show, of training and evaluation together.

    Raises:
        RunError: the directory holds neither metrics, results nor a journal, or what it holds is damaged.
    """
    directory = Path(run_dir)
    metrics = read_metrics(directory) if (directory / METRICS).exists() else []
    results = read_results(sorted({*directory.glob(RESULTS), *directory.glob(f"*/{RESULTS}")}))
    journals = {"evaluation": directory / EVALUATION, "training" if metrics else "episode": directory}
    journals = {source: path for source, path in journals.items() if (path / TRAJECTORIES).exists()}
    if not (metrics or results or journals):
        raise RunError(
            f"{directory}: nothing to report on: no {METRICS}, {RESULTS} or {TRAJECTORIES}; name a run's directory"
        )
    cards, images = _viewer(journals, most)
    page = _environment().get_template("report.html.jinja").render(
        title=_title(directory, results),
        directory=directory.resolve().name,
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        tiles=_tiles(metrics, results),
        policy=_drawn([POLICY], metrics, width=880, height=250) or _drawn([CALLS], metrics, width=880, height=250),
        learned=_drawn(_learned(metrics), metrics, width=410, height=160),
        diagnostics=_drawn(_diagnostics(metrics), metrics, width=240, height=120),
        smoothed=window(metrics),
        steps=len(metrics),
        results=results,
        rows=labelled_rows(results),
        events=[_event(row) for row in read_events(directory)],
        recipe=_recipe(directory),
        cards=cards,
        images=images,
        filters=_filters(cards),
        **_assets(),
    )  # fmt: skip
    path = Path(out) if out is not None else directory / REPORT
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            part.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunError(f"{path}: cannot write the report: {error}") from error
    return path


def _environment() -> Any:
    from jinja2 import DictLoader, Environment, StrictUndefined

    here = files("agentvision.report")
    templates = {"report.html.jinja": (here / "report.html.jinja").read_text(encoding="utf-8")}
    environment = Environment(
        loader=DictLoader(templates), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    return environment


def number(value: object) -> str:
    """A metric for people: three significant places, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _assets() -> dict[str, str]:
    """Style and script, with the hashes by which the page's policy knows them."""
    here = files("agentvision.report")
    texts = {
        name: (here / file).read_text(encoding="utf-8")
        for name, file in (("style", "style.css"), ("script", "script.js"))
    }
    script_hash = base64.b64encode(hashlib.sha256(texts["script"].encode()).digest()).decode()
    return texts | {"script_hash": script_hash}


def _title(directory: Path, results: Sequence[Result]) -> str:
    match = re.search(r"^name:\s*([^\s#]+)", _recipe(directory), re.MULTILINE)
    if match:
        return match[1].strip("\"'")
    return str(results[0].values.get("recipe", directory.name)) if results else directory.resolve().name


def _tiles(metrics: Sequence[Row], results: Sequence[Result]) -> list[dict[str, str]]:
    """The few numbers that a reader wants first: of the evaluation, else of the last steps."""
    if results:
        values, where = results[0].values, f"{results[0].values.get('n', '?')} held-out questions"
    elif metrics:
        last = metrics[-max(1, len(metrics) // 10) :]
        values = {name: _mean(row.get(name) for row in last) for name in {key for row in last for key in row}}
        where = f"last {len(last)} steps" if len(last) > 1 else "last step"
    else:
        return []
    tiles: list[dict[str, str]] = []
    for name, label in (
        ("accuracy", "accuracy"),
        ("call_rate_hard", "call rate, needs the original"),
        ("call_rate_easy", "call rate, answerable at once"),
        ("call_rate", "call rate"),
    ):
        value = values.get(name)
        if isinstance(value, (int, float)) and not (name == "call_rate" and len(tiles) == 3):
            tiles.append({"value": f"{100 * value:.1f} %", "label": label, "where": where})
    used, full = values.get("visual_tokens_additive"), values.get("visual_tokens_full")
    if isinstance(used, (int, float)) and isinstance(full, (int, float)) and full > 0:
        tiles.append(
            {"value": f"{100 * used / full:.0f} %", "label": "visual tokens against full resolution", "where": where}
        )
    return tiles


def _mean(values: Iterable[object]) -> float | None:
    known = [float(value) for value in values if isinstance(value, (int, float))]
    return sum(known) / len(known) if known else None


def _learned(metrics: Sequence[Row]) -> list[Chart]:
    """Charts of what was learned, those of this run's own reward parts and held-out evaluations included."""
    names = _names(metrics)
    parts = {name: name.removeprefix("reward/") for name in names if name.startswith("reward/")}
    held_out = {name: name[5:].replace("_", " ") for name in names if re.match(r"eval[/_](accuracy|call_rate)", name)}
    return [
        LEARNED[0],
        Chart(title="Parts of the reward", y="mean score", series=parts, caption="Before weighting."),
        *LEARNED[1:],
        Chart(title="Held-out questions", y="share of questions", series=held_out, domain=(0, 1), smooth=False),
    ]


def _diagnostics(metrics: Sequence[Row]) -> list[Chart]:
    """Charts of how it went, those of this run's own stop reasons and phases included."""
    charts = [chart for chart in DIAGNOSTICS if any(row.get(name) for row in metrics for name in chart.series)]
    for prefix, title, y, domain in STACKED:
        series = {
            name: name.removeprefix(prefix).removesuffix("_s").replace("_", " ")
            for name in _names(metrics)
            if name.startswith(prefix)
            and any(row.get(name) for row in metrics)
            and name not in ("time_step_s", "time_wait_s")
        }
        charts.append(Chart(title=title, y=y, series=series, kind="area", domain=domain))
    return charts


def _names(metrics: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in metrics for name in row))


def _drawn(charts: Iterable[Chart], metrics: Sequence[Row], *, width: int, height: int) -> list[dict[str, Any]]:
    drawn: list[dict[str, Any]] = []
    for chart in charts:
        svg = chart_svg(chart, metrics, width=width, height=height)
        if svg is not None:
            keys = legend(chart, metrics)
            drawn.append({"title": chart.title, "caption": chart.caption, "legend": keys, "svg": svg})
    return drawn


def _event(row: Mapping[str, Any]) -> dict[str, str]:
    rest = {key: value for key, value in row.items() if key not in ("time", "event")}
    when = row.get("time")
    return {
        "when": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) if isinstance(when, (int, float)) else "",
        "what": str(row.get("event", "")),
        "details": ", ".join(f"{key} {number(value)}" for key, value in rest.items() if value is not None),
    }


def _recipe(directory: Path) -> str:
    """The resolved recipe's text; what may be a credential, by its key's name, is masked."""
    path = directory / RESOLVED
    if not path.exists():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(re.sub(r"([\w-]+)(\s*:\s*)([^\s{\[#][^,}#]*)", _mask, line) for line in lines)


def _mask(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2]}***" if is_secret(match[1]) else match[0]


def _viewer(journals: Mapping[str, Path], most: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The chosen trajectories and their images as data: URLs by hash."""
    cards: list[dict[str, Any]] = []
    images: dict[str, str] = {}
    for left, (source, path) in zip(range(len(journals), 0, -1), journals.items(), strict=True):
        quota = (most - len(cards)) // left
        wanted = set(choose([Facts.of(entry) for entry in read_trajectories(path)], quota))
        chosen = [entry for index, entry in enumerate(read_trajectories(path)) if index in wanted]
        chosen.sort(key=lambda entry: -entry.step)  # what was learned first, what it came from after it
        shown = [card(entry, source=source) for entry in chosen]
        for key in image_keys(shown):
            if key not in images and (url := data_url(path, key)) is not None:
                images[key] = url
        cards += shown
    return cards, images


def _filters(cards: Sequence[Row]) -> list[dict[str, Any]]:
    """The viewer's choices; one that would not divide the cards is left out."""
    labels = {
        "source": {},
        "step": {},
        "outcome": {"right": "right", "wrong": "wrong", "invalid": "no verdict"},
        "called": {"called": "looked closer", "direct": "answered directly"},
        "needs": {"hard": "needs the original", "easy": "first view is enough", "unknown": "not known"},
    }
    filters: list[dict[str, Any]] = []
    for name, known in labels.items():
        values = sorted({c[name] for c in cards if name != "step" or c["source"] == "training"})
        if len(values) > 1:
            options = [{"value": str(value), "label": known.get(str(value), str(value))} for value in values]
            filters.append({"name": name, "options": options})
    return filters
