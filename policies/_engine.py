"""Continuous batching over one model: who is in the batch, what is already known, one step at a time.

A *row* of the KV pool belongs to a session and outlives its turns: the next turn prefills only what the row does not hold
yet, checked token by token. Rows at work are the first of the pool; a row that finishes stays in place, idle, until a
quarter of them are idle or somebody joins, and only then do rows move. A prompt that several requests share (the rollouts
of a group, or equal second turns) is prefilled by one of them, and the others copy it. The engine is synchronous and
belongs to one thread; `transformers.py` gives it that thread and an asyncio face.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from agentvision.errors import ModelError
from agentvision.images import ImageStore
from agentvision.policies._jobs import NO_TOKENS, Job, Outcome, PolicyStats, common_prefix
from agentvision.policies._kv_pool import KVPool
from agentvision.policies._network import Network, Ragged
from agentvision.policies._sampling import RowSampling, sample, stream_key, uniforms
from agentvision.policies._vision import ImageEmbeddings
from agentvision.positions import mrope_positions
from agentvision.tokens import Codec
from agentvision.types import ImageHash, ImageSegment, Segment, TextSegment

_PARKED_S = 2.0
"""How long a session may wait for its tool before others may take its row."""

_LENGTH, _POSITION, _COUNT, _LIMIT, _KEY, _TOKEN, _ALIVE, _TOP_K = range(8)
"""Columns of the state: tokens in the row, position of the next, tokens sampled this turn, their limit, the key of the
random stream, the token sampled last (not in the row yet), whether the row is at work, top-k."""


@dataclass(slots=True, eq=False)
class _Row:
    """A row of the pool. `codes` are the tokens that it holds, `prompts` the keys under which others find it."""

    slot: int
    session: str | None = None
    codes: np.ndarray = field(default_factory=lambda: NO_TOKENS)
    prompts: set[bytes] = field(default_factory=set)
    job: Job | None = None
    joined: int = 0
    """The step before which its job joined."""
    idle_since: float = 0.0


@dataclass(frozen=True, slots=True)
class _Prefix:
    """A prefilled prompt: the row whose first `length` tokens it is, and the state (H,) of its last token."""

    row: _Row
    length: int
    hidden: torch.Tensor
    next_position: int


@dataclass(slots=True, eq=False)
class _Joiner:
    """A job on its way into the batch: `codes` must be in its row, and the first `past` of them are."""

    job: Job
    codes: np.ndarray
    key: bytes
    prefix: _Prefix | None
    row: _Row
    past: int = 0
    leader: _Joiner | None = None
    next_position: int = 0

    @property
    def new(self) -> int:
        return len(self.codes) - self.past

    @property
    def copies(self) -> bool:
        """Whether its prompt is taken from another row instead of prefilled."""
        return self.leader is not None or self.prefix is not None


class Engine:
    """Not thread-safe. `max_rows` sessions at most hold keys and values at a time; `prefill_tokens` bounds one forward pass."""

    def __init__(
        self,
        network: Network,
        codec: Codec,
        stats: PolicyStats,
        *,
        max_rows: int,
        prefill_tokens: int,
        image_tokens: int,
    ) -> None:
        self.stats = stats
        self.version = 0
        self._network = network
        self._max_rows = max_rows
        self._prefill_tokens = prefill_tokens
        self._embeddings = ImageEmbeddings(
            network, codec, stats, max_tokens=image_tokens, call_tokens=prefill_tokens
        )
        device = network.device
        self._ban = torch.zeros(network.vocab_size, device=device)
        self._ban[[i for i in codec.banned_ids if i < network.vocab_size]] = -torch.inf
        self._stop_ids = frozenset(codec.stop_ids)
        self._is_stop = torch.zeros(network.vocab_size, dtype=torch.bool, device=device)
        self._is_stop[list(codec.stop_ids)] = True
        self.reset()

    def reset(self) -> None:
        """Forget every session and give the pool's memory back."""
        device = self._network.device
        self._pool = KVPool(self._network.kv_shape)
        self._rows: list[_Row] = []
        self._by_session: dict[str, _Row] = {}
        self._prefixes: dict[bytes, _Prefix] = {}
        self._window = 0
        """Rows 0 … window-1 take part in decoding; those without a job are idle."""
        self._steps = 0
        self._state = torch.zeros(0, 8, dtype=torch.int64, device=device)
        self._warmth = torch.zeros(0, 2, device=device)  # temperature, top_p
        self._ids = torch.zeros(0, 0, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(0, 0, device=device)
        self._refresh()

    @property
    def active(self) -> list[Job]:
        """The jobs at work."""
        return [row.job for row in self._rows[: self._window] if row.job is not None]

    # --- sessions ---------------------------------------------------------------------------------------------------

    def release(self, session: str) -> None:
        """Free the row of a session that has ended. What it holds stays findable until the row is taken."""
        if (row := self._by_session.pop(session, None)) is not None:
            row.session = None
            if row.job is not None:
                self._stop(row)

    def cancel(self, job: Job) -> None:
        """Take a job out of the batch and free its row."""
        row = self._by_session.get(job.session)
        if row is not None and row.job is job:
            self.release(job.session)

    def _stop(self, row: _Row) -> None:
        row.job = None
        row.idle_since = time.monotonic()
        self._state[row.slot, _ALIVE] = 0

    def weights_changed(self, *, version: int, keep_images: bool) -> list[Job]:
        """Drop all that older weights computed. Returns the jobs at work, to be admitted again with what they have said."""
        self.version = version
        jobs = []
        for row in self._rows[: self._window]:
            if (job := row.job) is not None:
                ids, logprobs = self._said(row)
                job.ids, job.logprobs = ids, logprobs
                jobs.append(job)
                self._stop(row)
        for row in self._rows:
            row.codes, row.prompts = NO_TOKENS, set()
        self._prefixes.clear()
        self._window = 0
        if not keep_images:
            self._embeddings.clear()
        return jobs

    def _said(self, row: _Row) -> tuple[list[int], list[float]]:
        job = row.job
        if job is None:
            raise RuntimeError(f"row {row.slot} has no job")
        start = len(job.ids)
        count = start + 1 + self._steps - row.joined
        ids = self._ids[row.slot, start:count].tolist()
        return job.ids + ids, job.logprobs + self._logprobs[row.slot, start:count].tolist()

    # --- joining ----------------------------------------------------------------------------------------------------

    def select(self, waiting: Sequence[Job]) -> tuple[list[Job], list[Job]]:
        """Split the queue into those that can join now and those that have to wait for a row."""
        bound = len(self._by_session)
        chosen: list[Job] = []
        rest: list[Job] = []
        new: set[str] = set()
        busy = {job.session for job in self.active}
        for job in waiting:
            if job.session in busy:
                rest.append(job)
            elif job.session in self._by_session:
                chosen.append(job)
                busy.add(job.session)
            elif bound + len(new) < self._max_rows or self._evict(
                keep={j.session for j in waiting}, force=not busy and not chosen
            ):
                bound = len(self._by_session)
                new.add(job.session)
                chosen.append(job)
                busy.add(job.session)
            else:
                rest.append(job)
        return chosen, rest

    def _evict(self, *, keep: set[str], force: bool) -> bool:
        """Take the row of the session that has been idle longest, if it has been for long or nothing else can go on."""
        idle = [r for s, r in self._by_session.items() if r.job is None and s not in keep]
        oldest = min(idle, key=lambda r: r.idle_since, default=None)
        if oldest is None or oldest.session is None:
            return False
        if not force and time.monotonic() - oldest.idle_since < _PARKED_S:
            return False
        self.release(oldest.session)
        self.stats.evicted_sessions += 1
        return True

    def admit(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Bring jobs (chosen by `select`) into the batch and sample each one's first token."""
        if not jobs:
            return []
        started = time.perf_counter()
        self._network.eval()
        self._compact()
        joiners, images, outcomes = self._see(self._plan(jobs))
        if joiners:
            start, stop = self._window, self._window + len(joiners)
            self._seat(joiners)
            hidden = self._fill(joiners, images)
            self._enter(joiners)
            self._window = stop
            self._refresh()
            outcomes += self._emit(start, stop, self._network.logits(hidden))
        self.stats.requests += len(jobs)
        self.stats.admit_s += time.perf_counter() - started
        return outcomes

    def _plan(self, jobs: Sequence[Job]) -> list[_Joiner]:
        """Bind a row to each job and find what is known already; those that prefill come first, those that copy last."""
        self._grow_rows(len(self._by_session) + sum(job.session not in self._by_session for job in jobs))
        # Rows that nobody could copy from are taken first.
        free = sorted((r for r in self._rows if r.session is None), key=lambda r: (bool(r.prompts), r.idle_since))
        leaders: dict[bytes, _Joiner] = {}
        joiners: list[_Joiner] = []
        for job in jobs:
            codes = job.known
            key = codes.tobytes()
            row = self._by_session.get(job.session) or free.pop(0)
            joiner = _Joiner(job, codes, key, self._prefixes.get(key), row)
            if joiner.prefix is None:
                joiner.past = min(common_prefix(row.codes, codes), len(codes) - 1)
                leader = leaders.setdefault(key, joiner)
                joiner.leader = None if leader is joiner else leader
            row.session = job.session
            self._by_session[job.session] = row
            joiners.append(joiner)
        return sorted(joiners, key=lambda j: (j.copies, j.past > 0, -j.new))

    def _grow_rows(self, needed: int) -> None:
        if needed > len(self._rows):
            count = max(needed, min(2 * len(self._rows), self._max_rows))
            self._pool.reserve(rows=count, capacity=0)
            self._rows += [_Row(slot) for slot in range(len(self._rows), count)]
            self._state, self._warmth = _grown(self._state, count, 8), _grown(self._warmth, count, 2)
            self._widen(self._ids.shape[1])

    def _widen(self, columns: int) -> None:
        """Room for `columns` sampled tokens in every row."""
        self._ids = _grown(self._ids, len(self._rows), columns)
        self._logprobs = _grown(self._logprobs, len(self._rows), columns)

    def _see(self, joiners: list[_Joiner]) -> tuple[list[_Joiner], dict[ImageHash, torch.Tensor], list[Outcome]]:
        """Embed all the images to be prefilled; a job whose image cannot be read fails alone."""
        wanted: dict[ImageHash, tuple[ImageStore, ImageSegment]] = {}
        for joiner in joiners:
            if not joiner.copies:
                wanted |= _new_images(joiner)
        try:
            return joiners, self._embeddings.get(wanted), []
        except Exception as error:
            if len(joiners) == 1:
                self.release(joiners[0].job.session)
                return [], {}, [Outcome(joiners[0].job, error=error)]
        seen: dict[ImageHash, torch.Tensor] = {}
        failed: dict[_Joiner, Exception] = {}
        for joiner in joiners:
            try:
                if not joiner.copies:
                    seen |= self._embeddings.get(_new_images(joiner))
                elif joiner.leader in failed:
                    failed[joiner] = failed[joiner.leader]
            except Exception as error:
                failed[joiner] = error
        for joiner in failed:
            self.release(joiner.job.session)
        return [j for j in joiners if j not in failed], seen, [Outcome(j.job, error=e) for j, e in failed.items()]

    def _seat(self, joiners: Sequence[_Joiner]) -> None:
        """Set the joiners' rows side by side behind the window, with room for all that they will hold."""
        past = max(j.past for j in joiners)
        self._pool.reserve(rows=0, capacity=max(past + max(j.new for j in joiners), *(len(j.codes) + 1 for j in joiners)))
        self._place([j.row for j in joiners], self._window)

    def _place(self, rows: Sequence[_Row], start: int) -> list[tuple[int, int]]:
        """Swap rows so that those given stand at start, start + 1, …; returns the moves made as (source, target) slots."""
        before: dict[_Row, int] = {}
        for slot, row in enumerate(rows, start):
            if row.slot == slot:
                continue
            other = self._rows[slot]
            before.setdefault(row, row.slot)
            before.setdefault(other, slot)
            self._rows[slot], self._rows[row.slot] = row, other
            other.slot, row.slot = row.slot, slot
        moved = [(source, row) for row, source in before.items() if source != row.slot]
        held = [(source, row) for source, row in moved if len(row.codes)]
        self._pool.move(
            [source for source, _ in held],
            [row.slot for _, row in held],
            length=max((self._length(row) for _, row in held), default=0),
        )
        return [(source, row.slot) for source, row in moved]

    def _length(self, row: _Row) -> int:
        """Tokens in the row, those of the running turn included."""
        return len(row.codes) + (self._steps - row.joined if row.job is not None else 0)

    def _fill(self, joiners: Sequence[_Joiner], images: Mapping[ImageHash, torch.Tensor]) -> torch.Tensor:
        """Bring every joiner's row up to its prompt; returns the state (M, H) of each prompt's last token."""
        # Known prefixes first: the rows that hold them may be about to be overwritten.
        known = [(j, j.prefix) for j in joiners if j.prefix is not None and j.prefix.row is not j.row]
        self._pool.move(
            [p.row.slot for _, p in known], [j.row.slot for j, _ in known], length=max((p.length for _, p in known), default=0)
        )
        for joiner in joiners:
            if joiner.prefix is None or joiner.prefix.row is not joiner.row:
                self._forget(joiner.row, beyond=joiner.past if not joiner.copies else 0)
        hidden: dict[_Joiner, torch.Tensor] = {}
        leaders = [j for j in joiners if not j.copies]
        for chunk in self._chunks(leaders):
            for joiner, state in zip(chunk, self._prefill(chunk, images), strict=True):
                hidden[joiner] = state
                self._prefixes[joiner.key] = _Prefix(joiner.row, len(joiner.codes), state, joiner.next_position)
                joiner.row.prompts.add(joiner.key)
        siblings = [(j, j.leader) for j in joiners if j.leader is not None]
        self._pool.move(
            [leader.row.slot for _, leader in siblings],
            [j.row.slot for j, _ in siblings],
            length=max((len(j.codes) for j, _ in siblings), default=0),
        )
        for joiner in joiners:
            joiner.row.codes = joiner.codes
            if joiner.leader is not None:
                joiner.next_position, hidden[joiner] = joiner.leader.next_position, hidden[joiner.leader]
            elif joiner.prefix is not None:
                joiner.next_position, hidden[joiner] = joiner.prefix.next_position, joiner.prefix.hidden
            joiner.job.prefilled, joiner.job.reused = (0, len(joiner.codes)) if joiner.copies else (joiner.new, joiner.past)
            self.stats.prefilled_tokens += joiner.job.prefilled
            self.stats.reused_tokens += joiner.job.reused
        return torch.stack([hidden[j] for j in joiners])

    def _forget(self, row: _Row, *, beyond: int) -> None:
        """The row is about to be overwritten after its first `beyond` tokens: nobody may find the longer prompts there."""
        for key in [k for k in row.prompts if self._prefixes[k].length > beyond]:
            row.prompts.discard(key)
            del self._prefixes[key]

    def _chunks(self, leaders: Sequence[_Joiner]) -> Iterator[list[_Joiner]]:
        """Neighbours that go into one forward pass: all fresh or all going on, at most `prefill_tokens` with padding."""
        chunk: list[_Joiner] = []
        for joiner in leaders:
            if chunk and (
                (joiner.past > 0) != (chunk[0].past > 0) or (len(chunk) + 1) * chunk[0].new > self._prefill_tokens
            ):
                yield chunk
                chunk = []
            chunk.append(joiner)
        if chunk:
            yield chunk

    def _prefill(self, chunk: Sequence[_Joiner], images: Mapping[ImageHash, torch.Tensor]) -> torch.Tensor:
        """One forward pass over what the rows of a chunk (neighbours, the longest first) do not hold; (B, H)."""
        device = self._network.device
        rows, width = len(chunk), chunk[0].new
        codes = np.zeros((rows, width), dtype=np.int64)
        positions = torch.zeros(3, rows, width, dtype=torch.int64)
        pieces: list[torch.Tensor] = []
        for k, joiner in enumerate(chunk):
            codes[k, : joiner.new] = joiner.codes[joiner.past :]
            segments = _segments(joiner.job)
            all_positions = mrope_positions(segments, merge=self._network.merge)
            positions[:, k, : joiner.new] = all_positions.ids[:, joiner.past :]
            joiner.next_position = all_positions.next
            pieces += [images[s.image][skip:] for s, skip in _images_after(segments, joiner.past)]
        ids = torch.from_numpy(np.maximum(codes, 0)).to(device)
        embeds = self._network.embed(ids)
        if pieces:
            places = torch.from_numpy(np.flatnonzero(codes.reshape(-1) < 0)).to(device)
            embeds.view(rows * width, -1)[places] = torch.cat(pieces)
        past = torch.tensor([j.past for j in chunk], device=device)
        fresh = chunk[0].past == 0
        length = width if fresh else max(j.past for j in chunk) + width
        start = chunk[0].row.slot
        self.stats.prefill_calls += 1
        return self._network.last_hidden(
            Ragged(
                embeds=embeds,
                positions=positions.to(device),
                past=past,
                lengths=torch.tensor([j.new for j in chunk], device=device),
                fresh=fresh,
            ),
            self._pool.window(start, start + rows, length=length),
        )

    def _enter(self, joiners: Sequence[_Joiner]) -> None:
        """Set the state of the rows that join."""
        numbers: list[list[int]] = []
        warmth: list[list[float]] = []
        for joiner in joiners:
            job, row = joiner.job, joiner.row
            params = job.sampling
            row.job, row.joined = job, self._steps
            if not job.ids:
                job.version = self.version
            numbers.append(
                [
                    len(joiner.codes),
                    joiner.next_position,
                    len(job.ids),
                    params.max_tokens,
                    stream_key(params.seed, job.turn),
                    0,
                    1,
                    params.top_k,
                ]
            )
            warmth.append([params.temperature, params.top_p])
        self._widen(max(j.job.sampling.max_tokens for j in joiners) + 1)
        rows = slice(self._window, self._window + len(joiners))
        self._state[rows] = torch.tensor(numbers, device=self._network.device)
        self._warmth[rows] = torch.tensor(warmth, device=self._network.device)

    def _compact(self) -> None:
        """Move the rows at work to the front, so that the idle ones leave the window."""
        window = self._rows[: self._window]
        working = sum(row.job is not None for row in window)
        if working < self._window:
            spare = (row for row in reversed(window) if row.job is not None)
            moves = self._place([row if row.job is not None else next(spare) for row in window[:working]], 0)
            if moves:
                source, target = (torch.tensor(m, device=self._network.device) for m in zip(*moves, strict=True))
                for tensor in (self._state, self._warmth, self._ids, self._logprobs):
                    tensor[target] = tensor[source]
            self._window = working
        self._refresh()

    def _refresh(self) -> None:
        """What is known of the window on this side of the device."""
        params = [job.sampling for job in self.active]
        self._reach = max((self._length(row) for row in self._rows[: self._window]), default=0)
        self._greedy = any(p.temperature == 0 for p in params)
        self._random = any(p.temperature > 0 for p in params)
        self._filter = any(p.top_p < 1 or p.top_k > 0 for p in params)

    # --- decoding ---------------------------------------------------------------------------------------------------

    def step(self) -> list[Outcome]:
        """Sample one more token in every row at work; returns the jobs that this ended."""
        if not self._window:
            return []
        started = time.perf_counter()
        rows = self._window
        state = self._state[:rows]
        self._pool.reserve(rows=0, capacity=self._reach + 1)
        hidden = self._network.last_hidden(
            Ragged(
                embeds=self._network.embed(state[:, _TOKEN])[:, None],
                positions=state[None, :, _POSITION, None].expand(3, -1, -1),
                past=state[:, _LENGTH],
                lengths=torch.ones(rows, dtype=torch.int64, device=state.device),
                fresh=False,
            ),
            self._pool.window(0, rows, length=self._reach + 1),
        )
        state[:, _LENGTH : _POSITION + 1] += state[:, _ALIVE, None]
        self._steps += 1
        self._reach += 1
        outcomes = self._emit(0, rows, self._network.logits(hidden))
        self.stats.decode_steps += 1
        self.stats.decode_rows += rows
        if 4 * sum(row.job is None for row in self._rows[:rows]) >= rows:
            self._compact()
        self.stats.decode_s += time.perf_counter() - started
        return outcomes

    def _emit(self, start: int, stop: int, logits: torch.Tensor) -> list[Outcome]:
        """Sample rows start … stop-1 from their `logits`; returns the jobs that this ended."""
        state, warmth = self._state[start:stop], self._warmth[start:stop]
        count, alive = state[:, _COUNT], state[:, _ALIVE]
        drawn = sample(
            logits,
            self._ban,
            uniforms(state[:, _KEY], count),
            RowSampling(
                temperature=warmth[:, 0],
                top_p=warmth[:, 1],
                top_k=state[:, _TOP_K],
                any_greedy=self._greedy,
                any_random=self._random,
                any_filter=self._filter,
            ),
        )
        at = torch.arange(start, stop, device=state.device), count
        self._ids[at], self._logprobs[at] = drawn.ids, drawn.logprobs
        state[:, _TOKEN] = drawn.ids
        count += alive
        over = self._is_stop[drawn.ids] | (count >= state[:, _LIMIT])
        verdicts = (alive * (over + 2 * ~drawn.logprobs.isfinite())).tolist()
        ended = [(row, v) for row, v in zip(self._rows[start:stop], verdicts, strict=True) if v]
        return [self._finish(row, diverged=verdict >= 2) for row, verdict in ended]

    def _finish(self, row: _Row, *, diverged: bool) -> Outcome:
        job = row.job
        if job is None:
            raise RuntimeError(f"row {row.slot} ended without a job")
        ids, logprobs = self._said(row)
        self.stats.sampled_tokens += len(ids)
        row.codes = np.concatenate([row.codes, np.asarray(ids[len(job.ids) : -1], dtype=np.int64)])
        self._stop(row)
        if diverged:
            self.release(job.session)
            return Outcome(job, error=ModelError("the model's logits are not finite: its weights have diverged"))
        return Outcome(job, tuple(ids), tuple(logprobs))


def _grown(tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The tensor (R, C), or a larger one of zeros that holds it at its top left."""
    if rows <= tensor.shape[0] and columns <= tensor.shape[1]:
        return tensor
    grown = tensor.new_zeros(max(rows, tensor.shape[0]), max(columns, tensor.shape[1]))
    grown[: tensor.shape[0], : tensor.shape[1]] = tensor
    return grown


def _segments(job: Job) -> tuple[Segment, ...]:
    return (*job.segments, TextSegment(tuple(job.ids))) if job.ids else job.segments


def _images_after(segments: Sequence[Segment], past: int) -> Iterator[tuple[ImageSegment, int]]:
    """The images that reach beyond the first `past` tokens, each with how many of its tokens lie before."""
    at = 0
    for segment in segments:
        if not isinstance(segment, ImageSegment):
            at += len(segment.ids)
            continue
        if at + segment.tokens > past:
            yield segment, max(0, past - at)
        at += segment.tokens


def _new_images(joiner: _Joiner) -> dict[ImageHash, tuple[ImageStore, ImageSegment]]:
    images = _images_after(joiner.job.segments, joiner.past)
    return {segment.image: (joiner.job.store, segment) for segment, _ in images}
