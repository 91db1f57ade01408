"""What runs inside vLLM's workers: a receiver of weights, and what a trainer may ask about them afterwards.

vLLM finds both by name. `register` is called in each of its processes (entry point `vllm.general_plugins`) and makes the
weight-transfer backend "agentvision" known; `WeightReader` is the worker's extension (`worker_extension_cls`), whose methods
answer `collective_rpc`. How tensors come is `carry`'s affair. Each bucket's digests are taken from the very tensors that are
handed to the model, and kept until the next update.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from agentvision.engine import adapter
from agentvision.engine.carry import sees
from agentvision.engine.digest import rows_digest

BACKEND = "agentvision"


def register() -> None:
    """Make the backend known to vLLM; called by its plug-in system in every process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "agentvision.engine.receiver", "WeightReceiver")
    adapter.register()


RECEIVED: dict[str, int] = {}
"""The digest of every tensor of the last update, by its name. A worker is a process, and has one model."""
PROBLEMS: list[str] = []
"""Why the last update was not taken whole. Nothing is loaded after the first; the others follow from it."""


class WeightReader(adapter.AdapterReader):
    """Methods that vLLM adds to its worker. All answer JSON, because that is what travels over HTTP."""

    model_runner: Any
    _weight_update_active: bool
    finish_weight_update: Callable[[], None]

    def agentvision_sees(self, memory: str, nonce: str) -> str:
        """Whether the trainer's shared memory is here too."""
        return json.dumps(sees(memory, bytes.fromhex(nonce)))

    def agentvision_end_update(self) -> str:
        """End an update whose trainer went away: vLLM begins no other before, and layers keep what they had of it."""
        if self._weight_update_active:
            self.finish_weight_update()
        return ""

    def agentvision_problem(self) -> str:
        """Why the last update was not taken whole, or nothing."""
        return "".join(PROBLEMS[:1])

    def agentvision_received(self) -> str:
        """The digests of the last update's tensors, as they were handed to the model: `{name: digest}`."""
        return json.dumps(RECEIVED)

    def agentvision_loaded(self) -> str:
        """`rows_digest` of the parameters that the model computes with now."""
        seen = {p.data_ptr(): p for p in self.model_runner.get_model().parameters()}
        return str(rows_digest(seen.values()))

    def agentvision_cached(self) -> str:
        """How many images' features are kept."""
        # A runner without it is one that this proof does not know: an error, not 0. It is None for a model without images.
        return str(len(self.model_runner.encoder_cache or ()))
