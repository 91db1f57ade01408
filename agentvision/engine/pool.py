"""Several vLLM servers behind one face: who gets a turn, and what becomes of the turns of one that dies.

A turn goes where its session's prefix is, else where its group's is, else where the fewest turns are in flight. Work goes
only to servers that are well *and* hold the newest weights that any of them took. One that fails a turn, dies or hangs is
taken out, its turns in flight are given up and asked elsewhere, once for each failure: a turn is held by one connection
at a time, and a connection that is given up is closed, so no late answer can arrive. It is taken back when it is well and
its weights are the newest; `admit` may bring them. With nobody to ask, turns wait `patience_s` and then fail by name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from agentvision.chat.network import on_network
from agentvision.engine.endpoint import Endpoint
from agentvision.engine.types import Ask, EngineError, EngineLost, Sampled, SyncError
from agentvision.errors import first_line

_log = logging.getLogger(__name__)

PATIENCE_S = 120.0

Admit = Callable[[Endpoint], Awaitable[None]]


@dataclass(eq=False)
class _Member:
    """One server. `serving`: turns may go to it; else `error` says why not."""

    endpoint: Endpoint
    serving: bool = False
    error: Exception = field(default_factory=lambda: EngineLost("it has not answered yet"))
    told: bool = False
    """It was said why it gets no turns."""
    turns: set[asyncio.Task[Sampled]] = field(default_factory=set)
    sessions: int = 0
    stale: int = 0  # looks in a row at which others had newer weights
    late_since: float | None = None  # when others were seen to have the weights that it was still taking
    look_now: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class _Group:
    """Where the rollouts of one prompt began, and how many of them there are."""

    member: _Member
    sessions: int = 0


class Pool:
    """An `Engine` of several servers.

    Each server is looked at every `look_s`, and is lost when it does not answer a look within `answer_s`, so a hang is met
    within their sum. `admit` is awaited with a server that is well but has other weights than the newest: it brings them,
    or raises. It may run on another loop's time than the trainer's own sync and must take turns with it. `tries` bounds
    how often one turn is asked. `follows`: another process brings the weights (see `expect`).
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        admit: Admit | None = None,
        look_s: float = 5.0,
        answer_s: float = 10.0,
        patience_s: float = PATIENCE_S,
        tries: int = 5,
        follows: bool = False,
    ) -> None:
        if not endpoints:
            raise EngineError("a pool needs at least one server; name them in policy.endpoints")
        if len({e.url for e in endpoints}) < len(endpoints):
            raise EngineError(f"a server is named twice: {sorted(e.url for e in endpoints)!r}")
        self.admit = admit
        self._look_s, self._answer_s, self._patience_s, self._tries = look_s, answer_s, patience_s, tries
        self._members = [_Member(endpoint) for endpoint in endpoints]
        self._sessions: dict[str, tuple[_Member, str]] = {}
        self._groups: dict[str, _Group] = {}
        self._newest: str | None = None
        self._follows = follows
        self._watchers: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._closed = False
        for endpoint in endpoints:
            endpoint.on_resume = self._resumed

    # --- the engine's protocol --------------------------------------------------------------------------------------

    async def sample(self, ask: Ask) -> Sampled:
        """See `Engine.sample`. Raises `EngineLost`, naming every server and its last error, when nobody answers."""
        return await on_network(self._sample(ask))

    async def release(self, session: str) -> None:
        await on_network(self._release(session))

    def controls(self) -> Sequence[Endpoint]:
        return [m.endpoint for m in self._members if m.serving]

    async def hold(self) -> None:
        """Ask no further turns until `expect`: another process is about to bring weights, which nobody knows until then."""
        await on_network(self._hold())

    async def _hold(self) -> None:
        for member in self._members:
            member.endpoint.hold()

    async def expect(self, version: int) -> None:
        """Another process has brought these weights: turns go where they are, and this pool brings and resumes nothing."""
        await on_network(self._expect(version))

    async def _expect(self, version: int) -> None:
        self._newest, self._follows = str(version), True
        for member in self._members:
            member.endpoint.release()
            member.look_now.set()
        self._changed.set()

    async def ready(self) -> None:
        """Wait for a server that serves, as the first turn would. Raises what a turn would."""
        await on_network(self._ready())

    async def close(self) -> None:
        await on_network(self._close())

    async def _close(self) -> None:
        self._closed = True
        for watcher in self._watchers:
            watcher.cancel()
        for member in self._members:
            self._take_out(member, EngineLost("the pool is closed"))
        await asyncio.gather(*self._watchers, return_exceptions=True)  # nothing is brought to a server after this
        for member in self._members:
            await member.endpoint.close()

    # --- turns ------------------------------------------------------------------------------------------------------

    async def _sample(self, ask: Ask) -> Sampled:
        error: Exception = EngineLost("nobody was asked")
        failed: _Member | None = None
        for _ in range(self._tries):
            member = await self._choose(ask, failed)
            newest = int(self._newest or 0)
            turn = asyncio.create_task(member.endpoint.sample(ask))
            member.turns.add(turn)
            try:
                await asyncio.wait({turn})
            finally:
                member.turns.discard(turn)
                turn.cancel()  # nothing, where it is done
            if turn.cancelled():
                error = member.error  # it was taken out
            elif (raised := turn.exception()) is None:
                sampled = turn.result()
                if all(span.version >= newest for span in sampled.versions):
                    return sampled
                error = EngineLost(f"{member.endpoint.url} lost its weights: it was started again")
                self._suspect(member, error)
            elif isinstance(raised, EngineLost):
                error = raised
                self._suspect(member, raised)
            else:
                raise raised
            failed = member
        raise EngineLost(
            f"turn {ask.turn} of session {ask.session!r} was asked {self._tries} times; the last: {first_line(error)}"
        )

    async def _choose(self, ask: Ask, failed: _Member | None) -> _Member:
        """The server for this turn, another than the one that failed it where there is one."""
        able = await self._ready()
        others = [m for m in able if m is not failed] or able
        place = self._sessions.get(ask.session)
        if place is not None and place[0] in others:
            return place[0]
        least = min(others, key=lambda m: (len(m.turns), m.sessions))
        group = self._groups.get(ask.group)
        if group is not None and group.member in others and len(group.member.turns) <= 2 * len(least.turns) + 8:
            least = group.member
        if place is not None:
            self._leave(ask.session)
        group = self._groups.setdefault(ask.group, _Group(least))
        if group.member not in able:
            group.member = least
        group.sessions += 1
        least.sessions += 1
        self._sessions[ask.session] = (least, ask.group)
        return least

    async def _ready(self) -> list[_Member]:
        """Servers that turns may go to, waited for."""
        self._start()
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience_s
        while True:
            if self._closed:
                raise EngineLost("the pool of inference servers is closed")
            well = [m for m in self._members if m.serving]
            if able := [m for m in well if self._is_able(m)]:
                return able
            if any(self._is_held(m.endpoint) for m in well):  # a trainer's pause is no outage
                until = loop.time() + self._patience_s
            hopeless = not well and all(_stays(m.error) for m in self._members)
            if hopeless or loop.time() >= until:
                named = "; ".join(f"{m.endpoint.url}: {first_line(m.error)}" for m in self._members)
                kind = EngineError if hopeless else EngineLost
                raise kind(f"no inference server can be asked ({named})")
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(until - loop.time(), self._look_s))

    async def _release(self, session: str) -> None:
        if session in self._sessions:
            self._leave(session)

    def _leave(self, session: str) -> None:
        member, name = self._sessions.pop(session)
        member.sessions -= 1
        group = self._groups[name]
        group.sessions -= 1
        if not group.sessions:
            del self._groups[name]

    # --- servers ----------------------------------------------------------------------------------------------------

    def _has_newest(self, endpoint: Endpoint) -> bool:
        """Before any weights were brought, every server has the newest. After that a number alone is not enough: another run's
        weights may have the same."""
        if self._newest is None:
            return endpoint.weights is not None
        return endpoint.weights == self._newest and (self._follows or endpoint.brought == self._newest)

    def _is_held(self, endpoint: Endpoint) -> bool:
        return endpoint.held or (self._follows and endpoint.paused)

    def _takes_weights(self, member: _Member) -> bool:
        """Another process brings them: the server may be long about any answer, and until it is over nobody waits for one."""
        return self._follows and member.endpoint.held

    def _is_able(self, member: _Member) -> bool:
        return member.serving and self._has_newest(member.endpoint) and not self._is_held(member.endpoint)

    def _is_behind(self, member: _Member) -> bool:
        if self._follows:  # the one that brings weights comes to each sooner or later, or leaves it paused if it failed
            return not self._is_able(member) and any(self._is_able(m) for m in self._members)
        return not (self._has_newest(member.endpoint) or member.endpoint.updating)

    def _resumed(self, version: str | None) -> None:
        self._newest = version or self._newest
        self._changed.set()

    def _start(self) -> None:
        if not self._watchers and not self._closed:
            self._watchers = [asyncio.create_task(self._watch(member)) for member in self._members]

    async def _watch(self, member: _Member) -> None:
        while not self._closed:  # `wait_for` may take a cancellation for the event that came in the same moment
            member.look_now.clear()  # before: one that comes during the look asks for another
            await self._look(member)
            with suppress(TimeoutError):
                await asyncio.wait_for(member.look_now.wait(), self._look_s)

    async def _look(self, member: _Member) -> None:
        if self._takes_weights(member):
            return
        member.stale = member.stale + 1 if self._is_behind(member) else 0
        able = self._is_able(member)
        try:
            if member.serving and member.stale < 2:  # the others may only be quicker to take new weights
                self._refuse_if_late(member)
                await member.endpoint.check(timeout_s=self._answer_s)
            else:
                await self._take_back(member)
            if self._is_able(member) and not able:
                self._changed.set()
        except Exception as error:  # `admit` is others' code
            if not self._takes_weights(member):
                self._take_out(member, error)

    def _refuse_if_late(self, member: _Member) -> None:
        """An engine that takes weights is not asked whether it is well; its turns wait no longer than a look for one that is
        late with them, and the update goes on."""
        others_have_them = any(self._is_able(m) for m in self._members)
        if not member.endpoint.updating or self._has_newest(member.endpoint) or not others_have_them:
            member.late_since = None
            return
        now = asyncio.get_running_loop().time()
        member.late_since = member.late_since or now
        if now - member.late_since >= self._answer_s:
            raise EngineLost(f"it still takes weights that others had {self._answer_s:g} s ago")

    async def _take_back(self, member: _Member) -> None:
        endpoint = member.endpoint
        await endpoint.check(timeout_s=self._answer_s)
        info = await endpoint.probe(timeout_s=self._answer_s)
        if not info.exact:
            raise EngineError(
                "it offers chat alone and no token ids; start it with --enable-scale-out, or use a chat policy, which"
                " cannot be trained"
            )
        if not self._has_newest(endpoint) and self.admit is not None and info.control and not self._follows:
            if endpoint.weights == self._newest:
                endpoint.distrust()  # so that it is brought them
            await self.admit(endpoint)
        if not self._has_newest(endpoint):
            raise EngineLost(self._what_it_has(endpoint))
        if self._follows and endpoint.paused:
            raise EngineLost("it is paused: it takes weights, or those that it took were not proven")
        if info.control and not self._follows:
            await endpoint.resume_unless_held()
        member.serving, member.stale, member.late_since = True, 0, None
        _log.info("%s takes turns.", endpoint.url)

    def _what_it_has(self, endpoint: Endpoint) -> str:
        if endpoint.weights is None:
            return "an update of its weights was begun and not finished"
        if endpoint.weights == self._newest:
            return (
                f"it says that its weights are of version {endpoint.weights!r}, and they were not brought by this run"
            )
        return f"its weights are of version {endpoint.weights!r} and the newest are {self._newest!r}"

    def _suspect(self, member: _Member, error: EngineLost) -> None:
        """It failed a turn: no more of them until it has been looked at. Others that it has go on meanwhile."""
        if member.serving:
            self._no_turns(member, error)
            member.look_now.set()

    def _take_out(self, member: _Member, error: Exception) -> None:
        self._no_turns(member, error)
        for turn in member.turns:
            turn.cancel()
        self._changed.set()

    def _no_turns(self, member: _Member, error: Exception) -> None:
        if (member.serving or not member.told) and not self._closed:
            _log.warning("%s gets no turns: %s", member.endpoint.url, first_line(error))
            member.told = True
        member.serving, member.error = False, error


def _stays(error: Exception) -> bool:
    """Whether no waiting mends it. A server that is gone may come back, and weights that did not arrive are sent again."""
    return isinstance(error, EngineError) and not isinstance(error, EngineLost | SyncError)
