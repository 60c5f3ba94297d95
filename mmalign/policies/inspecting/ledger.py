"""Bytes of tensors that nobody holds: modules without weights run in torch's fake mode, and every allocation is counted."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Ledger(TorchDispatchMode):
    """Counts the memory of all tensors that operations make while it is entered, until nobody holds them: ``live``, and the ``peak`` of it.

    A tensor and its views are one storage, counted once. What a kernel takes for itself (workspaces) is not seen.

    summed: shapes and types of parameters whose gradients a backward pass adds up. Where a parameter is used twice (embeddings that are
    the output's too), autograd adds the second part into the first; under a mode such as this one it makes a third tensor instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.summed: set[tuple[torch.Size, torch.dtype]] = set()
        self._storages: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.add.Tensor and not kwargs and not torch.is_grad_enabled() and self._summed(*args):
            func = torch.ops.aten.add_.Tensor
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self.hold(leaf)
        return output

    def _summed(self, one: Any, other: Any) -> bool:
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return both and one.shape == other.shape and one.dtype == other.dtype and (one.shape, one.dtype) in self.summed

    def hold(self, tensor: Tensor) -> None:
        """Counts a tensor from here on."""
        storage = tensor.untyped_storage()
        if storage in self._storages:
            return
        self._storages[storage] = size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.live -= size


class Fake:
    """``with Fake() as fake``: where modules run without numbers. ledger: of their weights, and all that they take beside these."""

    def __init__(self) -> None:
        self.mode, self.ledger = FakeTensorMode(allow_non_fake_inputs=True), Ledger()

    def __enter__(self) -> Fake:
        self.mode.__enter__()
        self.ledger.__enter__()
        return self

    def __exit__(self, *what: Any) -> None:
        self.ledger.__exit__(*what)
        self.mode.__exit__(*what)

    def weights(self, module: nn.Module) -> None:
        """Puts fake weights in place of a module's, on whatever device they are; what was one tensor stays one."""
        done: dict[int, Tensor] = {}

        def fake(value: Tensor) -> Tensor:
            if id(value) not in done:
                with self.mode:
                    empty = torch.empty(value.shape, dtype=value.dtype)
                    done[id(value)] = nn.Parameter(empty, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else empty
                self.ledger.hold(empty)  # or the first view of it would count as new
            return done[id(value)]

        held = []  # or an id would be given twice
        for part in module.modules():
            for table in (part._parameters, part._buffers):
                for name, value in list(table.items()):
                    if value is not None:
                        held.append(value)
                        table[name] = fake(value)  # type: ignore[assignment]

    def of(self, values: Any) -> Any:
        """The same arguments with fake tensors in them."""
        return tree_map(lambda value: self.mode.from_tensor(value.detach()) if isinstance(value, Tensor) else value, values)


def zeros(values: Any) -> Any:
    """What a module in fake mode has answered, as zeros that a pipeline can compute with."""
    return tree_map(lambda value: torch.zeros(tuple(value.shape), dtype=value.dtype) if isinstance(value, Tensor) else value, values)


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, one that is there twice counted once."""
    return sum({id(tensor): tensor.numel() * tensor.element_size() for tensor in tensors}.values())
