"""Fake servers."""

from contextlib import ExitStack

import pytest

from .vllm_server import VllmServer


@pytest.fixture
def serve(codec):
    """Start fake servers: `serve(fault=…)`."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(
            VllmServer(image_token_id=codec.image_token_id, stop_id=codec.stop_ids[0], **options)
        )
