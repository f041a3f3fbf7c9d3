"""Which of torch's operators run within a block."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

HOST_SYNC = "aten._local_scalar_dense"  # .item(), bool(tensor): on a GPU the host waits


class Counted(TorchDispatchMode):
    """How often each operator is called within."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func).rpartition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


class StridedKernels(TorchDispatchMode):
    """Collects the strided 1×1 convolutions that reach torch's kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            weight, stride = args[1], args[3]
            if tuple(weight.shape[-2:]) == (1, 1) and max(stride) > 1:
                self.shapes.append(tuple(weight.shape))
        return func(*args, **(kwargs or {}))
