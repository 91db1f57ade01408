"""A policy that says what it is told to: a script, or what a journal recorded. No model takes part.

With a codec it makes ids and log-probs too, so that the path from environment to ledger can be run and tested without
a model: a recorded turn keeps its own, a scripted text is encoded and gets log-probs of 0. It is not trainable, because
nothing that it says was sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from agentvision.errors import PluginError
from agentvision.policy import Completion, Request
from agentvision.tokens import Codec
from agentvision.types import TextSegment, Trajectory


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    """What a model once said. Without `ids` the text is all there is."""

    text: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    ended: bool = True


Said: TypeAlias = str | RecordedTurn | Exception
"""One turn of a script; an exception is raised in its place."""
Script: TypeAlias = "Sequence[Said] | Mapping[str, Sequence[Said]] | Callable[[Request], Said]"


class ReplayPolicy:
    """Says its script's turns.

    `script` is the turns of every episode; or those of each, by its session (`group/rollout`) or group (by default the
    sample's id); or a function of the request.
    """

    trainable = False
    version = 0

    def __init__(self, script: Script, *, codec: Codec | None = None) -> None:
        self.codec = codec
        self._script = script

    @classmethod
    def from_trajectories(cls, trajectories: Iterable[Trajectory], *, codec: Codec | None = None) -> ReplayPolicy:
        """Repeat recorded episodes, found by the sample's id and the place among its rollouts."""
        script = {f"{t.sample.id}/{t.rollout}": turns_of(t, codec=codec) for t in trajectories}
        return cls(script, codec=codec)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        run: str | Path | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        trust_remote_code: bool = False,
        **_: Any,
    ) -> ReplayPolicy:
        """For recipes: repeat the journal in the directory `run`, with the codec of the model at `path`.

        Options of policies that load weights are taken and have no effect. Raises `PluginError` without `run`.
        """
        from agentvision.journal import read_trajectories

        if run is None:
            raise PluginError("policy 'replay' repeats a recorded run: set policy.options.run to its directory")
        codec = Codec.from_pretrained(
            path, min_pixels=min_pixels, max_pixels=max_pixels, trust_remote_code=trust_remote_code
        )
        return cls.from_trajectories((entry.trajectory for entry in read_trajectories(run)), codec=codec)

    async def complete(self, request: Request) -> Completion:
        """The turn that the script has for this request. Raises `LookupError` when it has none."""
        said = self._said(request)
        if isinstance(said, Exception):
            raise said
        if isinstance(said, str):
            said = RecordedTurn(said)
        if self.codec is None:
            return Completion(text=said.text, ended=said.ended)
        ids, logprobs, ended = said.ids, said.logprobs, said.ended
        if not ids:
            ids = (*self.codec.encode_text(said.text), *(self.codec.stop_ids[:1] if ended else ()))
            logprobs = (0.0,) * len(ids)
        if (limit := request.sampling.max_tokens) < len(ids):
            ids, logprobs, ended = ids[:limit], logprobs[:limit], False
        return Completion(text=self.codec.decode(ids), ids=ids, logprobs=logprobs, ended=ended)

    def _said(self, request: Request) -> Said:
        if callable(self._script):
            return self._script(request)
        turns = self._script
        if isinstance(turns, Mapping):
            if request.session not in turns and request.group not in turns:
                raise LookupError(f"the script has no episode {request.session!r} and no group {request.group!r}")
            turns = turns[request.session if request.session in turns else request.group]
        if request.turn >= len(turns):
            raise LookupError(f"the script of {request.session!r} ends after {len(turns)} turns")
        return turns[request.turn]

    async def release(self, session: str) -> None:
        """Nothing is kept between turns."""

    async def close(self) -> None:
        """Nothing is held."""


def turns_of(trajectory: Trajectory, *, codec: Codec | None = None) -> tuple[RecordedTurn, ...]:
    """What the model said in a trajectory, with its ids and log-probs where they were recorded."""
    recorded: list[tuple[tuple[int, ...], tuple[float, ...]]] = []
    for sampled, run in groupby(trajectory.segments, key=lambda s: isinstance(s, TextSegment) and s.sampled):
        if sampled:  # a run is one turn: between two turns stands what the chat template adds
            parts = [s for s in run if isinstance(s, TextSegment)]
            recorded.append((tuple(i for s in parts for i in s.ids), tuple(p for s in parts for p in s.logprobs or ())))
    if codec is None or len(recorded) != len(trajectory.turns):
        return tuple(RecordedTurn(turn.text) for turn in trajectory.turns)
    return tuple(
        RecordedTurn(turn.text, ids, logprobs, ended=ids[-1] in codec.stop_ids)
        for turn, (ids, logprobs) in zip(trajectory.turns, recorded, strict=True)
    )
