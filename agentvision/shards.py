"""Parameters of which each rank holds a part (FSDP): whether one is, and the whole of it."""

from __future__ import annotations

from torch import Tensor, distributed


def is_shard(tensor: Tensor) -> bool:
    if not distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor  # slow to import; who has a model has it already

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of it, detached: of a shard gathered, which is collective, so every rank must ask."""
    gathered: Tensor = tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[attr-defined,operator]
    return gathered.detach()
