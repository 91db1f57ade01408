"""Fake servers."""

from contextlib import ExitStack

import pytest

from agentvision.engine.endpoint import Endpoint

from .vllm_server import VllmServer


@pytest.fixture
def serve(codec):
    """Start fake servers: `serve(fault=…)`."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(
            VllmServer(image_token_id=codec.image_token_id, stop_id=codec.stop_ids[0], **options)
        )


@pytest.fixture
async def endpoint_of(codec):
    made = []

    def make(server, **options):
        made.append(Endpoint(getattr(server, "url", server), codec=codec, **{"timeout_s": 30.0} | options))
        return made[-1]

    yield make
    for endpoint in made:
        await endpoint.close()
