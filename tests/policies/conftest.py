"""A tiny random Qwen2.5-VL and conversations for it."""

import pytest

from .policy_cases import Talk


@pytest.fixture(scope="session")
def model(codec):
    from agentvision.tiny.config import tiny_config, tiny_model

    config = tiny_config(codec.tokenizer)
    config.text_config.vocab_size = codec.vocab_size
    return tiny_model(config, seed=1).eval()


@pytest.fixture
def talk(codec):
    """Make a `Talk` with this session's codec."""

    def make(**options):
        return Talk(codec, **options)

    return make
