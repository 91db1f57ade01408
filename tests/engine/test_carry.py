"""Buckets by every carrier: any tensors arrive as they were sent, bit for bit."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentvision.engine.carry import (
    _SHARED,
    ByReference,
    BySharedMemory,
    bytes_of,
    laid_out,
    mapped,
    sees,
    shows,
    taken,
    tensors_in,
    told,
)
from agentvision.engine.digest import tensor_digest
from agentvision.engine.lend import ByNetwork, Listener, fetched
from agentvision.engine.memory import PREFIX
from agentvision.engine.sync import buckets
from agentvision.engine.types import EngineError

DTYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn,
    torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip


@st.composite
def tensors(draw):
    """Of any type and shape, without elements or without dimensions too, and with strides of their own."""
    shape = draw(st.lists(st.integers(0, 9), max_size=3))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(DTYPES))
    count = torch.Size(shape).numel() * dtype.itemsize
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), generator=seed, dtype=torch.uint8)
    tensor = bits.view(dtype).reshape(shape)
    if shape and draw(st.booleans()):
        tensor = tensor.transpose(0, -1)
    if shape and draw(st.booleans()):
        tensor = tensor[::2]
    return tensor


names = st.text(min_size=1, max_size=12)
named = st.dictionaries(names, tensors(), max_size=12).map(lambda chosen: list(chosen.items()))


@pytest.fixture(scope="module", params=["reference", "shared memory", "network", "network, IPv6"])
def carrier(request):
    if not request.param.startswith("network"):
        yield {"reference": ByReference, "shared memory": BySharedMemory}[request.param]()
        return
    listener = Listener("::1" if "IPv6" in request.param else "127.0.0.1", 0)
    yield ByNetwork(listener, listener.server_address[0])
    listener.close()


@settings(max_examples=60, deadline=None)
@given(sent=named, limit=st.integers(1, 2000))
def test_what_is_sent_arrives(carrier, sent, limit):
    arrived = []
    for bucket in buckets(iter(sent), limit):
        with carrier.carry(bucket) as info:
            got = taken(info, fetched)
        arrived += got  # what was taken lives on when the sender is done with it
    assert [name for name, _ in arrived] == [name for name, _ in sent]
    for (_, before), (_, after) in zip(sent, arrived, strict=True):
        assert after.dtype == before.dtype and after.shape == before.shape
        assert torch.equal(bytes_of(after), bytes_of(before))
        if before.element_size() in (1, 2, 4, 8) and not before.is_complex():
            assert tensor_digest(after) == tensor_digest(before)


def test_parameters_are_carried_and_what_arrives_is_a_copy_or_they_themselves(carrier):
    weight = torch.nn.Linear(4, 4).weight
    with carrier.carry([("weight", weight)]) as info:
        ((_, arrived),) = taken(info, fetched)
        assert torch.equal(arrived, weight)
        if isinstance(carrier, ByReference):
            assert arrived is weight
            return
        arrived.zero_()
        ((_, again),) = taken(info, fetched)
        assert torch.equal(again, weight) and weight.any()


def test_shared_memory_is_gone_when_the_sender_is_done():
    with BySharedMemory().carry([("a", torch.ones(3))]) as info:
        assert mapped(info["memory"]).numel() == 64
    with pytest.raises(FileNotFoundError):
        mapped(info["memory"])


def test_shared_memory_is_gone_too_when_a_tensor_cannot_be_copied():
    before = set(_SHARED.glob(f"{PREFIX}*"))
    whole, gone = torch.ones(3), torch.empty(3, device="meta")  # one that has no bytes to copy
    with pytest.raises(NotImplementedError), BySharedMemory().carry([("a", whole), ("b", gone)]):
        pass
    assert set(_SHARED.glob(f"{PREFIX}*")) == before


def test_a_worker_sees_the_senders_memory_by_what_is_in_it():
    with shows(b"nonce") as memory:
        assert sees(memory, b"nonce") and not sees(memory, b"other")
    assert not sees(memory, b"nonce")


def test_a_bucket_that_was_cut_is_refused():
    with BySharedMemory().carry([("a", torch.ones(30))]) as info, pytest.raises(EngineError, match="shorter"):
        tensors_in(mapped(info["memory"])[:-64], info["places"])


def test_places_are_json():
    places, end = laid_out([("a", torch.ones(3, 2)), ("b", torch.tensor(1.0))])
    assert end == 128
    assert json.loads(json.dumps(told(places)))[1] == {"name": "b", "dtype": "float32", "shape": [], "offset": 64}
