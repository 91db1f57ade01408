"""What can be trained, and what is refused and why."""

import pytest

from agentvision import build
from agentvision.errors import PluginError
from agentvision.policy import TrainablePolicy
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

        half.weights_changed, half.rest = weights_changed, rest
        assert isinstance(half, TrainablePolicy)
    monkeypatch.setattr(build, "build_policy", lambda recipe, **_: half)
    recipe = glyph_recipe()
    with pytest.raises(PluginError, match="cannot be trained: it does not give the exact ids"):
        make_learner(recipe, make_accelerator(recipe), model=None, reference=None)
