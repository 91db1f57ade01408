"""A training run from its folder's first file to its last: start or resume, stages, loop, export, report.

A run's folder is never overwritten. Resuming takes the newest whole checkpoint and refuses a recipe that differs in
anything but `trainer.steps`, `alarms` and where servers are. Whatever ends the loop (the last step, a signal, a reason to
stop), a whole checkpoint of the last finished step is left behind.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from agentvision._heap import settled_heap
from agentvision._whole_file import whole_file
from agentvision._workers import run_sync
from agentvision.data import open_questions
from agentvision.engine.ranks import tells_of_lost_rank
from agentvision.errors import AgentVisionError, RunError, TrainingStopped, first_line
from agentvision.preflight import preflight
from agentvision.recipe import Recipe, load_recipe
from agentvision.recipe.resolved import differing_keys, write_resolved
from agentvision.run_folder import CHECKPOINTS, EXPORT, METRICS, RESOLVED, SERVERS, WARM_START
from agentvision.train.checkpoint import Checkpoint, Checkpoints
from agentvision.train.export import export_model
from agentvision.train.grpo import GRPO
from agentvision.train.guard import BadImages, BadSteps, Interruption
from agentvision.train.learner import Learner, make_accelerator, make_learner
from agentvision.train.prompts import PromptStream
from agentvision.train.records import Records
from agentvision.train.seeding import seed_everything
from agentvision.train.sft import WarmStart
from agentvision.train.update import UpdateStats
from agentvision.types import Sample

log = logging.getLogger(__name__)

MAY_DIFFER = (
    "trainer.steps",
    "alarms.",
    "policy.endpoints",
    "policy.options.api_key_env",
    "policy.options.devices",
    "policy.options.servers",
    "policy.options.weights_host",
)
"""Beginnings of keys. A finished run may be continued for longer (with a schedule other than constant this changes the
later rates), one that an alarm stopped with other alarms, and one whose servers are gone at others: they touch no weight."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run left behind. `export` and `report` are None when it was interrupted; `checkpoint` too, when that was before
    there was one."""

    out: Path
    steps: int
    checkpoint: Path | None
    export: Path | None = None
    report: Path | None = None
    interrupted: signal.Signals | None = None
    moved: bool = True
    """False: no step had a signal, so the weights are those that the first one began with."""

    @property
    def summary(self) -> str:
        """What came of it, in a line."""
        if self.steps and not self.moved:
            return (
                f"{self.out}: nothing was learned in {self.steps} steps: none had a group whose rewards differ, so no weight "
                f"moved (groups_no_signal in {METRICS}). Look at the weights of the rewards, and at what the environment "
                f"lets the model do; the report is {self.report}"
            )
        return f"{self.out}: {self.steps} steps; the model is in {self.export}, the report is {self.report}"


def train(recipe: Recipe, *, out: Path | str | None = None, resume: bool = False, quiet: bool = False) -> TrainResult:
    """Train a recipe's policy into the folder `out` (`runs/NAME` by default).

    Ctrl-C and SIGTERM end the run cleanly with a checkpoint; `resume` continues it, in the weights it would have had.
    Under `torchrun` or `accelerate launch` every process calls this.

    Raises:
        RunError: the folder holds a run and `resume` is off, or it cannot be resumed, or the disk is full.
        TrainingStopped: numbers that are not finite, or rewards that fail; the message names the last checkpoint.
        AgentVisionError: a model, data set, tool or reward that cannot be found or used.
    """
    folder = Path(out) if out is not None else Path("runs") / recipe.name

    return run_sync(lambda: _train(recipe, folder, resume=resume, quiet=quiet))


async def _train(recipe: Recipe, out: Path, *, resume: bool, quiet: bool) -> TrainResult:
    preflight(recipe, train=True)
    accelerator = make_accelerator(recipe)
    _check_world(recipe, accelerator)
    checkpoints = Checkpoints(out / CHECKPOINTS, keep=recipe.trainer.keep)
    _check_folder(out, recipe, resume=resume)
    with accelerator.main_process_first():  # it sets damaged ones aside
        found = checkpoints.newest() if resume else None
    if resume and found is None:
        if (out / EXPORT).exists():
            raise RunError(f"{out}: the run is done and no whole checkpoint of it is left; take a new --out")
        log.warning("%s: there is no whole checkpoint: starting from the beginning", out)
    questions = open_questions(recipe, "train"), _held_out(recipe)  # a data set that is missing costs no model
    seed_everything(recipe.seed)
    reference = out / WARM_START if found and recipe.warm_start else None
    model = found.model if found else None
    learner = make_learner(recipe, accelerator, model=model, reference=reference, logs=out / SERVERS)
    with Interruption() as interruption:  # around the end too: a launcher whose other ranks failed ends this one
        try:
            await asyncio.sleep(0)  # a Ctrl-C that came while the model was loaded is heard here
            with settled_heap():
                return await _stages(
                    recipe,
                    out,
                    learner,
                    accelerator,
                    questions,
                    checkpoints,
                    found,
                    interruption,
                    resume=resume,
                    quiet=quiet,
                )
        finally:
            await learner.rewards.close()
            await learner.policy.close()


async def _stages(
    recipe: Recipe,
    out: Path,
    learner: Learner,
    accelerator: Accelerator,
    questions: tuple[Sequence[Sample], list[Sample]],
    checkpoints: Checkpoints,
    found: Checkpoint | None,
    interruption: Interruption,
    *,
    resume: bool,
    quiet: bool,
) -> TrainResult:
    samples, held_out = questions
    main = accelerator.is_main_process
    accelerator.wait_for_everyone()  # everybody has looked at the folder
    if found is None and not await _first_weights(learner, interruption, warm_start=recipe.warm_start is not None):
        return TrainResult(out, 0, None, interrupted=interruption.received)
    # Only now that all the recipe names is there and works: a typo, or a server that is none, leaves no folder behind.
    if main:
        _claim(out, recipe)
    done = found.step if found else 0
    records = Records.open(out, recipe, done=done, resume=resume, quiet=quiet)
    run = GRPO(
        recipe=recipe,
        learner=learner,
        accelerator=accelerator,
        prompts=PromptStream(
            samples, seed=recipe.seed, rank=accelerator.process_index, world=accelerator.num_processes
        ),
        held_out=held_out,
        checkpoints=checkpoints,
        bad=BadSteps(recipe.trainer.max_bad_steps),
        bad_images=BadImages(recipe.data.max_bad_share),
        records=records,
        interruption=interruption,
    )
    failed = True
    try:
        with records.progress, _all_ranks(run):
            await _loop(run, out, found)
        failed = False
        return _finish(run, out)
    finally:
        records.close(failed=failed)


async def _first_weights(learner: Learner, interruption: Interruption, *, warm_start: bool) -> bool:
    """Bring the policy the weights that all begins with: an engine of its own may have anybody's. Before a supervised stage it
    is only asked whether it is there. False: a signal came first."""
    try:
        with _all_ranks(None):
            with interruption.may_cancel_alone():
                await learner.policy.ready() if warm_start else await learner.policy.weights_changed(0)
            return not interruption.came_to_any()
    except asyncio.CancelledError as cancelled:
        interruption.took(cancelled)
        return False


async def _loop(run: GRPO, out: Path, found: Checkpoint | None) -> None:
    """The stages, and a checkpoint whatever ends them."""
    try:
        if found is not None:
            run.learner.read(found.path)
            run.restore(found.state, found.step)
            with run.interruption.may_cancel_alone():
                await run.sync()
        if run.recipe.warm_start is not None and run.saved < 0:
            await _warm_start(run, out)
        await run.loop()
        run.save()
    except asyncio.CancelledError as cancelled:
        run.interruption.took(cancelled)
        if _warm(run) and not run.torn:
            run.save()
    except TrainingStopped as stopped:
        run.records.event("stopped", step=run.step, reason=str(stopped))
        if _warm(run) and not run.torn:
            run.save()
        raise TrainingStopped(f"{stopped}. {_kept(run)}") from stopped


@contextmanager
def _all_ranks(run: GRPO | None) -> Iterator[None]:
    """A rank that is gone is met at the next thing that all do together: it ends the run, of which nothing more can be saved."""
    try:
        yield
    except RuntimeError as error:
        if not tells_of_lost_rank(error):
            raise
        step = 0 if run is None else run.step
        reason = f"step {step}: another training process is gone, or does not answer ({first_line(error)})"
        if run is not None:
            run.records.event("stopped", step=step, reason=reason)
        raise TrainingStopped(f"{reason}; what it said last is in the launcher's output. {_kept(run)}") from error


def _kept(run: GRPO | None) -> str:
    if run is None:
        return "Nothing was begun"
    if run.saved < 0:
        return "There is no checkpoint yet: --resume begins anew"
    return f"The last whole checkpoint is {run.checkpoints.path(run.saved)}"


def _warm(run: GRPO) -> bool:
    """Whether the supervised stage, if the recipe has one, is done: weights half taught are not saved."""
    return run.saved >= 0 or run.recipe.warm_start is None


async def _warm_start(run: GRPO, out: Path) -> None:
    """The supervised stage. Its weights are kept: they are where GRPO starts, and the reference of its KL."""
    total = run.recipe.warm_start.steps if run.recipe.warm_start else 0

    def on_step(step: int, stats: UpdateStats) -> None:
        run.records.progress.stage(f"warm start {step}/{total}  loss {stats.loss:.3f}", step)
        if step % 10 == 0 or step == total:
            run.records.event("warm_start", step=step, loss=stats.loss, grad_norm=stats.grad_norm)

    await WarmStart(
        recipe=run.recipe,
        learner=run.learner,
        questions=open_questions(run.recipe, "warm_start"),
        interruption=run.interruption,
        on_step=on_step,
        rank=run.accelerator.process_index,
        world=run.accelerator.num_processes,
    ).run()
    if run.accelerator.is_main_process:
        export_model(run.learner.model, run.learner.codec, out / WARM_START, source=run.learner.source)
    run.learner.reset_reference()
    run.save()
    await run.sync()


def _finish(run: GRPO, out: Path) -> TrainResult:
    checkpoint = run.checkpoints.path(run.step)
    signal_ = run.interruption.received
    if signal_ is not None and run.step < run.recipe.trainer.steps:
        run.records.event("interrupted", step=run.step, signal=signal_.name)
        if run.saved < 0:
            run.records.progress.say(f"{signal_.name}: stopped before there was a checkpoint: nothing is kept")
            return TrainResult(out, 0, None, interrupted=signal_)
        # Of an update that a second signal cut off nothing is kept.
        run.records.progress.say(f"{signal_.name}: stopped after step {run.saved}, and a checkpoint of it is in {out}")
        return TrainResult(out, run.saved, run.checkpoints.path(run.saved), interrupted=signal_)
    if run.step and not run.moved:
        run.records.event("nothing_learned", step=run.step)
    export, report = out / EXPORT, None
    if run.accelerator.is_main_process:
        learner = run.learner
        export_model(learner.model, learner.codec, export, source=learner.source)
        report = _report(out)
    return TrainResult(out, run.step, checkpoint, export=export, report=report, moved=run.moved)


def _held_out(recipe: Recipe) -> list[Sample]:
    """The questions of the evaluations between steps: the first of those that `agentvision eval` asks."""
    if not recipe.trainer.eval_every:
        return []
    questions = open_questions(recipe, "eval")
    return [questions[k] for k in range(min(recipe.trainer.eval_n, len(questions)))]


def _report(out: Path) -> Path | None:
    """The report is a view of what is on disk: that it fails does not undo a finished run."""
    from agentvision.report import write_report

    try:
        return write_report(out)
    except (AgentVisionError, OSError) as error:
        log.warning("the report could not be written: %s; `agentvision report %s` tries again", error, out)
        return None


def _check_world(recipe: Recipe, accelerator: Accelerator) -> None:
    world = accelerator.num_processes
    shared: dict[str, int | None] = {
        "trainer.prompts_per_step": recipe.trainer.prompts_per_step,
        "trainer.mini_batch_prompts": recipe.trainer.mini_batch_prompts,
        "warm_start.batch_size": recipe.warm_start.batch_size if recipe.warm_start else None,
    }
    for name, value in shared.items():
        if value is not None and value % world:
            raise RunError(f"{name}={value} cannot be shared out evenly to {world} processes; take a multiple of it")


def _check_folder(out: Path, recipe: Recipe, *, resume: bool) -> None:
    """Raise `RunError` where a run may not be started or resumed with this recipe."""
    resolved = out / RESOLVED
    if not resume:
        # What a run leaves that was killed before it began, or whose servers did not start, is no run.
        if out.exists() and (not out.is_dir() or any(p.suffix != ".part" and p.name != SERVERS for p in out.iterdir())):
            raise RunError(f"{out} is there already, and no run is overwritten: take --resume, or a new --out")
        return
    if not resolved.is_file():
        raise RunError(f"{out} holds no run to resume: there is no {RESOLVED} in it; leave --resume out, or mend --out")
    changed = [key for key in differing_keys(load_recipe(resolved), recipe) if not key.startswith(MAY_DIFFER)]
    if changed:
        raise RunError(
            f"{out} was started with another recipe; these keys differ: {', '.join(changed)}. Resume with the values in "
            f"{resolved}, or start a new run with another --out"
        )


def _claim(out: Path, recipe: Recipe) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with whole_file(out / RESOLVED) as part:  # without it a run cannot be resumed
            write_resolved(recipe, part)
    except OSError as error:
        raise RunError(f"{out}: cannot write a run here: {error}") from error
