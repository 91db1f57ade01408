"""Engines that are made anew: a process has room for one at a time."""

import pytest

from agentvision.errors import ModelError
from agentvision.tokens import trainer_ids

from .policy_cases import Talk, picture
from .vllm_cases import make_policy


async def test_the_recipes_limits_on_pixels_are_the_engines():
    policy = make_policy(max_pixels=64 * 64)
    talk = Talk(policy.codec, images=[picture(0, width=160, height=96)])
    told = await policy.engine.expand(talk.segments, talk.store)
    await policy.close()
    assert list(told.ids) == trainer_ids(talk.segments, policy.codec.image_token_id)


def test_a_setting_that_vllm_does_not_know_is_named():
    with pytest.raises(ModelError, match="no_such_setting"):
        make_policy(engine={"no_such_setting": 1})


def test_vllm_that_is_not_installed_is_told_with_the_remedy(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", None)
    with pytest.raises(ModelError, match=r"agentvision\[vllm\]"):
        make_policy()
