"""Where a model is: a folder, the Hub, or nowhere, told at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from agentvision.errors import ModelError
from agentvision.hub import local_folder, reachable

ANSWERS = {
    "there": (200, ""),
    "gone": (404, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "empty": (404, "EntryNotFound"),
}


class FakeHub(BaseHTTPRequestHandler):
    """Answers as the Hub does, by the repository's name."""

    def do_HEAD(self) -> None:
        name = self.path.split("/")[2]
        status, code = (404, "RevisionNotFound") if "/resolve/v9/" in self.path else ANSWERS[name]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", '"b"')
        self.send_header("Content-Length", "2")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use_hub(f"http://127.0.0.1:{server.server_port}", monkeypatch, tmp_path)
    yield
    server.shutdown()
    server.server_close()


def use_hub(url: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "cache"))


def test_a_folder_is_found_and_an_id_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "config.json").write_text("{}")
    assert local_folder("models/mine") == Path("models/mine")
    assert reachable("models/mine") == "models/mine"
    assert local_folder("Qwen/Qwen2.5-VL-7B-Instruct") is None


@pytest.mark.parametrize("path", ["./gone", "/gone", "~/gone", "runs/demo/export", "gone/", Path("gone")])
def test_a_path_without_a_folder_is_told_without_a_network(path: str | Path) -> None:
    with pytest.raises(ModelError, match="there is no model folder"):
        reachable(path)


def test_an_adapter_is_no_model_and_the_merged_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds an adapter alone; .* export/"):
        local_folder(tmp_path)


def test_a_run_is_no_model_but_holds_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no config\.json in it\.$"):
        local_folder(tmp_path)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=rf"Did you mean '{tmp_path}/export'\?"):
        local_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("org/gone", None, "there is no folder 'org/gone', and no such model on the Hub"),
        ("org/gated", None, "is gated: ask for access"),
        ("org/empty", None, "holds no model"),
        ("org/there", "v9", "has no revision 'v9'"),
        ("not an id", None, "no such model on the Hub"),
    ],
)
def test_what_the_hub_says_is_one_line(fake_hub: None, name: str, revision: str | None, message: str) -> None:
    assert reachable("org/there") == "org/there"
    with pytest.raises(ModelError, match=message) as caught:
        reachable(name, revision=revision)
    assert "\n" not in str(caught.value)


def test_without_a_network_an_id_fails_within_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_hub("http://127.0.0.1:1", monkeypatch, tmp_path)
    began = time.perf_counter()
    with pytest.raises(ModelError, match="the Hub cannot be reached") as caught:
        reachable("org/model")
    assert time.perf_counter() - began < 15  # the library that loads models would try six times a file
    assert "\n" not in str(caught.value)


def test_without_a_network_what_was_downloaded_before_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_hub("http://127.0.0.1:1", monkeypatch, tmp_path)
    kept = tmp_path / "cache" / "models--org--model"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("a" * 40)
    (kept / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (kept / "snapshots" / ("a" * 40) / "config.json").write_text("{}")
    assert reachable("org/model") == str(kept / "snapshots" / ("a" * 40))
