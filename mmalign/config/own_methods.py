"""Methods from outside of mmalign: what they answer is looked at, and what they raise is a line. A run would end in an error of torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmalign.arguments.raised import said

if TYPE_CHECKING:
    from torch import Tensor

    from mmalign.types import Feedback, Loss, Method, Steps


def watched(method: Method, name: str) -> Method:
    """The method, whose functions are refused where they raise, or answer otherwise than `types.Method` says. name: as a config has it.

    Errors: UserError of the functions, in one line that begins with the name and says which of them it was.
    """
    from mmalign.types import Loss, UserError

    def signal(feedback: Feedback) -> Tensor:
        rows, value = len(feedback.rewards), _called(name, "signal", method.signal, feedback)
        if not _is_tensor(value) or value.ndim not in (2, 3) or len(value) != rows:
            raise UserError(f"{name}: its signal is {_shown(value)}, takes a tensor [{rows}, 1] or [{rows}, steps]")
        if odd := int(value.isnan().flatten(1).any(1).sum()):
            raise UserError(f"{name}: its signal is NaN in {odd} of {rows} rows; takes 0 where nothing is known of a row")
        return value  # type: ignore[no-any-return]

    def weigh(mask: Tensor) -> Tensor:
        value = _called(name, "weigh", method.weigh, mask)
        if not _is_tensor(value) or value.shape != mask.shape:
            raise UserError(f"{name}: its weigh gives {_shown(value)}, takes a tensor {list(mask.shape)}, as the mask")
        return value  # type: ignore[no-any-return]

    def loss(steps: Steps, signal: Tensor) -> Loss:
        value, (rows, columns) = _called(name, "loss", method.loss, steps, signal), steps.mask.shape
        if not isinstance(value, Loss) or not _is_tensor(value.values):
            inside = f"a Loss whose values are {_shown(value.values)}" if isinstance(value, Loss) else _shown(value)
            raise UserError(f"{name}: its loss gives {inside}, takes types.Loss(values, metrics)")
        if tuple(value.values.shape) not in ((rows, columns), (rows, 1)):
            takes = f"takes [{rows}, {columns}] or [{rows}, 1]: a value for each cell, not reduced"
            raise UserError(f"{name}: the values of its loss are {_shown(value.values)}, {takes}")
        if steps.log_probs.requires_grad and not value.values.requires_grad:
            raise UserError(
                f"{name}: the values of its loss have no gradient; takes ones that steps.log_probs lead to, and no detach() of them"
            )
        return value

    return replace(method, signal=signal, weigh=weigh, loss=loss)


def _called(name: str, part: str, function: Callable[..., Any], *arguments: Any) -> Any:
    import torch

    from mmalign.types import UserError

    try:
        return function(*arguments)
    except (UserError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # somebody else's code: whatever it raises, the user has to know whose it was
        raise UserError(f"{name}: its {part} {said(error)}") from error


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _shown(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if _is_tensor(value) else f"of type {type(value).__name__}"
