"""Lets torchvision's CUDA build be imported beside the CPU build of torch; `make setup-vllm` puts this into .venv.

vLLM builds Qwen's whole processor, whose video part imports torchvision. The package index has one build of it for
Linux, CUDA's, and without CUDA its operators are not registered; declaring two of them, which nothing here calls, is
enough for the import. Needed in every process that vLLM starts, hence a `.pth` file. Never part of the package.
"""

import importlib.abc
import importlib.machinery
import sys


class _Declare(importlib.abc.MetaPathFinder):
    library = None

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision" and _Declare.library is None:
            import torch

            _Declare.library = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                _Declare.library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return


sys.meta_path.insert(0, _Declare())
