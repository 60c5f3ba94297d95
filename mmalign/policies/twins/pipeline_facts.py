"""Facts about single pipelines, for ``twins``: what their components and their calls need beyond the rules. Data alone."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from mmalign.policies.twins.facts import CHANNELS, DYNAMIC, WAN, XL, W

# fmt: off
# ruff: noqa: E501
LEAVE = object()  # a call argument that a rule would give, and that this pipeline is better without

KANDINSKY: dict[str, Any] = {
    "out_channels": 8, "encoder_hid_dim": W, "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image",
}
ADAPTED = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}

# Pipelines (patterns of names, later ones win) -> component -> fields; "class" names another class; None leaves the component out
COMPONENTS: dict[str, dict[str, Any]] = {
    "StableDiffusionXL*": {"unet": XL, "scheduler": {"class": "EulerDiscreteScheduler"}, "controlnet": XL},
    "StableDiffusion3*": {"text_encoder": {"class": "CLIPTextModelWithProjection"}, "image_encoder": None},
    "Flux*": {"scheduler": DYNAMIC},
    "FluxFillPipeline": {"transformer": {"in_channels": 16 + 16 + 4 * 4, "out_channels": 16}},
    "FluxControl*Pipeline": {"transformer": {"in_channels": 32, "out_channels": 16}},
    "FluxControlNet*Pipeline": {"transformer": {"in_channels": 16, "out_channels": 16}},
    "QwenImage*": {"scheduler": {**DYNAMIC, "base_shift": 0.5, "max_shift": 0.9}},
    "HunyuanSkyreelsImageToVideoPipeline": {"transformer": {"in_channels": 8}},
    "HunyuanDiT*": {
        "transformer": {"num_layers": 2, "sample_size": 4}, "controlnet": {"sample_size": 4},
        "vae": {"block_out_channels": CHANNELS, "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4},
    },
    "PixArt*": {"transformer": {"num_layers": 2}},
    "WanPipeline": {"transformer": WAN, "transformer_2": WAN, "boundary_ratio": 0.7},
    "WanImageToVideoPipeline": {"transformer": {"in_channels": 36, "out_channels": 16}, "boundary_ratio": None},
    "WanVACEPipeline": {"transformer": {"in_channels": 16}},
    "CogVideoXImageToVideoPipeline": {"transformer": {"in_channels": 8}},
    "CogVideoXFunControlPipeline": {"transformer": {"in_channels": 8}},
    "Kolors*": {"unet": XL},
    "AnimateDiffSDXL*": {"unet": XL},
    "StableDiffusion3*Inpaint*": {"transformer": {"in_channels": 16, "out_channels": 16}, "controlnet": {"in_channels": 16, "extra_conditioning_channels": 1}, "vae": {"latent_channels": 16}},
    "LDMTextToImagePipeline": {"vqvae": {"class": "AutoencoderKL"}, "unet": {"class": "UNet2DConditionModel"}},
    "StableDiffusion3PAG*": {"transformer": {"num_layers": 2}},
    "StableDiffusionInstructPix2PixPipeline": {"unet": {"in_channels": 8}},
    "StableDiffusionXLInstructPix2PixPipeline": {"unet": {**XL, "in_channels": 8}},
    "StableDiffusionUpscalePipeline": {"unet": {"in_channels": 7, "num_class_embeds": 1000}},
    "StableDiffusionInpaintPipelineLegacy": {"safety_checker": None, "feature_extractor": None},
    "SanaImageToVideoPipeline": {"vae": {"class": "AutoencoderKLWan"}},
    "SanaVideoPipeline": {"vae": {"class": "AutoencoderKLWan"}},
    "HunyuanVideo*": {"scheduler": {"shift": 7.0}},
    "SkyReelsV2ImageToVideoPipeline": {
        "transformer": {"in_channels": 36, "image_dim": W, "added_kv_proj_dim": W}, "image_encoder": {"class": "CLIPVisionModelWithProjection"},
        "image_processor": {"class": "CLIPImageProcessor"},
    },
    "AudioLDM2Pipeline": {
        "vae": {"in_channels": 1, "out_channels": 1}, "unet": {"cross_attention_dim": ([None, W, W], [None, W, W]), "block_out_channels": (8, 16), "layers_per_block": 2},
        "projection_model": {"text_encoder_dim": W, "text_encoder_1_dim": W, "langauge_model_dim": W}, "text_encoder_2": {"class": "T5EncoderModel"},
    },
    "HunyuanVideoImageToVideoPipeline": {"transformer": {"in_channels": 9, "patch_size": 1, "guidance_embeds": False, "image_condition_type": "latent_concat"}},
    "AudioLDMPipeline": {
        "vae": {"in_channels": 1, "out_channels": 1},
        "unet": {"cross_attention_dim": (8, 16), "class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": W, "class_embeddings_concat": True}
    },
    "Cosmos*": {"safety_checker": {"class": "Unchecked"}},
    "CosmosTextToWorldPipeline": {"safety_checker": {"class": "Unchecked"}, "transformer": {"in_channels": 4, "out_channels": 4}},
    "CosmosVideoToWorldPipeline": {"safety_checker": {"class": "Unchecked"}, "transformer": {"in_channels": 5, "out_channels": 4}},
    "Cosmos2T*": {"safety_checker": {"class": "Unchecked"}, "scheduler": {"use_karras_sigmas": True}},
    "Cosmos2VideoToWorldPipeline": {"scheduler": {"use_karras_sigmas": True}, "safety_checker": {"class": "Unchecked"}, "transformer": {"in_channels": 17}},
    "Cosmos2_5_*": {"safety_checker": {"class": "Unchecked"}, "transformer": {"in_channels": 17, "text_embed_dim": 2 * W}},
    "AceStep*": {"scheduler": {"num_train_timesteps": 1, "shift": 1.0}, "vae": {"decoder_input_channels": 8}},
    "CogView4ControlPipeline": {"transformer": {"in_channels": 8}},
    "StableCascadePriorPipeline": {"prior": {"clip_text_in_channels": W, "clip_text_pooled_in_channels": W}},
    "LucyEditPipeline": {"transformer": {"in_channels": 32, "out_channels": 16}},
    "Cosmos3OmniPipeline": {"transformer": {"latent_channel": 16, "patch_latent_dim": 64}},
    "LatentConsistencyModel*": {"unet": {"time_cond_proj_dim": 8}, "scheduler": {"class": "LCMScheduler"}},
    "KandinskyV22*": {"unet": KANDINSKY},
    "KandinskyV22InpaintPipeline": {"unet": {**KANDINSKY, "in_channels": 9}},
    "KandinskyV22Controlnet*": {"unet": {**KANDINSKY, "in_channels": 8, "addition_embed_type": "image_hint"}},
    "KandinskyPipeline": {"unet": {**KANDINSKY, "encoder_hid_dim_type": "text_image_proj", "addition_embed_type": "text_image"}},
    "KandinskyImg2ImgPipeline": {"unet": {**KANDINSKY, "encoder_hid_dim_type": "text_image_proj", "addition_embed_type": "text_image"}},
    "KandinskyInpaintPipeline": {"unet": {**KANDINSKY, "in_channels": 9, "encoder_hid_dim_type": "text_image_proj", "addition_embed_type": "text_image"}},
    "PIAPipeline": {"unet": {"in_channels": 9}},
    "PaintByExamplePipeline": {"unet": {"in_channels": 9}},
    "StableDiffusionAdapterPipeline": {"unet": ADAPTED},
    "StableDiffusionXLAdapterPipeline": {"unet": {**XL, **ADAPTED, "attention_head_dim": (4, 2)}},
    "StableDiffusionDepth2ImgPipeline": {"unet": {"in_channels": 5}},
    "StableDiffusionLatentUpscalePipeline": {"unet": {"in_channels": 8, "time_cond_proj_dim": 160}},
    "StableDiffusionGLIGENPipeline": {"unet": {"attention_type": "gated"}},
    "StableDiffusionGLIGENTextImagePipeline": {"unet": {"attention_type": "gated-text-image"}},
    "StableDiffusionXLControlNetXSPipeline": {"controlnet": {"num_attention_heads": 2, "cross_attention_dim": 2 * W, "transformer_layers_per_block": (1, 1)}},
    "QwenImageControlNetInpaintPipeline": {"controlnet": {"extra_condition_channels": 4}},
    "LongCatImage*": {"vae": {"latent_channels": 16}},
    "BriaFiboPipeline": {"text_encoder": {"vocab_size": 128_256}},
    "BriaFiboEditPipeline": {"text_encoder": {"vocab_size": 128_256}},
    "Ideogram4Pipeline": {"text_encoder": {"class": "Qwen3VLModel"}},
    "Krea2Pipeline": {"transformer": {"in_channels": 64}, "text_encoder_select_layers": (1, 2)},
    "MusicLDMPipeline": {"text_encoder": {"class": "ClapModel"}, "vae": {"in_channels": 1, "out_channels": 1}, "unet": {"cross_attention_dim": (8, 16), "class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": W, "class_embeddings_concat": True}},
    "SanaSprint*": {"scheduler": {"class": "SCMScheduler"}, "transformer": {"guidance_embeds": True}},
    "IF*": {"unet": {"in_channels": 3, "out_channels": 6, "encoder_hid_dim": W}, "scheduler": {"class": "DDPMScheduler", "variance_type": "learned_range"}},
    "IF*SuperResolutionPipeline": {"unet": {"in_channels": 6, "out_channels": 6, "encoder_hid_dim": W, "class_embed_type": "timestep"}},
    "Marigold*": {"unet": {"in_channels": 8}},
    "StableVideoDiffusionPipeline": {"unet": {"in_channels": 8, "out_channels": 4}, "vae": {"block_out_channels": (32, 32)}, "image_encoder": {"image_size": 224}},
    "LDMPipeline": {"unet": {"in_channels": 4, "out_channels": 4}},
    "TextToVideoZeroSDXLPipeline": {"unet": XL},
}


# Prompts, for pipelines that do not take any words
PROMPTS = {
    "DiTPipeline": ("3", "2"),
    "BriaFiboEditPipeline": ('{"edit_instruction": "make it red"}', '{"edit_instruction": "make it blue"}'),
}


def components(pipeline: str) -> dict[str, Any]:
    """Named facts of a pipeline's components."""
    return _matching(COMPONENTS, pipeline)


