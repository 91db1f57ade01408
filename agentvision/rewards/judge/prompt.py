"""What the judge is asked: the messages for one question, its truth and the answer to be judged.

The answer is written by the policy that is paid for it, so it is shown as data: without what is invisible, its control tokens
made plain, cut at a length that is said, a margin before each line (a verdict in it cannot stand alone on a line, even
when the judge repeats it), and between two equal lines with a random number that nothing else in the prompt contains. Templates
are sandboxed jinja; its blocks `system` and `user` are a message each, without blocks all of it is the user's. What a
template's verdicts depend on is in its `fingerprint`, which goes into cache keys; the random number does not.
"""

from __future__ import annotations

import hashlib
import secrets
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agentvision.errors import RecipeError, suggest
from agentvision.protocol import IMAGE_MARK
from agentvision.rewards.grading import unwrap
from agentvision.rewards.judge.marks import MAX_ANSWER_CHARS, defuse, visible

VARIABLES = ("question", "truth", "accepted", "prediction")
"""What a template sees: three texts, `accepted` a list of further right answers. `prediction` comes with its delimiters."""
SHIPPED = ("binary", "graded")
MAX_GIVEN_CHARS = 8000
"""No more of a question or a truth is shown."""

_RENDERING = 1
"""Raised when the code below changes what a judge reads, so that cached verdicts are asked for again."""

_MARGIN = "| "


@dataclass(frozen=True)
class JudgeTemplate:
    """A template of the judge's prompt; `graded` says that it asks for scores between 0 and 1. Checked when made.

    Raises `RecipeError` for one that cannot be read or rendered, or that does not show `prediction` exactly once.
    """

    source: str
    graded: bool = False
    where: str = "template"
    _compiled: Template = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", _compile(self.source, self.where))
        delimiter = _delimiter()
        for accepted in ((), ("PROBE",)):
            messages = self._render("PROBE", "PROBE", accepted, _between(delimiter, "PROBE"))
            shown = "\n".join(message["content"] for message in messages)
            if shown.count(delimiter) != 2:
                times = f"{shown.count(delimiter) // 2} times" if delimiter in shown else "nowhere"
                raise RecipeError(f"{self.where}: shows `prediction` {times}; write {{{{ prediction }}}} exactly once")

    @classmethod
    def load(cls, spec: str | None = None, *, graded: bool | None = None) -> JudgeTemplate:
        """By the recipe's word for it: one shipped (`binary`, the default, or `graded`), a path, or jinja itself.

        Text with a line end or a `{` is jinja. Whether another's own template is graded is for `graded` to say.
        """
        spec = spec or ("graded" if graded else "binary")
        if spec in SHIPPED:
            if graded is not None and graded != (spec == "graded"):
                raise RecipeError(f"judge: template {spec!r} and graded: {str(graded).lower()} contradict each other")
            return _shipped(spec)
        if "\n" in spec or "{" in spec:
            return cls(spec, graded=bool(graded), where="judge: template")
        path = Path(spec).expanduser()
        try:
            return cls(path.read_text(encoding="utf-8"), graded=bool(graded), where=str(path))
        except (OSError, UnicodeDecodeError) as error:
            what = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise RecipeError(f"judge: template {spec!r} cannot be read: {what}.{suggest(spec, SHIPPED)}") from None

    @cached_property
    def fingerprint(self) -> str:
        """Of all that a verdict depends on beside the model, the question, the truths and the answer."""
        parts = (str(_RENDERING), str(self.graded), self.source)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    def messages(self, *, question: str, truth: str, answer: str, accepted: Sequence[str] = ()) -> list[dict[str, str]]:
        """The chat messages, each a role and a text."""
        question = _given(question.replace(IMAGE_MARK, ""))
        truth = _given(truth)
        others = tuple(dict.fromkeys(other for other in map(_given, accepted) if other and other != truth))
        prediction = _shown(answer)
        delimiter = _delimiter()
        while any(delimiter in text for text in (question, truth, *others, prediction, self.source)):
            delimiter = _delimiter()
        return self._render(question, truth, others, _between(delimiter, prediction))

    def _render(self, question: str, truth: str, accepted: Sequence[str], prediction: str) -> list[dict[str, str]]:
        values = {"question": question, "truth": truth, "accepted": list(accepted), "prediction": prediction}
        template = self._compiled
        try:
            context = template.new_context(values)
            parts = {role: template.blocks[role] for role in ("system", "user") if role in template.blocks}
            if "user" not in parts:
                parts = {"user": template.root_render_func}
            texts = {role: "".join(part(context)) for role, part in parts.items()}
        except Exception as error:  # a template may do arithmetic, and call methods of strings and lists
            what = f"cannot be rendered: {error}"
            raise RecipeError(_at(self.where, self.source, _failed_line(error, template), what)) from None
        return [{"role": role, "content": text.strip()} for role, text in texts.items()]


def judge_messages(
    *, question: str, truth: str, answer: str, template: JudgeTemplate | None = None, accepted: Sequence[str] = ()
) -> list[dict[str, str]]:
    """The messages that ask whether `answer` means the same as `truth`, or as one of `accepted`."""
    chosen = template or _shipped("binary")
    return chosen.messages(question=question, truth=truth, answer=answer, accepted=accepted)


def _delimiter() -> str:
    return f"===== {secrets.token_hex(12)} ====="


def _between(delimiter: str, text: str) -> str:
    return f"{delimiter}\n{text}\n{delimiter}"


def _given(text: str) -> str:
    """A question or a truth as the judge reads it."""
    return defuse(_cut(visible(text).strip(), MAX_GIVEN_CHARS))


def _shown(answer: str) -> str:
    """An answer as the judge reads it."""
    text = defuse(_cut(unwrap(visible(answer)).strip(), MAX_ANSWER_CHARS))
    return "\n".join(_MARGIN + line for line in text.split("\n"))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}\n[cut: {limit} of {len(text)} characters are shown]"


@lru_cache
def _shipped(name: str) -> JudgeTemplate:
    source = files("agentvision.rewards.judge").joinpath("templates", f"{name}.jinja").read_text(encoding="utf-8")
    return JudgeTemplate(source, graded=name == "graded", where=f"{name}.jinja")


def _compile(source: str, where: str) -> Template:
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    try:
        tree = env.parse(source)
        unknown = meta.find_undeclared_variables(tree) - {*VARIABLES, *env.globals}
        for node in tree.find_all(nodes.Name):
            if node.name in unknown:
                hint = suggest(node.name, VARIABLES)
                known = "" if hint.startswith(" Known") else f" Known: {', '.join(VARIABLES)}."
                raise RecipeError(_at(where, source, node.lineno, f"no such variable {node.name!r}.{hint}{known}"))
        return env.from_string(source)
    except TemplateSyntaxError as error:
        raise RecipeError(_at(where, source, error.lineno, str(error.message))) from None
    except (TemplateError, RecursionError, ValueError) as error:
        raise RecipeError(f"{where}: {error}") from None


def _failed_line(error: Exception, template: Template) -> int:
    """The line of the template in which rendering it failed."""
    line = 1
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == "<template>":
            line = template.get_corresponding_lineno(number)
    return line


def _at(where: str, source: str, line: int, what: str) -> str:
    text = (source.splitlines() or [""])[min(line, len(source.splitlines()) or 1) - 1]
    return f"{where}:{line}: {what}\n{line:>6} | {text}"
