"""The judge: a language model that says whether an answer means the same as the truth, and what keeps it honest.

What it is asked (`prompt`), what need not be asked (`prefilter`), what its reply says (`verdict`), and how good a judge
is (`audit`). `Judge` puts them together: rules, a small model and a large one in a `cascade`, each verdict paid for once
(`cache`, `flight`); `JudgeReward` is its plug-in. Only text ever reaches a model: the question, the truth and what stands
inside `<answer>`.
"""

from agentvision.rewards.judge.judge import Judge
from agentvision.rewards.judge.prefilter import prefilter
from agentvision.rewards.judge.prompt import JudgeTemplate, judge_messages
from agentvision.rewards.judge.reward import JudgeReward
from agentvision.rewards.judge.verdict import Verdict, parse_verdict, verdict_schema

__all__ = [
    "Judge",
    "JudgeReward",
    "JudgeTemplate",
    "Verdict",
    "judge_messages",
    "parse_verdict",
    "prefilter",
    "verdict_schema",
]
