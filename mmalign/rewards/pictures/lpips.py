"""How alike an image looks to the one that its prompt holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.arguments.ranges import Count
from mmalign.rewards._models.weights import device_of, tensors, weight_file
from mmalign.rewards._shared.scorer import Scorer
from mmalign.rewards.pictures.reconstruction import shown
from mmalign.types import UserError

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in -1 to 1
SLICES = 5


class Layers(NamedTuple):
    """Of one slice its convolutions, (weight, bias) each, and the weights ``[C]`` of its channels."""

    convolutions: list[tuple[Tensor, Tensor]]
    channels: Tensor


def lpips(*, weights: str, sha256: str | None = None, device: str | None = None, rows_at_once: Count = 32) -> Scorer:
    """Reward: minus LPIPS to the image in the prompt, from about -1 to 0; 0 where both are the same.

    With f_k the states behind slice k of a convolutional net, each divided by its length over channels, and w_k of each channel::

        r = -sum_k mean over places of  sum over channels  w_k (f_k(output) - f_k(wanted))^2

    Differentiable. Of pixels in 0..1, a channel alone three times. VA-pi's perceptual part (arXiv 2512.19680), beside ``reconstruction``.

    Args:
        weights: a file in the format of ``lpips.LPIPS(net="vgg").state_dict()`` or of ``net="alex"``, which the package lpips makes, or
            ORGANISATION/REPOSITORY/FILE on the hub; nets and sizes are read off it. sha256: of it; another one is refused.
        device: a GPU if there is one. rows_at_once: images in one call of the net.

    A prompt without an image has no reward: NaN. Errors: UserError for a file of something else, for images that the net makes nothing of,
    and as of ``reconstruction``.

    Source: Zhang et al. 2018, The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, arXiv 1801.03924, eq. 1.
    """
    key, place = "lpips.weights", device_of(device)
    net = _net(key, {name: value.to(place) for name, value in tensors(key, weight_file(key, weights, sha256=sha256)).items()})

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        parts = list[Tensor]()
        for at in range(0, len(prompts), rows_at_once):
            some = outputs[at : at + rows_at_once]
            parts.append(-distance(net, some.to(place), shown("lpips", prompts[at : at + rows_at_once], some).to(place)))
        return torch.cat(parts).to(outputs.device)

    return Scorer("lpips", score, differentiable=True, high=0.0)


def distance(net: list[Layers], one: Tensor, other: Tensor) -> Tensor:
    """LPIPS of images ``[B, C, H, W]`` in 0..1, ``[B]``. Errors: UserError for sides that the net leaves nothing of."""
    states = [_states(net, image.expand(-1, 3, -1, -1)) for image in (one, other)]
    total = torch.zeros(len(one), device=one.device)
    for layers, own, wanted in zip(net, *states, strict=True):
        apart = (_unit(own) - _unit(wanted)).square() * layers.channels.view(-1, 1, 1)
        total = total + apart.sum(1).mean((1, 2))
    return total


def _unit(states: Tensor) -> Tensor:
    return states / (torch.linalg.vector_norm(states, dim=1, keepdim=True) + 1e-10)


def _states(net: list[Layers], images: Tensor) -> list[Tensor]:
    shift, scale = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (SHIFT, SCALE))
    x, found = (2 * images.float() - 1 - shift) / scale, list[Tensor]()
    alex = net[0].convolutions[0][0].shape[-1] > 3
    for number, layers in enumerate(net):
        pooled = (0 < number < 3) if alex else number > 0
        side, first = (3, 7) if alex else (2, 1)  # what a pool takes at least, and the first convolution in its padding
        if (number == 0 and min(x.shape[-2:]) < first) or (pooled and min(x.shape[-2:]) < side):
            raise UserError(
                f"lpips: got images of {images.shape[-2]} x {images.shape[-1]}, of which the net leaves nothing; takes larger ones"
            )
        x = functional.max_pool2d(x, side, 2) if pooled else x
        for weight, bias in layers.convolutions:
            x = functional.conv2d(x, weight, bias, stride=4 if weight.shape[-1] == 11 else 1, padding=min(weight.shape[-1] // 2, 2)).relu()
        found.append(x)
    return found


def _net(key: str, state: Mapping[str, Tensor]) -> list[Layers]:
    """Errors: UserError for a state dict that is not LPIPS's."""
    try:
        net = list[Layers]()
        for number in range(SLICES):
            start = f"net.slice{number + 1}."
            names = sorted(
                (name for name in state if name.startswith(start) and name.endswith(".weight")), key=lambda name: int(name.split(".")[2])
            )
            convolutions = [(state[name].float(), state[name.removesuffix("weight") + "bias"].float()) for name in names]
            channels = state[f"lin{number}.model.1.weight"].float().flatten()
            if not convolutions or len(channels) != convolutions[-1][0].shape[0]:
                raise KeyError(start)
            net.append(Layers(convolutions, channels))
    except KeyError as error:
        takes = "takes the state dict of lpips.LPIPS of vgg or alex"
        raise UserError(f"{key}: holds no {error.args[0]} of such a net; {takes}") from error
    return net
