"""Facts about sizes that fit together, for ``twins``: data alone.

Dimensions were read off the signatures of diffusers' and transformers' classes and off diffusers' own tests of its pipelines.
"""

from __future__ import annotations

from typing import Any

# fmt: off
# ruff: noqa: E501
W = 32

# Fields of diffusers models -> value
FIELDS: dict[str, Any] = {
    **dict.fromkeys((
        "num_layers", "num_single_layers", "num_refiner_layers", "n_layers", "n_refiner_layers", "depth", "num_mmdit_layers", "num_single_dit_layers",
        "mmdit_layers", "transformer_num_layers", "num_text_blocks", "num_visual_blocks", "num_hidden_layers", "num_res_blocks", "approximator_layers",
        "num_layerwise_text_blocks", "num_refiner_text_blocks", "dit_depth", "video_connector_num_layers", "audio_connector_num_layers",
        "num_blocks_per_stage", "motion_layers_per_block", "motion_mid_block_layers_per_block", "num_lyric_encoder_hidden_layers",
        "num_timbre_encoder_hidden_layers", "nlayers",
    ), 1),
    **dict.fromkeys((
        "num_attention_heads", "num_heads", "n_heads", "n_kv_heads", "num_kv_heads", "num_key_value_heads", "num_key_value_attention_heads",
        "num_cross_attention_heads", "dit_heads", "text_num_attention_heads", "text_num_key_value_heads", "video_connector_num_attention_heads",
        "audio_connector_num_attention_heads", "audio_num_attention_heads", "motion_num_attention_heads", "nhead", "nheads",
    ), 2),
    **dict.fromkeys((
        "attention_head_dim", "cross_attention_head_dim", "linear_head_dim", "head_dim", "video_connector_attention_head_dim",
        "audio_connector_attention_head_dim", "audio_attention_head_dim",
    ), 16),
    **dict.fromkeys((
        "joint_attention_dim", "caption_projection_dim", "pooled_projection_dim", "text_dim", "text_embed_dim", "caption_channels", "cap_feat_dim",
        "context_in_dim", "cross_attention_dim", "in_text_dim", "in_text_dim2", "hidden_size", "dim", "model_dim", "embed_dim", "text_hidden_dim",
        "text_emb_dim", "text_in_dim", "text_encoder_dim", "dit_dim", "dit_text_dim", "embedding_dim", "cross_attention_dim_t5", "encoder_hidden_size",
        "cond_token_dim", "global_cond_dim", "cross_attention_input_dim", "audio_cross_attention_dim", "cond_embed_dim", "condition_dim", "llm_features_dim",
        "encoder_hidden_states_channels", "crossattn_proj_in_channels", "text_embed_2_dim", "video_hidden_dim", "audio_hidden_dim", "output_dim",
        "fourier_dim", "img_context_dim_out", "model_channels", "conditioning_dim", "clip_text_in_channels", "clip_text_pooled_in_channels", "adaln_dim",
        "approximator_hidden_dim", "c", "c_cond", "cond_dim", "redux_dim", "txt_in_features",
    ), W),
    **dict.fromkeys((
        "ffn_dim", "ff_dim", "intermediate_size", "ffn_hidden_size", "freq_dim", "time_dim", "time_embed_dim", "timestep_embed_dim",
        "timestep_guidance_channels", "text_intermediate_size", "moe_intermediate_dim", "time_embedding_dim", "adaln_lora_dim", "timestep_features_dim",
        "time_proj_dim", "time_step_dim", "approximator_num_channels", "timestep_ratio_embedding_dim",
    ), W),
    "axes_dims_rope": "axes", "axes_dims": "axes", "rope_axes_dim": "axes", "axes_dim_rope": "axes", "rope_dim_list": "axes", "axes_dim": "axes",
    "mrope_section": (4, 2, 2), "rope_dim": "axes",
    "norm_num_groups": 4, "groups": 4, "layers_per_block": 1, "motion_norm_num_groups": 4, "max_norm_num_groups": 4,
    "sample_size": 16, "sample_width": 4, "sample_height": 4, "sample_frames": 5, "pos_embed_max_size": 32, "rope_max_seq_len": 64,
    "video_connector_num_learnable_registers": 4, "audio_connector_num_learnable_registers": 4, "multiple_of": 16, "num_memory_tokens": 2,
    "num_experts": 4, "max_sequence_length": 48, "block_num_heads": 1, "num_learnable_tokens": 4, "num_res_layers": 1,
}
AXES = {2: (8, 8), 3: (4, 6, 6), 4: (4, 4, 4, 4)}


