"""The report is one file that needs no network, shows what a run left, and trusts nothing that a model wrote."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from agentvision.errors import RunError
from agentvision.evaluate.metrics import INTERVAL, summarize
from agentvision.images import ImageStore
from agentvision.journal import Journal
from agentvision.report import write_report
from agentvision.tracking import Tracker
from agentvision.types import StopReason

from ..scripted import glyph_recipe, trajectory

ATTACK = '<think>x</think><answer></span><script>alert(1)</script><img src=x onerror="alert(2)">"\'{{ 7*7 }}</answer>'


class Page(HTMLParser):
    """Elements and their attributes; text of scripts apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        (self.scripts if self._inside == "script" else self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, css: str | None = None) -> list[dict[str, str | None]]:
        return [
            a for name, a in self.elements if name == tag and (css is None or css in (a.get("class") or "").split())
        ]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with an evaluation, as `train` and `eval` leave it, and its report."""
    out = tmp_path_factory.mktemp("run")
    store = ImageStore()
    with Tracker.open(out, glyph_recipe()) as tracker, Journal(out) as journal:
        for step in range(1, 7):
            shares = {"call_rate_hard": step / 6, "call_rate_easy": 0.1, "accuracy": step / 6, "reward/format": 1.0}
            tracker.step({"step": step, "reward": step / 4, "time_rollout_s": 1.0, "stop": {"answered": 1.0}, **shares})
            made = [
                trajectory(store, f"s{step}{k}", called=k % 2 == 0, correct=k < 2, hard=k % 2 == 0, color=step)
                for k in range(4)
            ]
            journal.append(made, step=step, store=store)
        journal.append([trajectory(store, said=ATTACK, question=ATTACK)], step=6, store=store)
        journal.append([trajectory(store, "cropped", called=True, crop=True)], step=6, store=store)
    asked = [trajectory(store, f"e{k}", called=k % 2 == 0, hard=k % 2 == 0, color=99) for k in range(6)]
    with Journal(out / "evaluation") as journal:
        journal.append(asked, step=0, store=store)
    results = {"recipe": "small", "seconds": 1.5, "interval": INTERVAL, **summarize(asked)}
    (out / "results.json").write_text(json.dumps(results))
    (out / "recipe.resolved.yaml").write_text("name: small\npolicy: {options: {api_key: s3cret, top: 5}}\n")
    assert write_report(out) == out / "report.html"
    return out


@pytest.fixture(scope="module")
def text(kept: Path) -> str:
    """The report's source. Drawing it takes a second, so that tests share one."""
    return (kept / "report.html").read_text()


@pytest.fixture
def run(kept: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(kept, tmp_path / "run", ignore=shutil.ignore_patterns("report.html")))


def test_the_page_shows_training_evaluation_trajectories_and_recipe(text: str) -> None:
    page = Page(text)
    for words in (
        "When the model looks closer",
        "Parts of the reward",
        "Why episodes end",
        "Time by phase",
        "call rate, needs the original",
        "Wilson score",
        "What does the sign say?",
        "crop ran in 2 ms",
        "name: small",
        "started",
    ):
        assert words in page.text
    assert len(page.all("details", "card")) == 32


def test_nothing_is_fetched_and_every_image_stands_in_the_page_once(text: str) -> None:
    page = Page(text)
    links = [
        value for _, attrs in page.elements for name, value in attrs.items() if name in ("src", "href", "xlink:href")
    ]
    assert [link for link in links if link and not link.startswith("#")] == []
    assert "@import" not in text
    assert not re.search(r"url\(\s*['\"]?(?!#)", text)
    images = json.loads(page.scripts[0])
    named = {attrs["data-image"] for attrs in page.all("img")}
    assert named == set(images)
    assert all(text.count(url) == 1 for url in images.values())
    assert all(url.startswith(("data:image/png;base64,", "data:image/webp;base64,")) for url in images.values())


