"""Replaces torch functions by our own implementations while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode

Override = Callable[..., Any]


class Overrides(TorchFunctionMode):
    """A context manager that replaces torch functions by others of the same signature; it can be re-entered.

    A replacement that calls the original function gets torch's, or that of an enclosing Overrides.
    """

    def __init__(self, replacements: Mapping[Override, Override]) -> None:
        super().__init__()
        self.replacements = dict(replacements)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.replacements.get(func, func)(*args, **(kwargs or {}))
