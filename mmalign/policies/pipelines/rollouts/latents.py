"""Images and videos as the latents that a pipeline starts from, and what each number of a latent counts under a mask of pixels."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.types import UserError

__all__: list[str] = []  # no policy

FRAMES_FIRST = frozenset({"CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"})  # latents [B, F, C, H, W]


def latents(policy: Any, outputs: Any, examples: Sequence[Any] = ()) -> Tensor:
    """Images in 0..1 ``[B, C, H, W]``, or videos ``[B, F, C, H, W]``, as the pipeline's first latents would be without noise.

    Through the pipeline's own ``vae`` (its mode, then ``shift_factor`` and ``scaling_factor``, or ``latents_mean`` and
    ``latents_std``, or FLUX.2's patches under the statistics of the VAE's batch norm), and its own ``_pack_latents`` where it has
    one. Without a VAE, pixels in -1..1. Covered so: Stable Diffusion 1 to 3.5, SDXL, FLUX.1 and 2, Qwen-Image, Sana, PixArt,
    AuraFlow, LTX, Wan, HunyuanVideo, CogVideoX. Where a pipeline does otherwise, the shape does not fit the latents that it
    makes itself, and the probe refuses it with both shapes. examples: prompts, as of ``DiffusersPolicy.shown``.

    Errors: UserError for outputs that are not such tensors.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim not in (4, 5):
        got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UserError(
            f"outputs: got {got}, takes images [batch, channels, height, width] or videos [batch, frames, channels, height, width]"
        )
    pipe = policy.pipe
    pixels = (2 * outputs.float() - 1).to(pipe._execution_device)
    vae = pipe.components.get("vae")
    if vae is None:
        return _own_pixels(pipe, dict(getattr(policy.denoiser, "config", {})), pixels)
    pixels = in_colours(pixels, dict(vae.config).get("in_channels")).to(vae.dtype)
    if any(isinstance(module, torch.nn.Conv3d) for module in vae.modules()):  # an autoencoder of videos: channels before frames
        pixels = pixels.unsqueeze(2) if pixels.ndim == 4 else pixels.transpose(1, 2)
    encoded = torch.cat([_mode(vae.encode(rows)) for rows in pixels.split(policy.rows_at_once)])
    patchify = getattr(pipe, "_patchify_latents", None)
    clean = _normalised(vae, encoded.float()) if patchify is None else _standard(vae, patchify(encoded.float()))
    return _arranged(policy, clean, examples)


def in_colours(pixels: Tensor, takes: int | None) -> Tensor:
    """Grey pictures ``[..., 3, H, W]``, as every file is read, for a model of one channel, and ``[..., 1, H, W]`` for one of three.

    Whatever that would change stays as it is.

    Examples:
        >>> grey = torch.rand(2, 1, 4, 4).expand(-1, 3, -1, -1)
        >>> [tuple(in_colours(grey, takes).shape) for takes in (1, 3, None)]
        [(2, 1, 4, 4), (2, 3, 4, 4), (2, 3, 4, 4)]
        >>> in_colours(torch.rand(2, 3, 4, 4), 1).shape
        torch.Size([2, 3, 4, 4])
    """
    channels = pixels.shape[-3]
    if takes == 1 and channels == 3 and bool((pixels == pixels[..., :1, :, :]).all()):
        return pixels[..., :1, :, :]
    return pixels.expand(*pixels.shape[:-3], 3, -1, -1) if takes == 3 and channels == 1 else pixels


def _own_pixels(pipe: Any, config: dict[str, Any], pixels: Tensor) -> Tensor:
    """Pixels as a denoiser of pixels takes them. Errors: UserError for other sides or colours, as far as its config has them."""
    sides, colours = list(pixels.shape[-2:]), [config[key] for key in ("in_channels", "out_channels") if key in config]
    side = config.get("sample_size", sides[0])
    if sides != [side, side]:
        raise UserError(f"records.size: got images of {sides} pixels, {type(pipe).__name__} takes {[side, side]}: records.size: {side}")
    pixels = in_colours(pixels, colours[0] if colours else None)
    if colours and pixels.shape[-3] not in colours:
        raise UserError(f"records: got images of {pixels.shape[-3]} colours, {type(pipe).__name__} takes {colours[0]}")
    return pixels


def _arranged(policy: Any, clean: Tensor, examples: Sequence[Any] = ()) -> Tensor:
    """Latents ``[B, C, ...]`` in the order that the scheduler is shown them in, without what is given to the pipeline."""
    frames_first = any(type(module).__name__ in FRAMES_FIRST for module in policy.denoisers.values())
    own = clean.transpose(1, 2).contiguous() if frames_first else _packed(policy.pipe, clean)
    return policy.shown(own, examples)  # type: ignore[no-any-return]


