"""The class behind ``adapter_guidance``. A file of its own because its base is diffusers': nothing imports it before it is wanted."""

from __future__ import annotations

from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput

from mmalign.guidance._models import adapters
from mmalign.guidance.extrapolation import extrapolate


class AdapterGuidance(BaseGuidance):  # type: ignore[misc]
    """See ``adapter_guidance``."""

    _input_predictions = ["pred_cond", "pred_uncond", "pred_base_cond", "pred_base_uncond"]  # noqa: RUF012 (read by diffusers)

    @register_to_config
    def __init__(
        self, scale: float = 1.6, guidance_scale: float = 7.5, base: str = "base", aligned: str = "current", start: float = 0.0,
        stop: float = 1.0, enabled: bool = True,
    ):  # fmt: skip
        super().__init__(start, stop, enabled)
        self.scale, self.guidance_scale, self.base, self.aligned = scale, guidance_scale, base, aligned
        self._open: Any = None

    def _names(self) -> list[str]:
        """The predictions that are needed now, in the order in which they are made."""
        between = 1.0
        if self._enabled and self._num_inference_steps is not None:
            inside = int(self._start * self._num_inference_steps) <= self._step < int(self._stop * self._num_inference_steps)
            between = self.scale if inside else 1.0
        both = self._enabled and self.guidance_scale != 1.0
        prefixes = [prefix for prefix, needed in (("", between != 0.0), ("base_", between != 1.0)) if needed]
        return [f"pred_{prefix}{branch}" for prefix in prefixes for branch in (("cond", "uncond") if both else ("cond",))]

    def _between(self) -> float:
        names = self._names()
        return self.scale if any("base" in name for name in names) else 1.0

    def prepare_models(self, denoiser: Any) -> None:
        """Puts the model of the next prediction in place."""
        self._count_prepared += 1
        self._close()
        name = self._names()[self._count_prepared - 1]
        model = self.base if "base" in name else self.aligned
        if model != "current":
            self._open = adapters(denoiser, model)()
            self._open.__enter__()

    def cleanup_models(self, denoiser: Any) -> None:
        """Takes it away again."""
        self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None

    def prepare_inputs(self, data: Any) -> list[Any]:
        """One batch of inputs for each prediction; the second of a pair is the negative prompt's."""
        return [self._prepare_batch(data, int(name.endswith("uncond")), name) for name in self._names()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Any) -> list[Any]:
        """As ``prepare_inputs``, from a block's state."""
        return [self._prepare_batch_from_block_state(input_fields, data, int(name.endswith("uncond")), name) for name in self._names()]

    def forward(self, pred_cond: Any = None, pred_uncond: Any = None, pred_base_cond: Any = None, pred_base_uncond: Any = None) -> Any:
        """The prediction that the pipeline goes on with."""
        low, high = (
            extrapolate(negative, prompt, self.guidance_scale) if negative is not None else prompt
            for negative, prompt in ((pred_base_uncond, pred_base_cond), (pred_uncond, pred_cond))
        )
        if low is None:
            pred = high
        elif high is None:
            pred = low
        else:
            pred = extrapolate(low, high, self._between())
        conditional = pred_cond if pred_cond is not None else pred_base_cond
        return GuiderOutput(pred=pred, pred_cond=conditional, pred_uncond=pred_uncond if pred_cond is not None else pred_base_uncond)

    @property
    def is_conditional(self) -> bool:
        return not self._names()[max(self._count_prepared - 1, 0)].endswith("uncond")

    @property
    def num_conditions(self) -> int:
        return len(self._names())
