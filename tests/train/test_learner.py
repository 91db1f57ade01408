"""What can be trained, and what is refused and why."""

from types import SimpleNamespace

import pytest
from accelerate import DistributedType

from agentvision import build
from agentvision.errors import ModelError, PluginError
from agentvision.policy import TrainablePolicy
from agentvision.recipe import load_recipe
from agentvision.train.learner import make_accelerator, make_learner

from ..scripted import ScriptedPolicy, glyph_recipe


@pytest.mark.parametrize("exact", [True, False])
def test_training_refuses_a_policy_that_it_could_not_move(monkeypatch, exact):
    class Half(ScriptedPolicy):
        """Says that it is exact, but has no weights to change; or the other way round."""

        trainable = exact

    half = Half([])
    if not exact:
        half.model, half.vision_frozen, half.samples_from_copy, half.codec = None, False, False, object()

        async def weights_changed(version):
            pass

        async def rest():
            pass

        half.weights_changed, half.rest, half.ready = weights_changed, rest, rest
        assert isinstance(half, TrainablePolicy)
    monkeypatch.setattr(build, "build_policy", lambda recipe, **_: half)
    recipe = glyph_recipe()
    with pytest.raises(PluginError, match="cannot be trained: it does not give the exact ids"):
        make_learner(recipe, make_accelerator(recipe), model=None, reference=None)


def test_training_refuses_to_shard_what_it_could_not_save():
    sharding = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(ModelError, match=r"shard the model .FSDP."):
        make_learner(glyph_recipe(), sharding, model=None, reference=None)


def test_a_policy_is_closed_when_the_rest_cannot_be_made(monkeypatch):
    """Its engine would be in the way of the next one."""
    closed = []
    make = build.build_policy

    def watched(*args, **kwargs):
        policy = make(*args, **kwargs)
        close = policy.close

        async def close_and_say():
            closed.append(True)
            await close()

        policy.close = close_and_say
        return policy

    monkeypatch.setattr(build, "build_policy", watched)
    recipe = load_recipe("visionthink", profile="tiny")
    monkeypatch.setattr("agentvision.train.learner.make_optimizer", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_learner(recipe, make_accelerator(recipe), model=None, reference=None)
    assert closed == [True]