def shrunk(field: str, default: Any) -> Any:
    """The small value of a config field, of the kind of its default: what is switched off stays off, and lists keep their length."""
    value = FIELDS[field]
    if default is None and field not in ALSO_NONE:
        return None
    if value == "axes":
        return AXES[len(default)]
    if isinstance(default, (tuple, list)):
        return type(default)(value for _ in default)
    return value


ALSO_NONE = {"sample_size", "caption_channels"}

# What rules do not know of a model class
UNET: dict[str, Any] = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "sample_size": 16, "cross_attention_dim": W, "attention_head_dim": 2, "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
XL: dict[str, Any] = {
    "cross_attention_dim": 2 * W, "attention_head_dim": (2, 4), "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 1), "projection_class_embeddings_input_dim": 6 * 8 + W,
}
CHANNELS = (8, 8, 8, 8)
PACKED = {"in_channels": 16}  # 2 x 2 latents of 4 channels
WAN = {"in_channels": 16, "out_channels": 16}
WAN_VAE = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}

MODELS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4,
        "shift_factor": 0.06, "sample_size": 32,
    },
    "AutoencoderKLFlux2": {
        "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4,
        "sample_size": 32,
    },
    "AutoencoderTiny": {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "num_encoder_blocks": (1, 2), "num_decoder_blocks": (2, 1)},
    "AutoencoderKLTemporalDecoder": {"block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2},
    "AutoencoderKLWan": WAN_VAE,
    "AutoencoderKLQwenImage": WAN_VAE,
    "AutoencoderKLHunyuanVideo": {"block_out_channels": CHANNELS, "latent_channels": 4},
    "AutoencoderKLHunyuanVideo15": {"block_out_channels": (32,) * 5, "latent_channels": 4, "spatial_compression_ratio": 16},
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (32,) * 4, "layers_per_block": 1, "spatial_compression_ratio": 8,
        "sample_size": 32, "scaling_factor": 0.5,
    },
    "AutoencoderKLLTXVideo": {
        "latent_channels": 8, "block_out_channels": CHANNELS, "decoder_block_out_channels": CHANNELS, "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 5, "spatio_temporal_scaling": (True, True, False, False), "decoder_spatio_temporal_scaling": (True, True, False, False),
        "patch_size": 1,
    },
    "AutoencoderKLCogVideoX": {"block_out_channels": CHANNELS, "latent_channels": 4, "norm_num_groups": 2, "sample_height": 32, "sample_width": 32},
    "AutoencoderKLMochi": {
        "latent_channels": 12, "encoder_block_out_channels": (32, 32, 32, 32), "decoder_block_out_channels": (32, 32, 32, 32), "layers_per_block": (1,) * 5,
    },
    "AutoencoderKLAllegro": {"block_out_channels": CHANNELS, "latent_channels": 4, "norm_num_groups": 2},
    "AutoencoderKLCosmos": {
        "latent_channels": 4, "encoder_block_out_channels": (8, 8, 8, 8), "decode_block_out_channels": (8, 8, 8, 8), "attention_resolutions": (8,),
        "resolution": 64, "num_layers": 1, "patch_size": 4, "spatial_compression_ratio": 4, "temporal_compression_ratio": 4,
    },
    "AutoencoderKLMagvit": {
        "block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "norm_num_groups": 2, "layers_per_block": 1,
    },
    "AutoencoderDC": {
        "latent_channels": 4, "attention_head_dim": 2, "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "EfficientViTBlock"), "encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8),
        "encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,)), "encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1),
        "downsample_block_type": "conv", "upsample_block_type": "interpolate", "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu",
        "scaling_factor": 0.4,
    },
    "AutoencoderOobleck": {
        "encoder_hidden_size": 6, "downsampling_ratios": [1, 2], "channel_multiples": [2, 4], "decoder_channels": 3, "decoder_input_channels": 3,
        "sampling_rate": 4,
    },
    "VQModel": {"block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4},
    "UNet2DConditionModel": UNET,
    "UNetFlatConditionModel": UNET,
    "AudioLDM2UNet2DConditionModel": UNET,
    "ControlNetModel": {key: UNET[key] for key in UNET if key != "up_block_types"} | {"conditioning_embedding_out_channels": (4, 8)},
    "ControlNetUnionModel": {key: UNET[key] for key in UNET if key != "up_block_types"} | {"conditioning_embedding_out_channels": (4, 8), "num_trans_channel": 8, "num_proj_channel": 8, "num_trans_head": 2},
    "SparseControlNetModel": {
        "block_out_channels": (8, 16), "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"), "attention_head_dim": 2,
        "conditioning_embedding_out_channels": (4, 8), "cross_attention_dim": W,
    },
    "MotionAdapter": {"block_out_channels": (8, 16)},
    "T2IAdapter": {"channels": [8, 16], "num_res_blocks": 2, "downscale_factor": 2},
    "UNet3DConditionModel": {
        "block_out_channels": (8, 16), "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "attention_head_dim": 4,
    },
    "I2VGenXLUNet": {
        "block_out_channels": (8, 16), "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "attention_head_dim": 2, "num_attention_heads": None, "norm_num_groups": 2,
    },
    "UNetSpatioTemporalConditionModel": {
        "block_out_channels": (32, 64), "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), "num_attention_heads": (2, 4), "cross_attention_dim": W,
        "projection_class_embeddings_input_dim": 96, "addition_time_embed_dim": 32,
    },
    "UNet2DModel": {
        "block_out_channels": (8, 16), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4, "sample_size": 16,
    },
    "Kandinsky3UNet": {"block_out_channels": (32, 64), "groups": 4, "layers_per_block": 3, "cross_attention_dim": W, "encoder_hid_dim": W, "attention_head_dim": 4, "time_embedding_dim": 4},
    "SD3Transformer2DModel": {"in_channels": 4, "out_channels": 4, "pooled_projection_dim": 2 * W},
    "SD3ControlNetModel": {"in_channels": 4, "out_channels": 4, "pooled_projection_dim": 2 * W},
    "FluxTransformer2DModel": {**PACKED, "guidance_embeds": True},
    "FluxControlNetModel": {**PACKED, "guidance_embeds": True},
    "ChromaTransformer2DModel": PACKED,
    "BriaTransformer2DModel": {**PACKED, "in_channels": 16},
    "OvisImageTransformer2DModel": {"in_channels": 16, "out_channels": 16},
    "LongCatImageTransformer2DModel": {"in_channels": 64},
    "BriaFiboTransformer2DModel": {"in_channels": 16, "text_encoder_dim": W, "joint_attention_dim": 2 * W, "num_layers": 2, "num_single_layers": 2},
    "Flux2Transformer2DModel": {**PACKED, "joint_attention_dim": 3 * W},
    "QwenImageTransformer2DModel": {"in_channels": 64, "out_channels": 16},
    "QwenImageControlNetModel": {"in_channels": 64, "out_channels": 16},
    "HunyuanImageTransformer2DModel": {"in_channels": 4, "out_channels": 4, "rope_axes_dim": (8, 8), "text_embed_2_dim": W},
    "HunyuanVideoTransformer3DModel": {"in_channels": 4, "out_channels": 4},
    "HunyuanVideoFramepackTransformer3DModel": {"in_channels": 4, "out_channels": 4, "has_image_proj": True, "image_proj_dim": W, "has_clean_x_embedder": True},
    "HunyuanVideo15Transformer3DModel": {"in_channels": 9, "out_channels": 4, "image_embed_dim": W, "task_type": "t2v"},
    "HunyuanDiT2DModel": {"in_channels": 4, "patch_size": 2, "hidden_size": W, "pooled_projection_dim": W, "text_len": 77, "text_len_t5": 256},
    "HunyuanDiT2DControlNetModel": {"in_channels": 4, "patch_size": 2, "hidden_size": W, "pooled_projection_dim": W, "transformer_num_layers": 2},
    "ZImageTransformer2DModel": {"in_channels": 4, "n_layers": 2, "axes_dims": [4, 6, 6], "axes_lens": [256, 64, 64]},
    "ZImageControlNetModel": {"control_in_dim": 4, "control_layers_places": [0], "control_refiner_layers_places": [0], "add_control_noise_refiner": "control_noise_refiner"},
    "SanaTransformer2DModel": {"in_channels": 4, "out_channels": 4, "sample_size": 16},
    "SanaControlNetModel": {"in_channels": 4, "out_channels": 4, "sample_size": 16},
    "SanaVideoTransformer3DModel": {"in_channels": 16, "out_channels": 16, "cross_attention_dim": W, "num_cross_attention_heads": 2, "cross_attention_head_dim": 16},
    "WanTransformer3DModel": WAN,
    "WanVACETransformer3DModel": {**WAN, "vace_layers": [0], "vace_in_channels": 96, "num_layers": 2},
    "SkyReelsV2Transformer3DModel": WAN,
    "ChronoEditTransformer3DModel": {"in_channels": 36, "out_channels": 16, "image_dim": W},
    "WanAnimateTransformer3DModel": {
        "in_channels": 36, "out_channels": 16, "latent_channels": 16, "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16}, "motion_encoder_size": 16,
        "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 16, "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2, "inject_face_latents_blocks": 2,
        "image_dim": W, "num_layers": 2,
    },
    "LTXVideoTransformer3DModel": {"in_channels": 8, "out_channels": 8, "cross_attention_dim": W},
    "CogVideoXTransformer3DModel": {"in_channels": 4, "out_channels": 4, "max_text_seq_length": 48},
    "CogView3PlusTransformer2DModel": {"in_channels": 4, "out_channels": 4, "condition_dim": 8},
    "CogView4Transformer2DModel": {"in_channels": 4, "out_channels": 4, "condition_dim": 8, "rope_axes_dim": (8, 8)},
    "MochiTransformer3DModel": {"in_channels": 12},
    "AllegroTransformer3DModel": {"sample_width": 8, "sample_height": 8, "attention_head_dim": 12, "cross_attention_dim": 24, "sample_frames": 8},
    "LatteTransformer3DModel": {
        "in_channels": 4, "out_channels": 8, "patch_size": 2, "cross_attention_dim": W, "attention_bias": True, "sample_size": 8, "norm_type": "ada_norm_single",
        "num_embeds_ada_norm": 1000, "norm_elementwise_affine": False, "activation_fn": "gelu-approximate", "video_length": 1, "attention_head_dim": 16,
    },
    "PixArtTransformer2DModel": {"caption_channels": W, "sample_size": 16},
    "AuraFlowTransformer2DModel": {"sample_size": 16},
    "Lumina2Transformer2DModel": {"in_channels": 4, "axes_lens": (300, 64, 64)},
    "LuminaNextDiT2DModel": {"num_kv_heads": 2},
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2, "in_channels": 4, "out_channels": 4, "axes_dims_rope": (8, 4, 4), "caption_channels": (W, W), "text_emb_dim": 2 * W,
        "llama_layers": [0, 1], "max_resolution": (32, 32),
    },
    "OmniGenTransformer2DModel": {"vocab_size": 200, "pad_token_id": 0, "max_position_embeddings": 4096, "rope_scaling": {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8}, "pos_embed_max_size": 16},
    "CosmosTransformer3DModel": {"in_channels": 16, "out_channels": 16, "max_size": (4, 32, 32), "adaln_lora_dim": 4, "extra_pos_embed_type": None},
    "Kandinsky5Transformer3DModel": {"in_visual_dim": 4, "out_visual_dim": 4},
    "DiTTransformer2DModel": {"out_channels": 8, "num_embeds_ada_norm": 1000},
    "PRXTransformer2DModel": {"in_channels": 4, "axes_dim": [8, 8]},
    "StableAudioDiTModel": {"in_channels": 3, "out_channels": 3, "sample_size": 4, "global_states_input_dim": 2 * W},
    "StableAudioProjectionModel": {"text_encoder_dim": W, "conditioning_dim": W, "min_value": 0, "max_value": 32},
    "EasyAnimateTransformer3DModel": {"in_channels": 4, "out_channels": 4, "patch_size": 2, "sample_width": 16, "sample_height": 16},
    "ErnieImageTransformer2DModel": {"in_channels": 16, "out_channels": 16},
    "Krea2Transformer2DModel": {"in_channels": 16, "num_text_layers": 2},
    "PriorTransformer": {"num_embeddings": 77, "embedding_dim": W},
    "StableUnCLIPImageNormalizer": {"embedding_dim": W},
    "JoyImageEditTransformer3DModel": WAN,
    "AutoencoderKLLTX2Video": {
        "latent_channels": 4, "block_out_channels": (8,), "decoder_block_out_channels": (8,), "layers_per_block": (1,), "decoder_layers_per_block": (1, 1),
        "spatio_temporal_scaling": (True,), "decoder_spatio_temporal_scaling": (True,), "decoder_inject_noise": (False, False), "downsample_type": ("spatiotemporal",),
        "upsample_residual": (False,), "upsample_factor": (1,), "patch_size": 1, "decoder_causal": False, "down_block_types": ("LTX2VideoDownBlock3D",),
        "upsample_type": ("spatiotemporal",),
    },
    "AutoencoderKLLTX2Audio": {"base_channels": 4, "ch_mult": (1,), "num_res_blocks": 1, "resolution": 32, "latent_channels": 2, "mel_bins": 8},
    "LTX2VideoTransformer3DModel": {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "audio_in_channels": 4,
        "audio_out_channels": 4, "audio_num_attention_heads": 2, "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16, "rope_double_precision": False,
        "rope_type": "split", "num_layers": 2,
    },
    "LTX2TextConnectors": {
        "text_proj_in_factor": 3, "video_connector_num_attention_heads": 4, "video_connector_attention_head_dim": 8, "audio_connector_num_attention_heads": 4,
        "audio_connector_attention_head_dim": 8, "video_connector_num_learnable_registers": None, "audio_connector_num_learnable_registers": None,
        "connector_rope_base_seq_len": 32, "rope_double_precision": False, "rope_type": "split",
    },
    "LTX2Vocoder": {
        "in_channels": 16, "hidden_channels": 32, "out_channels": 2, "upsample_kernel_sizes": [4, 4], "upsample_factors": [2, 2], "resnet_kernel_sizes": [3],
        "resnet_dilations": [[1, 3, 5]], "leaky_relu_negative_slope": 0.1, "output_sampling_rate": 16000,
    },
    "StableCascadeUNet": {
        "conditioning_dim": W, "block_out_channels": (W, W), "num_attention_heads": (2, 2), "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1),
        "clip_image_in_channels": W, "in_channels": 16, "out_channels": 16, "dropout": (0.0, 0.0),
    },
    "PaellaVQModel": {"levels": 2, "bottleneck_blocks": 1, "embed_dim": 8},
    "AceStepTransformer1DModel": {"in_channels": 24, "audio_acoustic_hidden_dim": 8, "num_hidden_layers": 2, "sliding_window": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    "AceStepConditionEncoder": {
        "timbre_hidden_dim": 8, "num_lyric_encoder_hidden_layers": 2, "num_timbre_encoder_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "sliding_window": 16,
    },
    "AnyFlowTransformer3DModel": WAN,
    "ControlNetXSAdapter": {
        "conditioning_embedding_out_channels": (4, 8), "num_attention_heads": 2, "block_out_channels": (4, 8), "base_block_out_channels": (8, 16),
        "cross_attention_dim": W, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "max_norm_num_groups": 4,
    },
}