def weights_of(policy: Any, mask: Tensor, outputs: Tensor, clean: Tensor) -> Tensor:
    """What each number of a latent counts, as pixels do, with the mean 1 over each row: of the shape of ``clean``.

    mask: ``[B, 1, H, W]``, or ``[B, F, 1, H, W]``, of these ``outputs``; the latent's numbers take the mean over their pixels.

    Errors: UserError for another shape, for numbers below 0, and a row in which nothing counts.
    """
    takes = [*outputs.shape[:-3], 1, *outputs.shape[-2:]]
    if list(mask.shape) != takes:
        raise UserError(f"policy.mask: got {list(mask.shape)}, takes {takes}")
    pixels = mask.float().to(clean.device)
    if not bool((pixels >= 0).all()) or not bool((pixels.flatten(1).sum(1) > 0).all()):
        raise UserError("policy.mask: got numbers below 0, or a row of which nothing counts; takes 0 and more, and something in each row")
    vae = policy.pipe.components.get("vae")
    if vae is None:
        wide = pixels.expand_as(clean)
    else:
        video = any(isinstance(module, torch.nn.Conv3d) for module in vae.modules())
        if video:
            pixels = pixels.unsqueeze(2) if pixels.ndim == 4 else pixels.transpose(1, 2)
        with torch.no_grad():
            blank = torch.zeros((1, outputs.shape[-3], *pixels.shape[2:]), dtype=vae.dtype, device=clean.device)
            shape = _mode(vae.encode(blank)).shape[1:]
        coarse = torch.nn.functional.interpolate(pixels, size=list(shape[1:]), mode="area")
        patchify = getattr(policy.pipe, "_patchify_latents", lambda latents: latents)
        wide = _arranged(policy, patchify(coarse.expand(-1, *shape)))
    wide = wide.double()
    return wide / wide.flatten(1).mean(1).view(-1, *(1,) * (wide.ndim - 1))


def last_frames(outputs: Tensor, share: float) -> Tensor:
    """A mask ``[B, F, 1, H, W]`` of videos, 1 for the last frames: so large a share of them, at least one.

    Errors: UserError for what is no video.

    Examples:
        >>> last_frames(torch.zeros(1, 5, 3, 2, 2), 0.4)[0, :, 0, 0, 0].tolist()
        [0.0, 0.0, 0.0, 1.0, 1.0]
    """
    if outputs.ndim != 5:
        raise UserError(
            f"method.tail: got outputs of {list(outputs.shape)}, takes videos [batch, frames, channels, height, width], decoded"
        )
    mask = torch.zeros(len(outputs), outputs.shape[1], 1, *outputs.shape[3:])
    mask[:, -max(1, round(share * outputs.shape[1])) :] = 1.0
    return mask


def _mode(encoded: Any) -> Tensor:
    """What an autoencoder's ``encode`` returns: a distribution in ``latent_dist``, or ``latent`` or ``latents`` themselves."""
    fields = encoded if isinstance(encoded, dict) else {}
    if "latent_dist" in fields:
        return fields["latent_dist"].mode()
    return fields["latent"] if "latent" in fields else fields["latents"]


def _normalised(vae: Any, encoded: Tensor) -> Tensor:
    """Latents as denoisers see them."""
    scale = float(vae.config.get("scaling_factor") or 1.0)
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    buffers = dict(vae.named_buffers())
    mean, std = buffers.get("latents_mean", mean), buffers.get("latents_std", std)
    if mean is not None and std is not None:
        shape = (1, -1, *(1,) * (encoded.ndim - 2))
        mean, std = (torch.as_tensor(value).to(encoded).view(shape) for value in (mean, std))
        return (encoded - mean) * scale / std
    return (encoded - float(vae.config.get("shift_factor") or 0.0)) * scale


def _standard(vae: Any, patches: Tensor) -> Tensor:
    """Patches under the running mean and variance of the VAE's batch norm (FLUX.2)."""
    buffers = dict(vae.named_buffers())
    mean, variance = (buffers[f"bn.running_{name}"].to(patches).view(1, -1, 1, 1) for name in ("mean", "var"))
    return (patches - mean) / (variance + float(vae.config.batch_norm_eps)).sqrt()


def _packed(pipe: Any, encoded: Tensor) -> Tensor:
    """Latents in the order that the pipeline's ``_pack_latents`` gives them, its arguments found by name."""
    pack = getattr(pipe, "_pack_latents", None)
    if pack is None:
        return encoded
    height, width = encoded.shape[-2:]
    arguments = {
        "latents": encoded, "batch_size": len(encoded), "num_channels_latents": encoded.shape[1], "height": height, "width": width,
        "patch_size": getattr(pipe, "transformer_spatial_patch_size", 1),
        "patch_size_t": getattr(pipe, "transformer_temporal_patch_size", 1),
    }  # fmt: skip
    parameters = inspect.signature(pack).parameters
    if strange := [name for name in parameters if name not in arguments]:
        raise UserError(f"latents: {type(pipe).__name__} packs its latents with {', '.join(strange)}, which is not known here")
    return pack(**{name: arguments[name] for name in parameters})
