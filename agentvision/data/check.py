"""What is wrong with a data set, and what looking at it will cost.

Every picture is decoded once (or, on request, only its header read). Pictures are compared by their pixels (or bytes), so
a copy that was resized or compressed anew is not found: near-duplicates are left out. Pure but for reading the pictures;
`check_sets` gives numbers and places, `lines` tells them.
"""

from __future__ import annotations

import hashlib
import os
import re
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agentvision.compute import VisionSpec
from agentvision.errors import ImageError
from agentvision.images import encoded_bytes, header_size, image_hash, open_image
from agentvision.types import ImageSource, Resized, Sample, Size

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Range:
    """Of some numbers; all 0 when there are none."""

    least: float = 0
    median: float = 0
    mean: float = 0
    most: float = 0

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        if not values:
            return cls()
        return cls(min(values), statistics.median(values), round(statistics.fmean(values), 2), max(values))


@dataclass(frozen=True, slots=True)
class SetReport:
    """One set of questions. Places are lines or rows of its file, else ids."""

    rows: int
    questions: int
    checked: int
    mapping: Mapping[str, str]
    """Columns that each field is read from."""
    bad_rows: Mapping[str, Sequence[str]]
    """Rows that are no questions, by reason."""
    bad_images: Mapping[str, Sequence[str]]
    """Questions whose pictures cannot be read or shown, by reason."""
    images: int
    width: Range
    height: Range
    aspect: Range
    """Longer side over shorter."""
    tokens_full: Range
    """Visual tokens of a question's pictures, at full size."""
    tokens_first: Range
    over_context: Sequence[str]
    """Questions whose pictures alone, first view and full size together, leave no room in the context."""
    duplicates: Sequence[tuple[str, str]]
    """The same question about the same pictures, again and where first."""


@dataclass(frozen=True, slots=True)
class Leak:
    """The same picture, or the same question about it, in two sets."""

    what: str
    sets: tuple[str, str]
    count: int
    examples: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Report:
    """`errors` and `warnings` say in a line each what the rest says in numbers."""

    sets: Mapping[str, SetReport]
    leaks: Sequence[Leak] = ()
    errors: Sequence[str] = ()
    warnings: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is known of a question once its pictures were looked at."""

    place: str
    question: bytes
    pictures: tuple[bytes, ...] = ()
    sizes: tuple[Size, ...] = ()
    tokens_full: int = 0
    tokens_first: int = 0
    problem: str = ""


def check_sets(
    sets: Mapping[str, Sequence[Sample]],
    *,
    vision: VisionSpec,
    scale: float,
    context_tokens: int,
    decode: bool = True,
    limit: int | None = None,
    on_done: Callable[[int], None] = lambda done: None,
) -> Report:
    """Check sets of questions against themselves and one another.

    `scale` is the first view's; `limit` looks at so many questions of each set; `on_done` hears of each that is done.
    """
    facts: dict[str, list[_Facts]] = {}
    reports: dict[str, SetReport] = {}
    for name, questions in sets.items():
        count = len(questions) if limit is None else min(limit, len(questions))
        facts[name] = []
        for fact in _in_threads(lambda i, q=questions: _facts(q, i, vision, scale, decode), count):
            facts[name].append(fact)
            on_done(1)
        reports[name] = _set_report(questions, facts[name], context_tokens)
    leaks = list(_leaks(facts))
    return Report(reports, leaks, list(_errors(reports, leaks)), list(_warnings(reports)))


def _in_threads(work: Callable[[int], _Facts], count: int) -> Iterator[_Facts]:
    """Results in order; only a few pictures are in memory at a time."""
    workers = os.cpu_count() or 1
    waiting: deque[Future[_Facts]] = deque()
    with ThreadPoolExecutor(workers, "check") as pool:
        for i in range(count):
            waiting.append(pool.submit(work, i))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _facts(questions: Sequence[Sample], index: int, vision: VisionSpec, scale: float, decode: bool) -> _Facts:
    sample = questions[index]
    place = getattr(questions, "place", None)
    where = place(index) if place is not None else sample.id
    question = hashlib.sha256(" ".join(sample.question.split()).encode()).digest()[:16]
    try:
        looked = [_look(source, decode) for source in sample.images]
        full = [vision.fit(size) for size, _ in looked]
        first = [vision.fit(size, scale=scale) for size, _ in looked]
    except ImageError as error:
        return _Facts(where, question, problem=_reason(str(error)))
    return _Facts(
        where,
        question,
        pictures=tuple(key for _, key in looked),
        sizes=tuple(size for size, _ in looked),
        tokens_full=sum(map(vision.tokens, full)),
        tokens_first=sum(map(vision.tokens, first)),
    )


def _look(source: ImageSource, decode: bool) -> tuple[Size, bytes]:
    """A picture's size and what tells it from others. The same stored picture at two sizes is one picture."""
    stored = source.source if isinstance(source, Resized) else source
    size = header_size(source)
    if decode or not isinstance(stored, bytes | str | Path):
        return size, bytes.fromhex(image_hash(open_image(stored)))[:16]
    return size, hashlib.sha256(encoded_bytes(stored)).digest()[:16]


def _reason(message: str) -> str:
    """An error without what differs from picture to picture."""
    return re.sub(r"'[^']*'|\d[\d,.]*", "…", message)


