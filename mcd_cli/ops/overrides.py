"""Functions of torch that are computed another way while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode

Override = Callable[..., Any]


class Overrides(TorchFunctionMode):
    """Within: each function of torch named here is replaced by another of the same signature.

    A replacement that calls the function itself gets torch's, or that of the Overrides entered before these. May be
    entered again and again.
    """

    def __init__(self, replacements: Mapping[Override, Override]) -> None:
        super().__init__()
        self.replacements = dict(replacements)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.replacements.get(func, func)(*args, **(kwargs or {}))
