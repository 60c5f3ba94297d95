"""A denoiser that answers with a mixture of what it says under several sets of parameters, inside any pipeline's call.

A Gaussian step's mean is an affine function of the denoiser's output, and its std does not depend on it. So with shares that add up to
1 the mixture of outputs has the mixture of means, which is ``prod_k pi_k^share_k``, normalised: the geometric mixture, exactly. What
is not affine in the output (rescaled guidance, thresholds, a learned variance) makes it approximate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

Using = Callable[[str], AbstractContextManager[None]]


@contextmanager
def drawing(modules: Iterable[nn.Module], shares: Mapping[str, float], using: Using) -> Iterator[None]:
    """While the block lasts, the modules answer with the mixture ``shares``. using: puts a named set of parameters in place."""
    with ExitStack() as stack:
        if len(shares) == 1:
            stack.enter_context(using(next(iter(shares))))
        else:
            for module in modules:
                stack.enter_context(_mixed(module, shares, using))
        yield


@contextmanager
def _mixed(module: nn.Module, shares: Mapping[str, float], using: Using) -> Iterator[None]:
    inside = False

    def mix(own: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        nonlocal inside
        if inside:
            return None
        inside, total = True, None
        try:
            for name, share in shares.items():
                with using(name):
                    part = share * _tensor(output if name == "current" else own(*args, **kwargs))
                total = part if total is None else total + part
        finally:
            inside = False
        return _replaced(output, total)

    with module.register_forward_hook(mix, with_kwargs=True):
        yield


def _tensor(output: Any) -> Tensor:
    """What a denoiser predicts: its output, the first of a tuple, or the first field of a record."""
    if isinstance(output, Tensor):
        return output
    first: Tensor = output[0]
    return first


def _replaced(output: Any, value: Any) -> Any:
    if isinstance(output, Tensor):
        return value
    if isinstance(output, tuple):
        return (value, *output[1:])
    changed = copy.copy(output)
    changed[next(iter(output.keys()))] = value
    return changed
