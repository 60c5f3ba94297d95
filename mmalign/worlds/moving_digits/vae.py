"""LTX's autoencoder with weights that are written down instead of trained: exact on the videos of this world.

Latents are the canvas of 16x16 in patches of 4x4, as sixteen channels: 1/4 of the numbers, and nothing lost, as every pixel of a
video is a square of four.
"""

from __future__ import annotations

from typing import Any

import torch

PATCH, LATENT, CHANNELS, LARGE = 8, 16, 36, 6144.0


@torch.no_grad()
def written_vae() -> Any:
    """``AutoencoderKLLTXVideo`` from -1..1 ``[B, 1, F, 32, 32]`` to latents ``[B, 16, F, 4, 4]`` in -1..1 and back.

    The encoder averages squares, the decoder repeats them; without residual blocks there is a norm and a SiLU left on either way,
    both undone: ``z`` and ``-z`` go in beside a constant so large that the norm divides by it alone (an error of about
    ``2 |z|^2 / constant^2``, 1e-6), and ``silu(z) - silu(-z) = z``. All weights are powers of two or nearly, exact in float16.
    """
    from diffusers import AutoencoderKLLTXVideo

    vae = AutoencoderKLLTXVideo(
        in_channels=1, out_channels=1, latent_channels=LATENT, patch_size=PATCH, block_out_channels=(CHANNELS,),
        decoder_block_out_channels=(CHANNELS,), down_block_types=("LTXVideoDownBlock3D",), layers_per_block=(0, 0),
        decoder_layers_per_block=(0, 0), spatio_temporal_scaling=(False,), decoder_spatio_temporal_scaling=(False,),
        decoder_inject_noise=(False, False), downsample_type=("conv",), upsample_residual=(False,), upsample_factor=(1,),
    )  # fmt: skip
    for parameter in vae.parameters():
        parameter.zero_()
    square = torch.zeros(LATENT, PATCH**2)  # which pixels of a patch belong to which channel; LTX orders them by columns
    for column in range(PATCH):
        for row in range(PATCH):
            square[(column // 2) * 4 + row // 2, column * PATCH + row] = 1
    undo = LARGE / CHANNELS**0.5
    _write_in(vae.encoder.conv_in.conv, square / 4, frame=2)  # causal: the present frame is the last of three
    _write_out(vae.encoder.conv_out.conv, torch.eye(LATENT) * undo, frame=2)
    vae.encoder.conv_out.conv.bias[LATENT:] = -20.0  # log variances
    _write_in(vae.decoder.conv_in.conv, torch.eye(LATENT), frame=1)
    _write_out(vae.decoder.conv_out.conv, square.T * undo, frame=1)
    return vae.eval().requires_grad_(False)


def _write_in(conv: torch.nn.Conv3d, linear: torch.Tensor, *, frame: int) -> None:
    """``z``, ``-z`` and the constant."""
    conv.weight[:LATENT, :, frame, 1, 1] = linear
    conv.weight[LATENT : 2 * LATENT, :, frame, 1, 1] = -linear
    conv.bias[2 * LATENT] = LARGE  # type: ignore[index]


def _write_out(conv: torch.nn.Conv3d, linear: torch.Tensor, *, frame: int) -> None:
    """``silu(z) - silu(-z)``, scaled."""
    conv.weight[: len(linear), :LATENT, frame, 1, 1] = linear
    conv.weight[: len(linear), LATENT : 2 * LATENT, frame, 1, 1] = -linear