def _matching(table: Mapping[str, Mapping[str, Any]], pipeline: str) -> dict[str, Any]:
    """The facts of all patterns that a name matches, the later ones over the earlier."""
    return {key: value for pattern, facts in table.items() if fnmatch.fnmatchcase(pipeline, pattern) for key, value in facts.items()}


# Calls
CALL: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 48, "strength": 0.7, "audio_end_in_s": 0.5, "audio_length_in_s": 0.5, "video_length": 5, "text_encoder_out_layers": (0, 1, 2), "use_resolution_binning": False,
    "crf": 0, "intermediate_timesteps": None,
}
WANTED = {"conditioning_frames", "control_mask", "image", "mask_image", "control_image", "video", "control_video"}
CALLS: dict[str, dict[str, Any]] = {
    "AllegroPipeline": {"num_frames": 8},
    "EasyAnimate*": {"negative_prompt": ""},
    "AnyFlowFAR*": {"video": LEAVE},
    "Cosmos*": {"video": LEAVE},
    "ZImageOmniPipeline": {"image": LEAVE},
    "*ControlNetUnion*": {"control_mode": [0]},
    "AudioLDM2Pipeline": {"max_new_tokens": 8, "audio_length_in_s": 0.032, "transcription": "a"},
    "AudioLDMPipeline": {"audio_length_in_s": 0.032},
    "HunyuanVideoImageToVideoPipeline": {
        "num_frames": 9, "max_sequence_length": 64,
        "prompt_template": {"template": "{}", "crop_start": 0, "image_emb_len": 16, "image_emb_start": 5, "image_emb_end": 21},
    },
    "AceStep*": {"audio_duration": 0.4, "max_text_length": 32, "lyrics": "la"},
    "LTX2*": {"spatio_temporal_guidance_blocks": None, "stg_scale": 0.0, "audio_stg_scale": 0.0, "use_cross_timestep": False, "frame_rate": 25.0},
    "Flux2*": {"image": LEAVE},
    "QwenImage21Pipeline": {"image": LEAVE, "use_kv_cache": False},  # an image is brought to a megapixel; a replay skips the step that fills the cache
    "Flux2KleinInpaintPipeline": {"image": "@image"},
    "HunyuanVideo15Pipeline": {"image": LEAVE},
    "AnyFlowFARPipeline": {"video": LEAVE, "chunk_partition": [1, 1]},
    "Ideogram4Pipeline": {"guidance_schedule": None, "guidance_scale": 4.0},
    "HeliosPipeline": {"image": LEAVE, "video": LEAVE},
    "Marigold*": {"processing_resolution": 32},
    "LTX2ImageToVideoPipeline": {"image_crf": 0},
    "NucleusMoEImagePipeline": {"return_index": -1},
    "EasyAnimateInpaintPipeline": {"negative_prompt": "", "video": "@video_tensor", "mask_video": "@mask_tensor"},
    "StableDiffusionDepth2ImgPipeline": {"depth_map": "@plane"},
    "StableDiffusionGLIGEN*": {"gligen_phrases": ["a"], "gligen_boxes": [[0.1, 0.1, 0.5, 0.5]]},
    "Kandinsky6TI2VAPipeline": {"sample_audio": False, "image": LEAVE},
    "KandinskyV22Controlnet*": {"hint": "@hint_large"},
    "StableAudio3AudioToAudioPipeline": {"audio": "@audio"},
    "StableAudio3InpaintPipeline": {"audio": "@audio"},
    "IF*SuperResolutionPipeline": {"original_image": "@image"},
    "VisualCloze*": {"task_prompt": "a", "content_prompt": "b"},
    "FluxKontext*": {"max_area": 32 * 32, "_auto_resize": False},
}


def calls(pipeline: str) -> dict[str, Any]:
    """Named facts of a pipeline's call."""
    return _matching(CALLS, pipeline)
