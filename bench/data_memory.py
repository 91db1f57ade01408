"""The memory that iterating a large data set takes: `make bench-data`.

Makes a set of real size on disk (100,000 questions about pictures of 2 megapixels) in two layouts: Arrow shards with
the encoded pictures inside, and JSON lines that name picture files. The pictures are JPEGs of a small pool, drawn anew for
this; rows repeat them, but every row of the Arrow set holds its own copy of the bytes, and every read and every decoding is
done as if they differed. To stay within the disk, the Arrow set's pictures are compressed hard. A process of its own then
opens the set as training does and walks through every row in the order of a training run, decoding every k-th picture
(`--decode-every 1`: all), and samples its memory.

Anonymous memory is what the process holds; file memory is pages of the mapped Arrow files, which the system takes
back whenever it wants.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "data.json"
PICTURE = HERE.parent / "docs" / "data-memory.svg"
SIZE_PX = (1632, 1224)
POOL = 16
SAMPLES = 200
"""Points of a curve."""
LAYOUTS = {"arrow": "Arrow shards, pictures inside", "jsonl": "JSON lines, pictures beside"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--decode-every", type=int, default=200)
    parser.add_argument("--walk", nargs=2, metavar=("LAYOUT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.walk:
        walk(*arguments.walk, decode_every=arguments.decode_every)
        return
    results: dict[str, Any] = {"rows": arguments.rows, "decode_every": arguments.decode_every, "pixels": list(SIZE_PX)}
    for layout in LAYOUTS:
        folder = Path(tempfile.mkdtemp(prefix="data-memory-"))
        try:
            began = time.perf_counter()
            make(layout, folder, arguments.rows)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            print(f"{layout}: {size / 1e9:.2f} GB made in {time.perf_counter() - began:.0f} s", flush=True)
            command = [sys.executable, __file__, "--walk", layout, str(folder)]
            out = subprocess.run(
                [*command, "--decode-every", str(arguments.decode_every)], check=True, capture_output=True, text=True
            )
            results[layout] = {"disk_bytes": size, **json.loads(out.stdout)}
        finally:
            shutil.rmtree(folder)
    results["machine"] = {"python": platform.python_version(), "system": platform.system()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report(results)


# --- the set --------------------------------------------------------------------------------------------------------


def make(layout: str, folder: Path, rows: int) -> None:
    """Write the set. Arrow: `rows` copies of small encodings; JSON lines: paths into a pool of ordinary ones."""
    pool = [picture(k, quality=5 if layout == "arrow" else 85) for k in range(POOL)]
    if layout == "jsonl":
        (folder / "images").mkdir()
        for k, data in enumerate(pool):
            (folder / "images" / f"{k}.jpg").write_bytes(data)
        with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
            for i in range(rows):
                row = {
                    "id": i,
                    "question": f"What is in picture {i}?",
                    "image": f"images/{i % POOL}.jpg",
                    "answer": str(i),
                }
                file.write(json.dumps(row) + "\n")
        return
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features(
        problem=datasets.Value("string"),
        images={"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        original_answer=datasets.Value("string"),
        doc_id=datasets.Value("string"),
    )
    (folder / "set").mkdir()
    names, done = [], 0
    while done < rows:  # shards as `save_to_disk` lays them out, written one at a time so that nothing is held twice
        count = min(10_000, rows - done)
        name = f"data-{len(names):05d}.arrow"
        from datasets.arrow_writer import ArrowWriter

        with ArrowWriter(path=str(folder / "set" / name), features=features, writer_batch_size=200) as writer:
            for i in range(done, done + count):
                writer.write(
                    {
                        "problem": f"<image>What is in picture {i}?",
                        "images": {"bytes": pool[i % POOL], "path": None},
                        "original_answer": str(i),
                        "doc_id": str(i),
                    }
                )
            writer.finalize()
        names.append(name)
        done += count
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "bench",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "set" / "state.json").write_text(json.dumps(state))
    info = datasets.DatasetInfo(features=features)
    info.write_to_directory(str(folder / "set"))


def picture(k: int, *, quality: int) -> bytes:
    """A JPEG with structure at every scale, so that it decodes like a photograph."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(k)
    image = Image.new("RGB", SIZE_PX)
    for cells in (3, 12, 48):
        noise = Image.fromarray(rng.integers(0, 255, (cells * 3 // 4, cells, 3), dtype=np.uint8))
        image = Image.blend(image, noise.resize(SIZE_PX, Image.Resampling.BILINEAR), 0.5)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


# --- the walk -------------------------------------------------------------------------------------------------------


def walk(layout: str, folder: str, *, decode_every: int) -> None:
    """Go through every row once, as one rank's stream of prompts does; print the curve as JSON."""
    from agentvision.data import open_questions
    from agentvision.images import ImageStore
    from agentvision.recipe import make_recipe
    from agentvision.train.prompts import PromptStream

    source, path = ("visionthink", f"{folder}/set") if layout == "arrow" else ("files", f"{folder}/train.jsonl")
    values = {
        "name": "bench",
        "model": {"path": "none"},
        "data": {"source": source, "path": path},
        "trainer": {"steps": 0},
    }
    before = memory()
    began = time.perf_counter()
    questions = open_questions(make_recipe(values), "train")
    opened_s = time.perf_counter() - began
    stream, rows = PromptStream(questions, seed=0), len(questions)
    curve = [{"row": 0, **memory()}]
    every, decoded, read_bytes = max(1, rows // SAMPLES), 0, 0
    began = time.perf_counter()
    for i in range(1, rows + 1):
        (sample,) = stream.take(1)
        source_ = getattr(sample.images[0], "source", sample.images[0])
        read_bytes += len(source_) if isinstance(source_, bytes) else source_.stat().st_size
        if i % decode_every == 0:
            ImageStore().load(sample.images[0])
            decoded += 1
        if i % every == 0:
            curve.append({"row": i, **memory()})
    walked_s = time.perf_counter() - began
    print(
        json.dumps(
            {
                "before": before,
                "opened_s": opened_s,
                "walked_s": walked_s,
                "decoded": decoded,
                "read_bytes": read_bytes,
                "curve": curve,
            }
        )
    )


def memory() -> dict[str, float]:
    """MB of this process, by kind (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(status[key].split()[0]) / 1024 for name, key in (("anonymous", "RssAnon"), ("file", "RssFile"))}


# --- the page -------------------------------------------------------------------------------------------------------


def report(results: dict[str, Any]) -> None:
    from page import write_section

    draw(results)
    table = "\n".join(_row(LAYOUTS[layout], results[layout]) for layout in LAYOUTS)
    write_section(
        "data-memory",
        f"""
{results["rows"]:,} rows of {SIZE_PX[0]} × {SIZE_PX[1]} pixels, read in the shuffled order of a training run by one process; every
{results["decode_every"]}th picture decoded (and resized, for the first layout). The pictures are {POOL} drawn ones that
rows repeat; in Arrow each row has its own copy of the bytes, compressed hard to fit the disk.

| layout | on disk, GB | opened, s | walked, s | decoded | anonymous memory once opened, MB | at most | at the end |
|---|---|---|---|---|---|---|---|
{table}

![Memory over the rows read](data-memory.svg)
""",
    )


def draw(results: dict[str, Any]) -> None:
    import vl_convert

    points = [
        {"rows": point["row"], "mb": point["anonymous"], "layout": label}
        for layout, label in LAYOUTS.items()
        for point in results[layout]["curve"]
    ]
    encoding = {
        "x": {"field": "rows", "type": "quantitative", "title": "rows read", "axis": {"format": ",d", "grid": False}},
        "y": {"field": "mb", "type": "quantitative", "title": "anonymous memory, MB", "scale": {"zero": True}},
        "color": {"field": "layout", "type": "nominal", "title": None, "legend": {"orient": "top", "labelLimit": 300}},
    }
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": 560,
        "height": 240,
        "padding": 12,
        "background": "white",
        "config": {"view": {"stroke": None}, "range": {"category": ["#3b82c4", "#d9822b"]}, "font": "sans-serif"},
        "data": {"values": points},
        "mark": {"type": "line", "strokeWidth": 2},
        "encoding": encoding,
    }
    PICTURE.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")


def _row(label: str, found: dict[str, Any]) -> str:
    anonymous = [point["anonymous"] for point in found["curve"]]
    cells = [
        label,
        f"{found['disk_bytes'] / 1e9:.2f}",
        f"{found['opened_s']:.1f}",
        f"{found['walked_s']:.0f}",
        f"{found['decoded']:,}",
        f"{anonymous[0]:.0f}",
        f"{max(anonymous):.0f}",
        f"{anonymous[-1]:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
