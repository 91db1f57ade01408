"""Measure the judge and write its section of docs/results.md: what cannot fool it, faults, outages, a large step, training.

    python bench/judge.py [--only cases faults outage step training] [--prompts 512] [--dry]

Every server is a real one on loopback (tests/openai_server.py). What is not measured in this call is kept from the last one.
`training` trains the tiny recipe twice, by exact match and by the judge, in processes of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the server and what it says are the tests'

import judge_cases  # noqa: E402
from judge_step import CONCURRENCY, ROLLOUTS, side  # noqa: E402
from page import write_section  # noqa: E402

from agentvision.rewards.judge import Judge  # noqa: E402
from agentvision.tracking import read_metrics  # noqa: E402
from tests.judging import same_text  # noqa: E402
from tests.openai_server import FAULTS, OpenAIServer, outage_from, seeded_faults  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "judge.json"
LATENCY_S = 0.5
TRAINED = ("accuracy", "call_rate_hard", "call_rate_easy", "reward")


def cases() -> dict[str, Any]:
    return judge_cases.count()


# --- faults ---------------------------------------------------------------------------------------------------------


def faults(calls: int = 800, concurrency: int = 16, latency_s: float = 1.0, timeout_s: float = 3.0) -> dict[str, Any]:
    """30 % of the responses fail, in nine ways; the ideal is what the attempts themselves took, side by side."""
    with OpenAIServer(answer=same_text, fault=seeded_faults(0.3), latency_s=latency_s, retry_after="0.5") as server:
        judge = _judge(server, concurrency=concurrency, call_timeout_s=timeout_s)
        answers = [("blue" if n % 3 else "red", f"Question {n}?") for n in range(calls)]

        async def ask_all() -> list[Any]:
            return await asyncio.gather(
                *(judge(question=question, truth="blue", answer=answer) for answer, question in answers)
            )

        _warm(judge, server)
        began = time.perf_counter()
        verdicts = asyncio.run(ask_all())
        seconds = time.perf_counter() - began
        taken = [timeout_s if r.fault == "hang" else (r.ended or r.began) - r.began for r in server.requests]
    counts = judge.summary(judge.metrics())
    meant = [float(answer == "blue") for answer, _ in answers]
    ideal = sum(taken) / concurrency
    return {
        "judgements": calls,
        "concurrency": concurrency,
        "attempts": counts["attempts"],
        "faults": {kind: sum(r.fault == kind for r in server.requests) for kind in FAULTS},
        "invalid": sum(not verdict.valid for verdict in verdicts),
        "invented": sum(v.valid and v.score != m for v, m in zip(verdicts, meant, strict=True)),
        "seconds": seconds,
        "ideal_s": ideal,
        "ratio": seconds / ideal,
    }


def outage() -> dict[str, Any]:
    """By the default settings, how long until every judgement of a step is invalid."""
    found: dict[str, Any] = {}
    for kind in ("refused", "500", "hang"):
        with OpenAIServer(answer=same_text, hang_s=600) as server:
            judge = _judge(server)
            _warm(judge, server)
            server.fault = outage_from(0, kind)
            if kind != "refused":
                found[kind] = _until_given_up(judge)
        if kind == "refused":  # the server has gone
            found[kind] = _until_given_up(judge)
    return found


def _until_given_up(judge: Judge) -> float:
    async def ask_all() -> list[Any]:
        return await asyncio.gather(*(judge(question=f"{n}?", truth="blue", answer="red") for n in range(1024)))

    began = time.perf_counter()
    verdicts = asyncio.run(ask_all())
    assert not any(verdict.valid for verdict in verdicts)
    return time.perf_counter() - began


def _judge(server: OpenAIServer, **settings: Any) -> Judge:
    alone = {"cache": None, "rules": False, "audit_share": 0.0}
    return Judge.from_config(model="openai/bench", api_base=server.url, **alone, **settings)


def _warm(judge: Judge, server: OpenAIServer) -> None:
    """One request before the clock runs: importing the client takes seconds."""
    fault, server.fault = server.fault, lambda request: None
    asyncio.run(judge(question="Warm?", truth="yes", answer="it is"))
    server.requests.clear()
    server.fault = fault
    judge.metrics()


# --- a large step ---------------------------------------------------------------------------------------------------


def step(prompts: int) -> dict[str, Any]:
    found = []
    # One server for all: its address is part of a verdict's key.
    server = OpenAIServer(answer=same_text, latency_s=LATENCY_S)
    with tempfile.TemporaryDirectory() as folder, server:
        cache = str(Path(folder) / "verdicts.sqlite")
        for name, kind, where in (
            ("naively, a request a rollout", "naive", None),
            ("the judge without rules", "judge-no-rules", None),
            ("the judge", "judge", cache),
            ("the judge, the same step again", "judge", cache),
        ):
            server.requests.clear()
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                result = pool.submit(side, kind, server.url, prompts, where).result()
            result |= {"name": name, "requests": len(server.requests) - 1}
            found.append(result)
            print(name, result["requests"], f"{result['seconds']:.0f} s", flush=True)
    return {"prompts": prompts, "rollouts": ROLLOUTS, "concurrency": CONCURRENCY, "sides": found}


# --- training -------------------------------------------------------------------------------------------------------


def training(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with OpenAIServer(answer=same_text) as server:
        judge = {"model": "openai/local", "api_base": server.url, "rules": False, "cache": None, "audit_share": 0.0}
        ways = {
            "exact match": [],
            "the judge": [
                f"rewards={json.dumps([{'judge': judge}, {'format': {'weight': 0.5}}, {'ratio_penalty': {}}])}"
            ],
        }
        for name, overrides in ways.items():
            folder = out / name.replace(" ", "-")
            common = ["visionthink", "--profile", "tiny", "--out", str(folder), "trainer.eval_every=0"]
            if not (folder / "results.json").exists():
                _call("train", *common, *overrides)
                _call("eval", *common, "--model", str(folder / "export"))  # both are measured by exact match
            rows = read_metrics(folder)
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            found[name] = {
                "steps": len(rows),
                **{key: results.get(key) for key in TRAINED[:3]},
                "curve": [row["reward"] for row in rows],
                "judged": sum(row.get("judge/judged", 0) for row in rows),
                "calls": sum(row.get("judge/calls", 0) for row in rows),
                "invalid": sum(row.get("judge/invalid", 0) for row in rows),
            }
    one, other = (run["curve"] for run in found.values())
    found["same_curve"] = one == other
    return found


def _call(*arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "agentvision", *arguments], check=True, env=environment)


# --- the page -------------------------------------------------------------------------------------------------------


def page(found: dict[str, Any]) -> str:
    return "\n\n".join(text(found[name]) for name, text in TEXTS.items() if name in found)


def _cases_text(found: dict[str, Any]) -> str:
    return (
        f"**Cases made to fool it**: {found['adversarial']} in {len(found['families'])} families and {found['languages']}"
        f" languages through prefilter, prompt and parser: {found['false_positives']} false positives;"
        f" {found['refused_without_asking']} are refused without asking. Of {found['honest']} honest answers and replies"
        f" {found['kept']} are kept."
    )


def _faults_text(found: dict[str, Any]) -> str:
    kinds = ", ".join(f"{name} {count}" for name, count in found["faults"].items() if count)
    return (
        f"**Faults**: {found['judgements']} judgements at concurrency {found['concurrency']}, 30 % of the responses fail"
        f" ({kinds}); {found['attempts']:.0f} attempts. Scores that the server did not mean: {found['invented']}; invalid:"
        f" {found['invalid']}. {found['seconds']:.1f} s, {found['ratio']:.2f} × the {found['ideal_s']:.1f} s that the attempts"
        " take side by side."
    )


def _outage_text(found: dict[str, float]) -> str:
    kinds = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found.items())
    return (
        "**Total outage**, default settings: until all of 1,024 judgements are invalid, which ends a run with its"
        f" checkpoint: {kinds}."
    )


def _step_text(found: dict[str, Any]) -> str:
    naive = found["sides"][0]["requests"]
    lines = [
        f"**A large step**: {found['prompts']} prompts × {found['rollouts']} rollouts, all at once; the server takes"
        f" {LATENCY_S:g} s a reply, concurrency {found['concurrency']}. Answers are drawn as `bench/judge_step.py` says."
        " Memory is what the step adds to the process at its peak.",
        "",
        "| asked | requests | × fewer | wall, s | memory, MiB | decided by prefilter, rules, model | joined | cache hits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["sides"]:
        counts = row["counts"]
        shares = "–"
        if row["side"] != "naive":
            shares = ", ".join(f"{counts.get(f'share_{who}', 0):.2f}" for who in ("prefilter", "rules", "large"))
        fewer = f"{naive / row['requests']:.1f}" if row["requests"] else "all"
        cells = [
            row["name"],
            f"{row['requests']:,}",
            fewer,
            f"{row['seconds']:.1f}",
            f"{row['memory_mib']:.0f}",
            shares,
        ]
        cells += [f"{counts.get('joined', 0):.0f}", f"{counts.get('cache_hits', 0):.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _training_text(found: dict[str, Any]) -> str:
    lines = [
        "**Training**: the tiny recipe by exact match and by the judge (a server that compares truth and answer as it reads"
        " them in the prompt; without rules, cache and audit). Reward curves are"
        f" {'equal, step by step' if found['same_curve'] else 'not equal'}.",
        "",
        "| reward | steps | accuracy | call rate, hard | call rate, easy | judgements | requests | invalid |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ("exact match", "the judge"):
        row = found[name]
        rates = [f"{row[key]:.3f}" for key in TRAINED[:3]]
        counts = [f"{row[key]:.0f}" for key in ("judged", "calls", "invalid")]
        lines.append(f"| {name} | {row['steps']} | {' | '.join([*rates, *counts])} |")
    return "\n".join(lines)


TEXTS = {
    "cases": _cases_text,
    "faults": _faults_text,
    "outage": _outage_text,
    "step": _step_text,
    "training": _training_text,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TEXTS, default=list(TEXTS), help="measure these alone")
    parser.add_argument("--prompts", type=int, default=512, help="prompts of the large step")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-judge", help="folder of the training runs")
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    arguments = parser.parse_args()
    work = {
        "cases": cases,
        "faults": faults,
        "outage": outage,
        "step": lambda: step(arguments.prompts),
        "training": lambda: training(arguments.out),
    }
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in arguments.only:
        found[name] = work[name]()
        print(TEXTS[name](found[name]), flush=True)
    if not arguments.dry:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        write_section("judge", page(found))


if __name__ == "__main__":
    main()