def models(name: str) -> dict[str, Any]:
    """Named facts of a model class."""
    return MODELS.get(name, {})


# Components that a twin does without where they are optional
EXTRAS = {"safety_checker", "feature_extractor", "image_encoder", "image_processor", "watermarker", "prompt_enhancer_head", "audio_tokenizer"}

TILED = {"AutoencoderKLAllegro"}  # decode in tiles alone

# Classes that stand for what an annotation leaves open
STANDS_FOR = {
    "KarrasDiffusionSchedulers": "DDIMScheduler", "PreTrainedModel": "Qwen3Model", "Gemma2PreTrainedModel": "Gemma2Model", "GemmaPreTrainedModel": "GemmaModel",
    "SchedulerMixin": "DDIMScheduler",
}
SD_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": SD_SCHEDULE, "PNDMScheduler": SD_SCHEDULE, "EulerDiscreteScheduler": SD_SCHEDULE | {"timestep_spacing": "leading"},
    "FlowMatchEulerDiscreteScheduler": {"shift": 3.0},
    "DPMSolverMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    "UniPCMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    "CogVideoXDDIMScheduler": {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "EDMEulerScheduler": {"sigma_min": 0.002, "sigma_max": 80, "sigma_data": 0.5, "sigma_schedule": "karras", "num_train_timesteps": 1000, "prediction_type": "epsilon", "rho": 7.0, "final_sigmas_type": "sigma_min"},
    "EDMDPMSolverMultistepScheduler": {"sigma_min": 0.3, "sigma_max": 500, "sigma_data": 1.0, "sigma_schedule": "exponential", "prediction_type": "v_prediction"},
    "CosineDPMSolverMultistepScheduler": {"solver_order": 2, "prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_schedule": "exponential"},
}
DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0}

