"""Answers that are wrong without asking: empty, punctuation, the openers of an answer that never comes, a mere verdict.

Such "master keys" (":", "Solution", "Let's think step by step", in any language) get judges to say yes to nothing. The
openers stand in `openers.txt`; an answer made of nothing but them, control tokens and verdicts ("Solution: Score: 1") is 0.
What could be a true answer passes: letters, digits, "+", "°", "%", "½", "∞", emoji, and anything equal to the truth itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

from agentvision.rewards.grading import unwrap
from agentvision.rewards.judge.marks import CONTROL, MAX_ANSWER_CHARS, visible
from agentvision.rewards.judge.verdict import Verdict

_MEANT = frozenset("%‰&@#/§¶†‡")  # filed under punctuation, but an answer
_LINES = frozenset("|~`^")  # filed under symbols, but none
_RUN = re.compile(r"([!-/:-@\[-`{-~])\1\1+")
_HOLLOW = re.compile(r"\\[a-z]{1,12} ?\{\s{0,9}\}|^\s*\${2,4}\s*$", re.IGNORECASE)  # LaTeX around nothing
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # Thai … kana, Han
_ROLE_AFTER = re.compile(r"<\|[^<>|]{0,64}\|>\s*(?:system|user|assistant|model|tool)\b")
_ALIKE = str.maketrans("ı", "i", "'’ʼ`")  # what upper case does not keep apart; apostrophes, which join a word
_VERDICTS = ("score", "score 0", "score 1", "score 1 0", "score 0 0", "final score 1", "final score 0", "1 score")


def prefilter(answer: str | None, *, truth: str | None = None, accepted: Sequence[str] = ()) -> Verdict | None:
    """A 0 that needs no judge, or None: ask. An answer that reads as `truth` or one of `accepted` is never a 0 here."""
    if not isinstance(answer, str):
        return _zero("no answer")
    given = _folded(answer)
    if given and any(given == _folded(right) for right in (truth, *accepted) if isinstance(right, str)):
        return None
    if not given:
        return _zero("an empty answer")
    rest = _folded(CONTROL.sub(" ", _ROLE_AFTER.sub(" ", given)))
    if not rest:
        return _zero("nothing but control tokens")
    if not any(map(_says_something, rest)) or _RUN.fullmatch(rest):
        return _zero("nothing but punctuation")
    words = _words(rest)
    if words and _is_chain(words, announced=rest.endswith(":")):
        return _zero("nothing but an opener")
    return None


def _zero(reason: str) -> Verdict:
    return Verdict(0.0, reason, by="prefilter")


def _folded(text: str) -> str:
    seen = _HOLLOW.sub("", unwrap(visible(text)))[:MAX_ANSWER_CHARS]  # the judge would read no further
    return " ".join(unicodedata.normalize("NFKC", seen).casefold().split())


def _says_something(character: str) -> bool:
    kind = unicodedata.category(character)
    if character in _MEANT:
        return True
    return kind[0] in "LN" or (kind[0] == "S" and kind != "Sk" and character not in _LINES)


def _words(text: str) -> str:
    """Letters and digits alone, without accents, single spaces between words; apostrophes join them."""
    plain = unicodedata.normalize("NFD", text.translate(_ALIKE))
    kept = (
        c if unicodedata.category(c)[0] in "LN" else "" if unicodedata.category(c)[0] == "M" else " " for c in plain
    )
    return " ".join("".join(kept).split())


def _is_chain(words: str, *, announced: bool) -> bool:
    """Whether the words are openers alone, one of them no filler unless something is `announced`. The longest goes first."""
    openers, fillers, lengths = _openers()
    position, opened = 0, announced
    while position < len(words):
        for length in lengths:
            phrase = words[position : position + length]
            if len(phrase) == length and (phrase in openers or phrase in fillers) and _ends(words, position + length):
                opened = opened or phrase in openers
                position += length
                position += words[position : position + 1] == " "
                break
        else:
            return False
    return opened


def _ends(words: str, position: int) -> bool:
    """Whether a word may end here: at a space, or anywhere in a script that puts none between words."""
    return position >= len(words) or words[position] == " " or bool(_UNSPACED.match(words[position - 1]))


@lru_cache(maxsize=1)
def _openers() -> tuple[frozenset[str], frozenset[str], tuple[int, ...]]:
    """Openers, fillers (which count only beside an opener), and their lengths from the longest."""
    fillers = frozenset(_words(_folded(line.removeprefix("+"))) for line in _lines() if line.startswith("+"))
    phrases = frozenset(_words(_folded(line)) for line in _lines() if not line.startswith("+"))
    openers = phrases | frozenset(_VERDICTS)
    return openers, fillers, tuple(sorted({len(phrase) for phrase in openers | fillers}, reverse=True))


@lru_cache(maxsize=1)
def _lines() -> tuple[str, ...]:
    text = files("agentvision.rewards.judge").joinpath("openers.txt").read_text(encoding="utf-8")
    return tuple(line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#"))
