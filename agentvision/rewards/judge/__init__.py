"""The judge: a language model that says whether an answer means the same as the truth, and what keeps it honest.

What it is asked (`prompt`), what need not be asked (`prefilter`), what its reply says (`verdict`), and how good a judge
is (`audit`). Only text ever reaches it: the question, the truth and what stands inside `<answer>`.
"""

from agentvision.rewards.judge.prefilter import prefilter
from agentvision.rewards.judge.prompt import JudgeTemplate, judge_messages
from agentvision.rewards.judge.verdict import Verdict, parse_verdict, verdict_schema

__all__ = ["JudgeTemplate", "Verdict", "judge_messages", "parse_verdict", "prefilter", "verdict_schema"]
