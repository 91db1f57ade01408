"""The in-process policy from a folder of weights."""

import asyncio

import pytest
from transformers.utils import logging as transformers_logging

from agentvision.errors import ModelError
from agentvision.policies._model import load_model
from agentvision.policies.transformers import TransformersPolicy

from .policy_cases import picture, run


@pytest.fixture(scope="module")
def saved(model, codec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    codec.tokenizer.save_pretrained(folder)
    codec.image_processor.save_pretrained(folder)
    return folder


async def test_a_saved_model_samples_the_same(policy, saved, talk):
    loaded = TransformersPolicy.from_pretrained(saved, dtype="float32", device="cpu")
    a, b = talk(images=[picture()]), talk(images=[picture()])
    await asyncio.gather(run(a, policy, 2), run(b, loaded, 2))
    assert [c.ids for c in a.completions] == [c.ids for c in b.completions]
    await loaded.close()


def test_a_missing_model_is_a_clear_error(tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        TransformersPolicy.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ModelError, match="no/such-model"):
        TransformersPolicy.from_pretrained("no/such-model")


def test_a_broken_model_is_a_clear_error(saved, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="broken"):
        TransformersPolicy.from_pretrained(broken)


def test_a_model_of_another_family_is_refused(codec):
    from torch import nn

    with pytest.raises(ModelError, match="family"):
        TransformersPolicy(nn.Linear(2, 2), codec)


def test_no_bar_is_drawn_where_nobody_watches(saved, capfd):
    transformers_logging.enable_progress_bar()
    load_model(saved, device="cpu")
    assert capfd.readouterr().err == ""
