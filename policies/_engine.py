"""Continuous batching over one model: who is in the batch, one token at a time.

A session's row of keys and values outlives its turns: the next turn prefills only what the row does not hold yet,
checked token by token. Rows at work are the first of the pool, the *window*; a row that finishes stays in it, idle,
until a quarter are idle or somebody joins, and only then do rows move. A prompt that several requests share (the
rollouts of a group, or equal second turns) is prefilled by one of them, and the others copy it. The engine is
synchronous and belongs to one thread; `transformers.py` gives it that thread and an asyncio face.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from agentvision.errors import ModelError
from agentvision.policies._batch import BatchState, Entry
from agentvision.policies._jobs import Job, Outcome, PolicyStats, common_prefix
from agentvision.policies._network import Network, Ragged
from agentvision.policies._prefill import Joiner, chunks, prefill
from agentvision.policies._rows import Prefix, Row, RowTable
from agentvision.policies._vision import ImageEmbeddings
from agentvision.tokens import Codec
from agentvision.types import ImageHash

_PARKED_S = 2.0
"""How long a session may wait for its tool before others may take its row."""


class Engine:
    """Samples turns. Not thread-safe.

    At most `max_rows` sessions hold keys and values at a time; `prefill_tokens` bounds a forward pass, and
    `image_tokens` the cache of image embeddings.
    """

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
        self.version = 0
        self._network, self._stats = network, stats
        self._max_rows, self._prefill_tokens = max_rows, prefill_tokens
        self._images = ImageEmbeddings(network, codec, stats, max_tokens=image_tokens, call_tokens=prefill_tokens)
        self._ban = torch.zeros(network.vocab_size, device=network.device)
        self._ban[torch.tensor(codec.banned_ids, dtype=torch.int64)] = -torch.inf
        self._ban[codec.vocab_size :] = -torch.inf  # rows that pad the embedding stand for no token
        self._is_stop = torch.zeros(network.vocab_size, dtype=torch.bool, device=network.device)
        self._is_stop[list(codec.stop_ids)] = True
        self.reset()

    def reset(self) -> None:
        """Forget every session and give all memory back."""
        self._images.clear()
        self._start_over()

    def _start_over(self) -> None:
        self._table = RowTable(self._network.kv_shape, max_rows=self._max_rows)
        self._state = BatchState(self._network.device, ban=self._ban, is_stop=self._is_stop)
        self._window = 0
        self._steps = 0
        self._reach = 0
        """The most tokens that a row in the window holds."""

    @property
    def active(self) -> list[Job]:
        """The jobs at work."""
        return [row.job for row in self._table.rows[: self._window] if row.job is not None]

    @property
    def is_large(self) -> bool:
        """Whether so much memory is held that it has to go back as soon as the last session ends."""
        return self._table.is_large

    # --- sessions ---------------------------------------------------------------------------------------------------

    def release(self, session: str) -> Job | None:
        """Free the row of a session that has ended; its job, if it still had one at work."""
        row = self._table.release(session)
        job = None if row is None else row.job
        if row is not None and job is not None:
            self._stop(row)
        if self.is_large and not self._table.sessions:
            self._start_over()
        return job

    def cancel(self, job: Job) -> None:
        """Take a job out of the batch and free its row."""
        row = self._table.sessions.get(job.session)
        if row is not None and row.job is job:
            self.release(job.session)

    def _stop(self, row: Row) -> None:
        row.job = None
        row.idle_since = time.monotonic()
        self._state.idle(row.slot)

    def weights_changed(self, *, version: int, keep_images: bool) -> list[Job]:
        """Drop what older weights computed. Returns the jobs at work, to be admitted again with what they have said."""
        working = [row for row in self._table.rows[: self._window] if row.job is not None]
        jobs: list[Job] = []
        for row, (ids, logprobs) in zip(working, self._said(working), strict=True):
            if (job := row.job) is not None:
                job.versions = job.versions_of(ids, version=self.version)
                job.ids, job.logprobs = ids, logprobs
                jobs.append(job)
            self._stop(row)
        self.version = version
        self._table.forget_all()
        self._window = 0
        if not keep_images:
            self._images.clear()
        return jobs

    def _said(self, rows: Sequence[Row]) -> list[tuple[list[int], list[float]]]:
        """What each of the rows' turns has sampled so far: ids and log-probs."""
        if not rows:
            return []
        spans: list[tuple[Job, int]] = []
        for row in rows:
            if row.job is None:
                raise RuntimeError(f"row {row.slot} is not at work")
            spans.append((row.job, len(row.job.ids) + 1 + self._steps - row.joined))
        sampled = self._state.said([r.slot for r in rows], columns=max(end for _, end in spans))
        return [
            (job.ids + ids[len(job.ids) : end], job.logprobs + logprobs[len(job.ids) : end])
            for (job, end), (ids, logprobs) in zip(spans, sampled, strict=True)
        ]

    # --- joining ----------------------------------------------------------------------------------------------------

    def select(self, waiting: Sequence[Job]) -> tuple[list[Job], list[Job]]:
        """Split the queue into those that can join now and those that have to wait for a row."""
        queued = {job.session for job in waiting}
        busy = {job.session for job in self.active}
        held = len(self._table.sessions)
        chosen: list[Job] = []
        rest: list[Job] = []
        for job in waiting:
            known = job.session in self._table.sessions
            if job.session in busy:
                rest.append(job)
                continue
            if not known and held >= self._max_rows and self._evict(keep=queued, force=not busy):
                held -= 1
            if not known and held >= self._max_rows:
                rest.append(job)
                continue
            held += not known
            busy.add(job.session)
            chosen.append(job)
        return chosen, rest

    def _evict(self, *, keep: set[str], force: bool) -> bool:
        """Take the row of the session that has been idle longest, if it has been for long or nothing else can go on."""
        oldest = self._table.oldest_idle(keep=keep)
        if oldest is None or oldest.session is None:
            return False
        if not force and time.monotonic() - oldest.idle_since < _PARKED_S:
            return False
        self._table.release(oldest.session)
        self._stats.evicted_sessions += 1
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
            self._state.enter([Entry(j.job, len(j.codes), j.next_position) for j in joiners], start)
            for joiner in joiners:
                joiner.row.job, joiner.row.joined = joiner.job, self._steps
            self._window = stop
            self._reach = max(self._reach, *(len(j.codes) for j in joiners))
            outcomes += self._sample(start, stop, self._network.logits(hidden))
        self._stats.requests += len(jobs)
        self._stats.admit_s += time.perf_counter() - started
        return outcomes

    def _plan(self, jobs: Sequence[Job]) -> list[Joiner]:
        """Bind a row to each job and find what is known already; those that prefill come first, copies last."""
        table = self._table
        table.grow(len(table.sessions) + sum(job.session not in table.sessions for job in jobs))
        free = iter(table.free())
        leaders: dict[bytes, Joiner] = {}
        joiners: list[Joiner] = []
        for job in jobs:
            codes = job.known
            key = codes.tobytes()
            row = table.sessions.get(job.session) or next(free)
            joiner = Joiner(job, codes, key, row, prefix=table.find(key))
            if joiner.prefix is None and (leader := leaders.setdefault(key, joiner)) is not joiner:
                joiner.leader = leader
            elif joiner.prefix is None:
                joiner.past = min(common_prefix(row.codes, codes), len(codes) - 1)
            table.bind(row, job.session)
            joiners.append(joiner)
        return sorted(joiners, key=lambda j: (j.copies, j.past > 0, -j.new))

    def _see(self, joiners: list[Joiner]) -> tuple[list[Joiner], dict[ImageHash, torch.Tensor], list[Outcome]]:
        """Embed all the images to be prefilled; a job whose image cannot be read fails alone."""
        leaders = [j for j in joiners if not j.copies]
        try:
            return joiners, self._images.get({h: i for j in leaders for h, i in j.images().items()}), []
        except Exception:
            seen: dict[ImageHash, torch.Tensor] = {}
            failed: dict[Joiner, Exception] = {}
        for joiner in leaders:
            try:
                seen |= self._images.get(joiner.images())
            except Exception as error:
                failed[joiner] = error
        failed |= {j: failed[j.leader] for j in joiners if j.leader in failed}
        for joiner in failed:
            self.release(joiner.job.session)
        return [j for j in joiners if j not in failed], seen, [Outcome(j.job, error=e) for j, e in failed.items()]

    def _seat(self, joiners: Sequence[Joiner]) -> None:
        """Set the joiners' rows side by side behind the window, with room for all that they will hold."""
        padded = max(j.past for j in joiners) + max(j.new for j in joiners)
        self._table.pool.reserve(rows=0, capacity=max(padded, *(len(j.codes) + 1 for j in joiners)))
        self._table.place([j.row for j in joiners], self._window, length=0)

    def _fill(self, joiners: Sequence[Joiner], images: Mapping[ImageHash, torch.Tensor]) -> torch.Tensor:
        """Bring every joiner's row up to its prompt; returns the state (M, H) of each prompt's last token."""
        table = self._table
        # Prompts known before go first: the rows that hold them may be about to be overwritten.
        known = [(j, j.prefix) for j in joiners if j.prefix is not None and j.prefix.row is not j.row]
        table.pool.move(
            [prefix.row.slot for _, prefix in known],
            [joiner.row.slot for joiner, _ in known],
            length=max((prefix.length for _, prefix in known), default=0),
        )
        for joiner in joiners:
            if joiner.prefix is None or joiner.prefix.row is not joiner.row:
                table.forget(joiner.row, beyond=joiner.past)
        hidden: dict[Joiner, torch.Tensor] = {}
        for chunk in chunks([j for j in joiners if not j.copies], tokens=self._prefill_tokens):
            for joiner, state in zip(chunk, prefill(self._network, table.pool, chunk, images), strict=True):
                hidden[joiner] = state
                table.share(joiner.key, Prefix(joiner.row, len(joiner.codes), state, joiner.next_position))
            self._stats.prefill_calls += 1
        siblings = [(j, j.leader) for j in joiners if j.leader is not None]
        table.pool.move(
            [leader.row.slot for _, leader in siblings],
            [joiner.row.slot for joiner, _ in siblings],
            length=max((len(joiner.codes) for joiner, _ in siblings), default=0),
        )
        for joiner in joiners:
            joiner.row.codes = joiner.codes
            if joiner.leader is not None:
                joiner.next_position, hidden[joiner] = joiner.leader.next_position, hidden[joiner.leader]
            elif joiner.prefix is not None:
                joiner.next_position, hidden[joiner] = joiner.prefix.next_position, joiner.prefix.hidden
            job, total = joiner.job, len(joiner.codes)
            job.prefilled, job.reused = (0, total) if joiner.copies else (joiner.new, joiner.past)
            self._stats.prefilled_tokens += job.prefilled
            self._stats.reused_tokens += job.reused
        return torch.stack([hidden[j] for j in joiners])

    def _compact(self) -> None:
        """Move the rows at work to the front, so that the idle ones leave the window."""
        window = self._table.rows[: self._window]
        working = sum(row.job is not None for row in window)
        if working < self._window:
            spare = (row for row in reversed(window) if row.job is not None)
            front = [row if row.job is not None else next(spare) for row in window[:working]]
            self._state.move(self._table.place(front, 0, length=self._reach))
            self._window = working
        lengths = (len(r.codes) + self._steps - r.joined for r in self._table.rows[: self._window])
        self._reach = max(lengths, default=0)

    # --- decoding ---------------------------------------------------------------------------------------------------

    def step(self) -> list[Outcome]:
        """Sample one more token in every row at work; returns the jobs that this ended."""
        started = time.perf_counter()
        rows, state, pool = self._window, self._state, self._table.pool
        pool.reserve(rows=0, capacity=self._reach + 1)
        hidden = self._network.last_hidden(
            Ragged(
                embeds=self._network.embed(state.tokens(rows))[:, None],
                positions=state.positions(rows),
                past=state.lengths(rows),
                lengths=torch.ones(rows, dtype=torch.int64, device=self._network.device),
                fresh=False,
            ),
            pool.window(0, rows, length=self._reach + 1),
        )
        state.advance(rows)
        self._steps += 1
        self._reach += 1
        outcomes = self._sample(0, rows, self._network.logits(hidden))
        self._stats.decode_steps += 1
        self._stats.decode_rows += rows
        if 4 * (rows - len(self.active)) >= rows:
            self._compact()
        self._stats.decode_s += time.perf_counter() - started
        return outcomes

    def _sample(self, start: int, stop: int, logits: torch.Tensor) -> list[Outcome]:
        """Sample rows start … stop-1 from their `logits`; returns the jobs that this ended."""
        rows = self._table.rows
        params = [row.job.sampling for row in rows[start:stop] if row.job is not None]
        verdicts = self._state.sample(start, stop, logits, params)
        ended, diverged = [rows[slot] for slot in verdicts.ended], [rows[slot] for slot in verdicts.diverged]
        outcomes = [self._finish(row, *said) for row, said in zip(ended, self._said(ended), strict=True)]
        return outcomes + [self._diverge(row) for row in diverged]

    def _finish(self, row: Row, ids: list[int], logprobs: list[float]) -> Outcome:
        job = row.job
        if job is None:
            raise RuntimeError(f"row {row.slot} ended without a job")
        self._stats.sampled_tokens += len(ids)
        # The last token has not been through the model: it belongs to the next turn's prefill.
        row.codes = np.concatenate([row.codes, np.asarray(ids[len(job.ids) : -1], dtype=np.int64)])
        self._stop(row)
        return Outcome(job, tuple(ids), tuple(logprobs), job.versions_of(ids, version=self.version))

    def _diverge(self, row: Row) -> Outcome:
        job = row.job
        if job is None:
            raise RuntimeError(f"row {row.slot} ended without a job")
        self.release(job.session)
        return Outcome(job, error=ModelError("the model's logits are not finite: its weights have diverged"))
