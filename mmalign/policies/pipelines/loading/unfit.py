"""The one table of pipelines that are no policies, and why: patterns of class names, the first that fits counts."""

from __future__ import annotations

import fnmatch

DISCRETE = "its steps draw discrete tokens, so that there is no Gaussian step to score"
BROKEN = "diffusers 0.42.1 cannot run it: "
WITHIN = "it runs whole pipelines inside its call, under a no_grad of their own; train the pipeline inside by itself"
OWN_STEPS = "it steps by itself, without asking its scheduler once for each step"
GIVEN_NOISE = "the noise of its steps is computed from a source image, so that no step is drawn"
IN_CHUNKS = "it makes a video chunk by chunk, a schedule for each, so that no step is one decision for all of the latent"
OWN_GRADIENT = "it moves the latent by a gradient of its own between steps, which a replay through finished steps does not repeat"
NO_SCHEDULER = "it has several denoisers, each with a scheduler of its own, and none that is named scheduler"

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
    "UnCLIP*": NO_SCHEDULER,
    "CycleDiffusionPipeline": GIVEN_NOISE,
    "LEditsPP*": GIVEN_NOISE,
    "AnyFlowFARPipeline": IN_CHUNKS,
    "HeliosPyramidPipeline": "its latent grows from one stage of a pyramid to the next, so that its steps have no common shape",
    "StableDiffusionAttendAndExcitePipeline": OWN_GRADIENT,
    "StableDiffusionPix2PixZeroPipeline": OWN_GRADIENT,
    "StableDiffusionParadigmsPipeline": "it refines all steps of its schedule at once, so that none of them is a decision by itself",
    "TextToVideoZero*": "it runs over parts of its schedule again and again, and moves latents between frames by itself",
    "StableDiffusionSAGPipeline": "its guidance reads attention maps in each step, and through finished ones the denoiser stands still",
    "StableDiffusionLDM3DPipeline": "it answers with an image and a depth map in two formats, and knows no output_type pt",
    "LTX2VideoDiffusionDecodePipeline": "it decodes given latents",
    "ScoreSdeVePipeline": OWN_STEPS + ": predictor and corrector are asked for instead",
    "KarrasVePipeline": OWN_STEPS + ": its scheduler adds noise before each step and corrects it after",
    "RePaintPipeline": "its schedule jumps back and forth in time, outside the Gaussian steps that are known here",
    "RFD4Protein*": "it makes structures of proteins, not media",
    "EasyAnimateInpaintPipeline": BROKEN + "it calls torch.tensor with two positional arguments",
    "EasyAnimateControlPipeline": BROKEN + "it passes text_encoder_index to an encode_prompt that takes no such argument",
}


# Pipelines that may well be policies, of which no twin can be built here, and why
NO_TWIN: dict[str, str] = {
    "LTX2DFR*": "its call takes a list of sigmas and no num_inference_steps",
    "BlipDiffusion*": "its call asks for a subject category beside each prompt",
    "StableDiffusionDiffEditPipeline": "its call asks for latents that its own invert() made of an image before",
    "SanaWMPipeline": "its call asks for the path of a camera or for actions",
    "VisualCloze*": "its prompts are of two kinds, one for the task and one for the content, with grids of images",
    "UniDiffuserPipeline": "its text decoder is built from sizes that no config tells",
    "VersatileDiffusion*": "its denoiser's flat blocks have names of their own, deprecated",
    "Kandinsky6SRPipeline": "its call wants a video of at least 256 x 256 pixels",
    "StableDiffusion*ControlNetXSPipeline": "its two networks share layers, whose sizes no config tells alone",
    "ShapE*": "its prior takes an image for a text, with a renderer of its own; no twin of both is told here",
    "StableAudio3InpaintPipeline": "its call asks for the seconds that a mask begins and ends at",
    "Marigold*": "its call knows no output_type latent, with which a policy leaves it early",
    "MusicLDMPipeline": BROKEN + "under transformers 5, whose text features are an output object and no tensor",
    "I2VGenXLPipeline": BROKEN + "under transformers 5, whose CLIPTextModel has no text_model",
    "ZImageControlNet*": BROKEN + "its ControlNet never sets gradient_checkpointing",
}


# Pipelines whose probe is not their own step at the same latent and time, and why
ANOTHER_DRAW: dict[str, str] = {
    "LTX2*": "a probe asks for the video alone, as there is no sound of a given noise level, and its step has both see each other",
    "IF*SuperResolution*": "the small image that it enlarges gets noise, which a probe draws anew",
    "StableDiffusionUpscalePipeline": "the small image that it enlarges gets noise, which a probe draws anew",
    "StableVideoDiffusionPipeline": "the image that it starts from gets noise, which a probe draws anew",
    "Cosmos2_5_*": "the frames that are given move from the first latent, which is the probe's own in a probe; they have no gradient",
}


def probe_differs(pipeline: str) -> str | None:
    """Why a probe of a class is not its own step, or None."""
    return next((why for pattern, why in ANOTHER_DRAW.items() if fnmatch.fnmatchcase(pipeline, pattern)), None)


def without_twin(pipeline: str) -> str | None:
    """Why there is no twin of a class, or None."""
    return next((why for pattern, why in NO_TWIN.items() if fnmatch.fnmatchcase(pipeline, pattern)), None)


def reason(pipeline: str) -> str | None:
    """Why pipelines of a class are no policies, or None."""
    return next((why for pattern, why in UNFIT.items() if fnmatch.fnmatchcase(pipeline, pattern)), None)