def _set_report(questions: Sequence[Sample], facts: Sequence[_Facts], context_tokens: int) -> SetReport:
    left_out = getattr(questions, "left_out", None)
    unit, reasons = getattr(left_out, "unit", "row"), getattr(left_out, "reasons", {})
    seen: dict[tuple[tuple[bytes, ...], bytes], str] = {}
    duplicates: list[tuple[str, str]] = []
    bad: dict[str, list[str]] = {}
    for fact in facts:
        if fact.problem:
            bad.setdefault(fact.problem, []).append(fact.place)
            continue
        first = seen.setdefault((fact.pictures, fact.question), fact.place)
        if first != fact.place:
            duplicates.append((fact.place, first))
    good = [fact for fact in facts if not fact.problem]
    sizes = [size for fact in good for size in fact.sizes]
    return SetReport(
        rows=left_out.rows if left_out is not None else len(questions),
        questions=len(questions),
        checked=len(facts),
        mapping=dict(getattr(questions, "mapping", {})),
        bad_rows={reason: [f"{unit} {number}" for number in numbers] for reason, numbers in reasons.items()},
        bad_images=bad,
        images=len(sizes),
        width=Range.of([width for width, _ in sizes]),
        height=Range.of([height for _, height in sizes]),
        aspect=Range.of([round(max(size) / min(size), 3) for size in sizes]),
        tokens_full=Range.of([fact.tokens_full for fact in good]),
        tokens_first=Range.of([fact.tokens_first for fact in good]),
        over_context=[fact.place for fact in good if fact.tokens_full + fact.tokens_first > context_tokens],
        duplicates=duplicates,
    )


def _leaks(facts: Mapping[str, Sequence[_Facts]]) -> Iterator[Leak]:
    """Between each two sets: pictures that are in both, and of these the questions that are, too."""
    names = list(facts)
    for k, one in enumerate(names):
        images: dict[bytes, str] = {key: fact.place for fact in facts[one] for key in fact.pictures}
        whole = {(fact.pictures, fact.question): fact.place for fact in facts[one] if not fact.problem}
        for other in names[k + 1 :]:
            asked: list[tuple[str, str]] = []
            shown: list[tuple[str, str]] = []
            for fact in facts[other]:
                if fact.problem:
                    continue
                if (fact.pictures, fact.question) in whole:
                    asked.append((whole[fact.pictures, fact.question], fact.place))
                elif shared := next((key for key in fact.pictures if key in images), None):
                    shown.append((images[shared], fact.place))
            if asked:
                yield Leak("the same question", (one, other), len(asked), asked[:_SHOWN])
            if shown:
                yield Leak("another question about the same picture", (one, other), len(shown), shown[:_SHOWN])


# --- told -----------------------------------------------------------------------------------------------------------


def _errors(reports: Mapping[str, SetReport], leaks: Iterable[Leak]) -> Iterator[str]:
    for name, report in reports.items():
        for reason, places in report.bad_rows.items():
            yield f"{_of(name)}{len(places)} of {report.rows} rows: {reason} ({_some(places)})"
        for reason, places in report.bad_images.items():
            yield f"{_of(name)}{len(places)} of {report.checked} questions: {reason} ({_some(places)})"
    for leak in leaks:
        one, other = leak.sets
        pairs = ", ".join(f"{b} as {a}" for a, b in leak.examples[:3])
        yield f"{leak.count} of {other!r} ask {leak.what} as {one!r} does ({pairs}{', …' if leak.count > 3 else ''})"


def _warnings(reports: Mapping[str, SetReport]) -> Iterator[str]:
    for name, report in reports.items():
        if report.duplicates:
            pairs = [f"{again} as {first}" for again, first in report.duplicates]
            yield f"{_of(name)}{len(pairs)} questions stand there again ({_some(pairs)})"
        if report.over_context:
            yield (
                f"{_of(name)}the pictures of {len(report.over_context)} questions fill sampling.context_tokens by themselves "
                f"({_some(report.over_context)}); lower model.max_pixels"
            )


def lines(report: Report) -> Iterator[str]:
    """The report as text."""
    for name, one in report.sets.items():
        if name:
            yield f"{name}:"
        if one.mapping:
            yield f"  columns       {', '.join(f'{k} from {v}' for k, v in one.mapping.items())}"
        looked = f", {one.checked} looked at" if one.checked < one.questions else ""
        yield f"  questions     {one.questions:,} in {one.rows:,} rows{looked}"
        yield f"  pictures      {one.images:,}"
        if one.images:
            yield f"  width, px     {_range(one.width)}"
            yield f"  height, px    {_range(one.height)}"
            yield f"  aspect        {_range(one.aspect)}"
            yield f"  tokens        {_range(one.tokens_full)} in full"
            yield f"                {_range(one.tokens_first)} at first"
    yield from (f"error: {line}" for line in report.errors)
    yield from (f"warning: {line}" for line in report.warnings)


def _range(values: Range) -> str:
    least, median, mean, most = (
        f"{v:,.0f}" if v >= 100 or v == int(v) else f"{v:,.2f}" for v in asdict(values).values()
    )
    return f"{least} to {most}, median {median}, mean {mean}"


def _of(name: str) -> str:
    return f"{name}: " if name else ""


def _some(places: Sequence[str]) -> str:
    return ", ".join(places[:_SHOWN]) + (", …" if len(places) > _SHOWN else "")