# Encoders: fields of transformers configs, at any depth
ENCODER_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "projection_dim", "out_hidden_size", "n_embd", "encoder_hidden_size"), W),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "depth", "num_decoder_layers", "n_layer"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head"), 4),
    **dict.fromkeys(("num_key_value_heads",), 2),
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    "vocab_size": 200, "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "image_size": 32, "patch_size": 8,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 200, "dropout_rate": 0.0, "query_pre_attn_scalar": 8, "sliding_window": 512,
}
CLIP_TEXT = {"max_position_embeddings": 77, "vocab_size": 200}
# Encoders whose config is another one than their class says
CONFIGS = {"T5GemmaEncoder": "T5GemmaModuleConfig", "T5Gemma2Encoder": "T5Gemma2EncoderConfig", "PaintByExampleImageEncoder": "CLIPVisionConfig"}
IDS = {"image_token_id": 108, "video_token_id": 109, "vision_start_token_id": 106, "vision_end_token_id": 107}
ENCODERS: dict[str, dict[str, Any]] = {
    "CLIPTextConfig": CLIP_TEXT,
    "RobertaSeriesConfig": {"project_dim": W},
    "MCLIPConfig": {"transformerDimSize": W, "imageDimSize": W},
    "T5GemmaModuleConfig": {"dropout_rate": 0.0},
    "T5Gemma2TextConfig": {"dropout_rate": 0.0},
    "T5GemmaConfig": {"is_encoder_decoder": False},
    "DPTConfig": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "out_indices": None, "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8, "is_hybrid": False},
    "GPT2Config": {"n_ctx": 99, "n_positions": 99},
    "LlavaConfig": {"image_token_index": 112, "pad_token_id": 0},
    "ClapAudioConfig": {
        "num_attention_heads": [2, 2], "depths": [2, 2], "spec_size": 64, "window_size": 4, "hidden_size": 192, "patch_size": 2, "patch_stride": 2,
        "patch_embed_input_channels": 4, "num_mel_bins": 64,
    },
    "SpeechT5HifiGanConfig": {
        "model_in_dim": 8, "sampling_rate": 16000, "upsample_initial_channel": 16, "upsample_rates": [2, 2], "upsample_kernel_sizes": [4, 4],
        "resblock_kernel_sizes": [3, 7], "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]], "normalize_before": False,
    },
    "Qwen2_5_VLTextConfig": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}},
    "Qwen2_5_VLVisionConfig": {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [0], "num_heads": 2},
    "Qwen2_5_VLConfig": IDS,
    "Qwen2VLConfig": IDS,
    "Qwen3VLConfig": IDS,
    "Qwen2VLTextConfig": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}},
    "Qwen2VLVisionConfig": {"patch_size": 14, "num_heads": 2, "embed_dim": W},
    "Qwen3VLTextConfig": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}},
    "Qwen3VLVisionConfig": {"patch_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 16, "num_heads": 2},
}
SPECIAL_TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<start_of_turn>", "<end_of_turn>", "<image>",
    "<|endoftext|>", "[IMG]", "<image_soft_token>", "<boi>", "<eoi>",
)
TOKEN_NAMES = {"<|image_pad|>": "image_token", "<|video_pad|>": "video_token", "<|vision_start|>": "vision_start_token", "<|vision_end|>": "vision_end_token"}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROCESSORS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_convert_rgb": False},
    "CLIPProcessor": {"image_processor": "@CLIPImageProcessor", "tokenizer": None},
    "ClapFeatureExtractor": {"hop_length": 7900},
    "SiglipImageProcessor": {"size": {"height": 32, "width": 32}, "do_convert_rgb": False},
    "Qwen2VLImageProcessor": {"min_pixels": 56 * 56, "max_pixels": 112 * 112},
    "Qwen3VLImageProcessor": {"class": "Qwen2VLImageProcessor", "patch_size": 16, "min_pixels": 64 * 64, "max_pixels": 128 * 128},
    "Qwen2VLVideoProcessor": {"min_pixels": 56 * 56, "max_pixels": 112 * 112},
    "Qwen3VLVideoProcessor": {},
    "Qwen2VLProcessor": {"image_processor": "@Qwen2VLImageProcessor", "video_processor": "@Qwen2VLVideoProcessor", "tokenizer": None},
    "Qwen2_5_VLProcessor": {"image_processor": "@Qwen2VLImageProcessor", "video_processor": "@Qwen2VLVideoProcessor", "tokenizer": None},
    "Qwen3VLProcessor": {"image_processor": "@Qwen3VLImageProcessor", "video_processor": "@Qwen3VLVideoProcessor", "tokenizer": None},
}
