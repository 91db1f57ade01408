"""A reward of your own: short answers are worth more, and a group's shortest right answer is worth the most.

In a recipe (settings are checked, and a misspelt one is named):

    rewards:
      - accuracy: {rule: exact}
      - ./examples/my_reward.py:brief: {weight: 0.2, limit: 12}
      - ./examples/my_reward.py:shortest: {weight: 0.1}

Run me: python examples/my_reward.py
"""

import asyncio
from pathlib import Path

from agentvision.rewards import Rewards, reward
from agentvision.types import Group, ParsedTurn, Sample, Score, StopReason, Trajectory, Turn


@reward
def brief(trajectory: Trajectory, *, limit: int = 20) -> Score | float:
    """1 for an answer of at most `limit` characters, falling to 0 at twice that."""
    if trajectory.answer is None:
        return Score.invalid("no answer to measure")
    return min(1.0, max(0.0, 2 - len(trajectory.answer) / limit))


@reward(needs_correctness=True)
def shortest(group: Group) -> list[bool]:
    """1 for the shortest of the right answers of a group: a reward that sees all rollouts of a question."""
    right = [len(t.answer or "") for t in group.trajectories if t.correct]
    return [bool(t.correct) and len(t.answer or "") == min(right) for t in group.trajectories]


def rollout(sample: Sample, answer: str | None) -> Trajectory:
    """What an episode leaves behind, in its smallest form."""
    turn = Turn(text=f"<answer>{answer}</answer>", parsed=ParsedTurn(answer=answer))
    stop = StopReason.LENGTH if answer is None else StopReason.ANSWERED
    return Trajectory(sample, (turn,), messages=(), views=(), stop=stop, answer=answer)


async def main() -> None:
    sample = Sample(id="sign", question="What does the sign say?", answer="No entry")
    answers = ["No entry", "No entry!", "the sign in the picture says: no entry", None]
    me = Path(__file__)
    rewards = Rewards.from_config(
        [{"accuracy": {"rule": "exact"}}, {f"{me}:brief": {"weight": 0.2}}, {f"{me}:shortest": {"weight": 0.1}}]
    )
    scored = await rewards.score(Group(sample, tuple(rollout(sample, answer) for answer in answers)))
    for trajectory in scored.trajectories:
        scores = trajectory.scores.items()
        parts = ", ".join(f"{n} {s.reason if s.value is None else round(s.value, 2)}" for n, s in scores)
        total = "invalid" if trajectory.reward is None else f"{trajectory.reward:.2f}"
        print(f"{trajectory.answer!r:41} reward {total}: {parts}")


if __name__ == "__main__":
    asyncio.run(main())