def test_what_a_model_wrote_stays_text(text: str) -> None:
    page = Page(text)
    assert len(page.scripts) == 2
    assert "alert" not in page.scripts[1]
    assert all("onerror" not in attrs for _, attrs in page.elements)
    assert "{{ 7*7 }}" in page.text
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    script_source = policy.split("script-src")[1]
    assert "unsafe-inline" not in script_source


def test_the_pages_own_script_is_the_one_that_its_policy_allows(text: str) -> None:
    script = text.rsplit("<script>", 1)[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in text


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
def test_in_a_browser_the_script_runs_under_the_pages_policy_and_shows_the_images(kept: Path) -> None:
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command.append((kept / "report.html").as_uri())
    dom = Page(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    assert "32 of 32 shown" in dom.text
    shown = dom.all("img")
    assert shown
    assert all((a.get("src") or "").startswith("data:image/") for a in shown)


def test_a_crops_box_is_drawn_on_the_original(text: str) -> None:
    page = Page(text)
    boxes = [a for a in page.all("rect") if "x" in a]
    assert {(a["x"], a["y"], a["width"], a["height"]) for a in boxes} == {("16.0", "12.0", "32.0", "24.0")}
    assert any(a.get("viewbox") == "0 0 64 48" for a in page.all("svg"))


def test_a_credential_in_the_recipe_is_masked(text: str) -> None:
    assert "s3cret" not in text
    assert "top: 5" in text


def test_cards_carry_what_the_filters_ask_for(text: str) -> None:
    page = Page(text)
    filters = {a["name"] for a in page.all("select")}
    assert filters == {"source", "step", "outcome", "called", "needs"}
    card = page.all("details", "card")[0]
    assert {f"data-{name}" for name in filters} <= set(card)


def test_the_number_of_trajectories_is_bounded(run: Path) -> None:
    page = Page(write_report(run, out=run / "small.html", most=10).read_text())
    assert len(page.all("details", "card")) == 10
    assert {a["data-outcome"] for a in page.all("details", "card")} == {"right", "wrong"}


@pytest.mark.parametrize("keep", ["metrics.jsonl", "results.json", "trajectories.jsonl"])
def test_parts_that_are_missing_are_left_out(run: Path, keep: str) -> None:
    for name in {"metrics.jsonl", "results.json", "trajectories.jsonl", "recipe.resolved.yaml", "events.jsonl"} - {
        keep
    }:
        (run / name).unlink()
    (run / "evaluation" / "trajectories.jsonl").unlink()
    page = Page(write_report(run).read_text())
    headings = {a.get("id") for a in page.all("section")}
    assert headings & {"training", "evaluation", "trajectories", "run"} == {
        {"metrics.jsonl": "training", "results.json": "evaluation", "trajectories.jsonl": "trajectories"}[keep]
    }


def test_a_missing_image_is_told_and_not_fatal(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    for path in (run / "images").iterdir():
        path.unlink()
    assert len(Page(write_report(run).read_text()).all("details", "card")) == 32


def test_an_episode_without_views_or_an_answer_is_shown(tmp_path: Path) -> None:
    store = ImageStore()
    t = trajectory(store, correct=None, stop=StopReason.ENV_ERROR)
    t = replace(t, views=(), originals=(), turns=(), messages=(), answer=None, error="ImageError: <b>\nTraceback")
    with Journal(tmp_path) as journal:
        journal.append([t], step=0, store=store)
    page = Page(write_report(tmp_path).read_text())
    assert "no answer" in page.text
    assert "env error: ImageError: <b>" in page.text
    assert "Traceback" not in page.text


@pytest.mark.parametrize("files", [{}, {"metrics.jsonl": "nonsense\n"}, {"results.json": "{"}])
def test_a_directory_that_is_no_run_is_a_clear_error(tmp_path: Path, files: dict[str, Any]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(RunError):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
