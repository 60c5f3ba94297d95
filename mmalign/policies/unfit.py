"""The one table of pipelines that are no policies, and why: patterns of class names, the first that fits counts."""

from __future__ import annotations

import fnmatch

__all__: list[str] = []  # nothing here is looked up by name

DISCRETE = "its steps draw discrete tokens, so that there is no Gaussian step to score"
BROKEN = "diffusers 0.42.1 cannot run it: "
WITHIN = "it runs whole pipelines inside its call, under a no_grad of their own; train the pipeline inside by itself"
OWN_STEPS = "it steps by itself, without asking its scheduler once for each step"

UNFIT: dict[str, str] = {
    "Amused*": DISCRETE,
    "VQDiffusion*": DISCRETE,
    "LLaDA2*": DISCRETE,
    "DiffusionGemma*": DISCRETE,
    "*Combined*": WITHIN,
    "VisualClozePipeline": WITHIN,
    "SkyReelsV2DiffusionForcing*": "each frame has a schedule of its own, so that no step is one decision for all of the latent",
    "ConsistencyModelPipeline": "its steps jump to clean data and back, outside the Gaussian paths that are known here",
    "FluxPriorRedux*": "it encodes an image and does not denoise; train the FLUX pipeline that it serves",
    "LTX*LatentUpsamplePipeline": "it enlarges a latent in one pass and does not denoise",
    "ChromaInpaintPipeline": BROKEN + "it asks for transformer.config.guidance_embeds, which Chroma's config lacks",
    "EasyAnimateControlPipeline": BROKEN + "it passes text_encoder_index to an encode_prompt that takes no such argument",
}


def reason(pipeline: str) -> str | None:
    """Why pipelines of a class are no policies, or None."""
    return next((why for pattern, why in UNFIT.items() if fnmatch.fnmatchcase(pipeline, pattern)), None)
