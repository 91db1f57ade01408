"""What is a shard, by its type and not by its attributes."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from agentvision.engine.sync import is_sharded
from agentvision.shards import is_shard, whole


@pytest.fixture
def world(tmp_path):  # type: ignore[no-untyped-def]
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_a_shard_is_gathered_and_no_part_of_the_graph(world) -> None:  # type: ignore[no-untyped-def]
    weight = torch.arange(12.0).reshape(4, 3)
    model = nn.Linear(3, 4, bias=False)
    model.weight = nn.Parameter(distribute_tensor(weight, world, [Shard(0)]))
    assert is_sharded(model) and is_shard(model.weight)
    found = whole(model.weight)
    assert type(found) is torch.Tensor and torch.equal(found, weight) and not found.requires_grad


def test_a_plain_parameter_is_whole_whatever_it_is_called() -> None:
    model = nn.Linear(3, 4)
    model.weight.full_tensor = "somebody's own"  # type: ignore[attr-defined]
    assert not is_sharded(model)
    assert whole(model.weight).data_ptr() == model.weight.data_ptr()
