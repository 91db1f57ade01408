"""Is an answer right? Pure functions over text, total for any string, in time linear in its length.

An answer and a truth are compared by a rule: `exact_match` after normalising, `same_choice` of a multiple-choice
question, `anls` for text that was read (edit similarity); numbers stand in `quantities.py`, mathematics in `maths.py`.
A rule that does not apply to a truth says None rather than False. Nothing here looks for a right answer inside a longer
text: an answer that names two options or two numbers is wrong, or a policy would learn to list them all.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

EMPTY: Mapping[str, str] = {}

_BOXED = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_VULGAR_FRACTION = re.compile("[¼-¾⅐-⅞]")
_SIGNS = str.maketrans("−–‐‑⁄∕‘’“”´`′", "----//''\"\"'''")
_QUOTES = "\"'*_ "
_CLOSING = ".,;:?!"
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_ARTICLE = re.compile(r"(?:the|an?) (?=.{2})")
_LEAD = re.compile(r"(?:the )?(?:final |correct )?(?:answer|option|choice)(?: is)?:? ", re.IGNORECASE)
_SHORT_LIST = re.compile(r"(?!.*[a-z]{2}).*,.*")
_LETTER = re.compile(r"\(?([a-z])\)?[.):]?", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"(?:\(([a-z])\)[.:]?|([a-z])[.):])\s*(\S.*)", re.IGNORECASE | re.DOTALL)
_OPTION = re.compile(r"(?:^|(?<=\s))(?:\(([A-J])\)[.:]?|([A-J])[.):])(?=\s)", re.MULTILINE)


def unbox(text: str) -> str | None:
    r"""The content of the last whole `\boxed{…}`, braces balanced; of nested ones the innermost. None without one."""
    opened: list[int | None] = []  # where the content of an open box starts; None for a plain brace
    found: tuple[int, int] | None = None
    for token in _BOXED.finditer(text):
        mark = token.group()
        if mark == "}":
            start = opened.pop() if opened else None
            if start is not None and (found is None or start > found[0]):
                found = start, token.start()
        elif mark[-1] == "{" and (len(mark) != 2 or mark == "{"):
            opened.append(token.end() if len(mark) > 1 else None)
    return None if found is None else text[found[0] : found[1]].strip()


def unwrap(text: str) -> str:
    r"""The answer proper: out of its `\boxed{}`, `$…$` and `\text{}`."""
    boxed = unbox(text)
    text = (text if boxed is None else boxed).strip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("\\text{", "}"), ("\\textbf{", "}")):
        inner = text[len(left) : -len(right)]
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            if left in inner or right in inner:
                continue
            text = inner.strip()
    return text


def canonical(text: str) -> str:
    """One spelling for what looks alike: NFKC, plain signs and quotes, `²` as `^2`, `½` as ` 1/2`, single spaces."""
    text = _VULGAR_FRACTION.sub(lambda m: " " + m[0], text)
    text = _SUPERSCRIPT.sub(lambda m: "^" + m[0], text)
    return " ".join(unicodedata.normalize("NFKC", text).translate(_SIGNS).split())


def normalise(text: str) -> str:
    """What is compared by `exact_match`: canonical, case folded, without wrapping quotes and brackets, a leading
    article or closing punctuation. Signs that carry meaning (−5, .5, 5!, 50%) stay."""
    text = _trim(canonical(unwrap(text)).casefold())
    if len(text) > 2 and _BRACKETS.get(text[0]) == text[-1] and text.count(text[0]) == 1:
        text = _trim(text[1:-1])
    return _ARTICLE.sub("", text, count=1) if _ARTICLE.match(text) else text


def _trim(text: str) -> str:
    text = text.lstrip(_QUOTES)
    kept = text.rstrip(_CLOSING + _QUOTES)
    factorial = kept[-1:].isdigit() and text[len(kept) : len(kept) + 1] == "!"
    return kept + "!" if factorial else kept


def exact_match(answer: str, truth: str) -> bool:
    """Equal after normalising. Texts that normalise to nothing (":") are compared as they are."""
    left, right = normalise(answer), normalise(truth)
    if not left or not right:
        return canonical(answer) == canonical(truth)
    return left == right and not (_SHORT_LIST.fullmatch(left) and len({_opening(answer), _opening(truth)} - {""}) > 1)


def _opening(text: str) -> str:
    """The bracket that a text begins with: the interval [3, 4] is not (3, 4)."""
    first = canonical(unwrap(text)).lstrip(_QUOTES)[:1]
    return first if first in _BRACKETS else ""


def anls(answer: str, truths: Iterable[str], *, threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one question: the best truth's, 0 below the threshold.

    1 − distance / longer length, on normalised text (Biten et al., "Scene Text Visual Question Answering", Eq. 1).
    """
    from rapidfuzz.distance import Levenshtein  # costs as much to import as all of this package

    given = normalise(answer)
    best = 0.0
    for truth in truths:
        wanted = normalise(truth)
        # The similarity is at most the ratio of the lengths: a huge answer need not be compared.
        if min(len(given), len(wanted)) < threshold * max(len(given), len(wanted)):
            continue
        best = max(best, Levenshtein.normalized_similarity(given, wanted, score_cutoff=threshold))
    return best


def options_of(question: str) -> dict[str, str]:
    """The options `A`, `B`, … that a question lists as `(A) …`, `A. …`, `A) …` or `A: …`; empty with fewer than two."""
    best: list[re.Match[str]] = []
    run: list[re.Match[str]] = []
    for mark in _OPTION.finditer(question):
        letter = mark[1] or mark[2]
        if run and letter == chr(ord("A") + len(run)):
            run.append(mark)
        elif letter == "A" and len(run) < 3:  # else an option that speaks of others: "(D) both (A) and (B)"
            run = [mark]
        if len(run) >= max(2, len(best)):
            best = run
    ends = [mark.start() for mark in best[1:]] + [len(question)]
    texts = [question[mark.end() : end].strip() for mark, end in zip(best, ends, strict=False)]
    return {chr(ord("A") + n): text for n, text in enumerate(texts)}


def parse_choice(text: str, options: Mapping[str, str] = EMPTY) -> str | None:
    r"""The letter that an answer names: `B`, `(b)`, `B.`, `\boxed{B}`, `Option B`, `B. its text`, or an option's text.

    None when it names none, more than one, or a letter and another option's text.
    """
    text = canonical(unwrap(text)).strip(_QUOTES)
    text = unwrap(_LEAD.sub("", text, count=1) if _LEAD.match(text) else text).strip(_QUOTES)
    named = [letter for letter, option in options.items() if exact_match(text, option)]
    if len(named) == 1:
        return named[0]
    letter = _LETTER.fullmatch(text.rstrip(".,;!"))
    if letter:
        return _known(letter[1], options)
    both = _LETTER_AND_TEXT.fullmatch(text)
    if both is None:
        return None
    chosen = _known(both[1] or both[2], options)
    if chosen is None or (options and not exact_match(both[3], options[chosen])):
        return None
    return chosen


def same_choice(answer: str, truth: str, options: Mapping[str, str] = EMPTY) -> bool | None:
    """Whether both name the same option; None when the truth names none."""
    wanted = parse_choice(truth, options)
    return None if wanted is None else parse_choice(answer, options) == wanted


def _known(letter: str, options: Mapping[str, str]) -> str | None:
    letter = letter.upper()
    return letter if not options or letter in options else None
