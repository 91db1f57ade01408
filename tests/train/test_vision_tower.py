import torch

from agentvision.train.forward import image_features
from agentvision.vision_tower import NAME, use_window_batches

from .conftest import pixels, tiny_model

IMAGES = ["4x4", "8x8", "12x12", "4x12", "20x8", "8x8"]


def features_and_gradient(model):
    images = list(dict.fromkeys(IMAGES))
    found = image_features(model, images, pixels)
    sum((f * f).sum() for f in found.values()).backward()
    return found, {n: p.grad for n, p in model.model.visual.named_parameters()}


def test_windows_in_one_call_give_the_towers_own_features_and_gradients():
    plain, batched = tiny_model(), tiny_model()
    use_window_batches(batched)
    assert batched.model.visual.config._attn_implementation == NAME
    assert batched.config._attn_implementation == "sdpa", "the language model keeps its own"
    expected, gradient = features_and_gradient(plain)
    found, other = features_and_gradient(batched)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)
    for name, value in gradient.items():
        torch.testing.assert_close(other[name], value, atol=1e-4, rtol=1e-4)


def test_other_kernels_are_left_alone():
    model = tiny_model(attn="eager")
    use_window_batches(model)
    assert model.model.visual.config._attn_implementation == "eager"
