"""Tiny twins: any diffusers pipeline class with small random weights, built from signatures. Nothing is downloaded.

A pipeline's ``__init__`` names its components and their classes; a component's config names its sizes. Sizes are shrunk by the
rules of ``facts`` (by the name of the config's field), so that every width is 32 and parts fit; what rules cannot know is a
named fact there. The same is done for the arguments of the pipeline's call.
"""

from __future__ import annotations

import inspect
import string
import types
import typing
from collections.abc import Mapping
from typing import Any

import torch

from mmalign.arguments.ranges import Seed
from mmalign.policies.twins import facts as facts
from mmalign.policies.twins import pipeline_facts as pipelines
from mmalign.types import UserError

__all__ = ["call_arguments", "tokenizer", "twin"]

WIDTH = 32


def twin(pipeline: Any, *, scheduler: Any = None, seed: Seed = 0, shake: float = 0.05, other: Seed = 0) -> Any:
    """A pipeline of the class of ``pipeline`` (a class, its name, or a pipeline) with tiny random weights, on the CPU.

    scheduler: one to use in place of the usual one, such as that of the real pipeline. shake: noise on every parameter of the
    denoisers: layers that start at zero would hide what does not reach the output. other: another number is another denoiser in the same
    latents.
    Errors: UserError for a class that diffusers does not have.
    """
    kind = pipeline_class(pipeline)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        components = _components(kind)
        if scheduler is not None:
            components["scheduler"] = type(scheduler).from_config(scheduler.config)
        pipe = kind(**components)
        pipe.set_progress_bar_config(disable=True)
        if type(components.get("vae")).__name__ in facts.TILED:
            components["vae"].enable_tiling()
        shake_parameters(pipe, shake, other)
    return pipe


def pipeline_class(pipeline: Any) -> type:
    """The class that a name, a class or a pipeline means. Errors: UserError."""
    import diffusers

    if isinstance(pipeline, str):
        kind = getattr(diffusers, pipeline, None)
        if not (inspect.isclass(kind) and issubclass(kind, diffusers.DiffusionPipeline)):
            raise UserError(f"pipeline: got {pipeline!r}, which is no pipeline class of diffusers {diffusers.__version__}")
        return kind
    return pipeline if inspect.isclass(pipeline) else type(pipeline)


def call_arguments(pipe: Any) -> dict[str, Any]:
    """Small arguments for the call of a twin: sizes, frames, images, masks, by the names in its signature."""
    name = type(pipe).__name__
    parameters = inspect.signature(inspect.unwrap(type(pipe).__call__)).parameters
    own = pipelines.calls(name)
    media = {kind: make for names, make in _MEDIA.items() for kind in names}
    arguments = {key: pipelines.CALL[key] for key in parameters if key in pipelines.CALL}
    arguments |= {
        key: media[key]()
        for key in parameters
        if key in media and (key in pipelines.WANTED or parameters[key].default is inspect.Parameter.empty)
    }
    for key, value in own.items():
        if value is pipelines.LEAVE:
            arguments.pop(key, None)
        else:
            arguments[key] = media[value[1:]]() if isinstance(value, str) and value.startswith("@") else value
    return {key: value for key, value in arguments.items() if key in parameters}


# Components


def _components(kind: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    own = pipelines.components(kind.__name__)
    optional = set(getattr(kind, "_optional_components", []))
    parameters = inspect.signature(kind.__init__).parameters
    for name, parameter in list(parameters.items())[1:]:
        overrides = own.get(name, {})
        spare = parameter.default is None and not name.startswith(("text_encoder", "tokenizer"))
        if overrides is None or (name not in own and (spare or (name in optional and name in facts.EXTRAS))):
            parts[name] = None
        elif not isinstance(overrides, Mapping):
            parts[name] = overrides
        elif parameter.default not in (inspect.Parameter.empty, None) and not overrides:
            parts[name] = False if name == "requires_safety_checker" else parameter.default
        elif parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            values = {key: value for key, value in overrides.items() if key != "class"}
            parts[name] = build(_class_of(parameter.annotation, name, overrides), values, kind.__name__)
    return parts


def _class_of(annotation: Any, name: str, overrides: Mapping[str, Any]) -> Any:
    import diffusers
    import transformers

    choices = typing.get_args(annotation) if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) else (annotation,)
    first = next((choice for choice in choices if inspect.isclass(choice) and choice is not type(None)), annotation)
    label = getattr(first, "__name__", str(first).split("|")[0].strip())
    label = overrides.get("class") or facts.STANDS_FOR.get(label) or (label if isinstance(first, str) else None)
    if label is None:
        return first
    return {"Unchecked": Unchecked}.get(label) or getattr(diffusers, label, None) or getattr(transformers, label)


def build(kind: Any, overrides: Mapping[str, Any], pipeline: str = "") -> Any:
    """A tiny object of a component's class. overrides: values in place of the rules'."""
    import diffusers
    import transformers

    name = kind.__name__
    if kind is Unchecked:
        return Unchecked()
    if name in facts.PROCESSORS:
        return _processor(name, overrides)
    if issubclass(kind, transformers.PreTrainedTokenizerBase) or name in ("AutoTokenizer", "AutoProcessor"):
        return tokenizer(**overrides)
    if issubclass(kind, transformers.PreTrainedModel) and not issubclass(kind, diffusers.ModelMixin):
        return kind(_config(getattr(transformers, facts.CONFIGS.get(name, ""), kind.config_class), overrides)).eval()
    if issubclass(kind, diffusers.SchedulerMixin):
        return kind(**{**facts.SCHEDULERS.get(name, {}), **overrides})
    parameters = inspect.signature(kind.__init__).parameters
    values = {key: facts.shrunk(key, parameters[key].default) for key in parameters if key in facts.FIELDS}
    values |= {**facts.models(name), **overrides}
    return kind(**{key: value for key, value in values.items() if key in parameters})


def _config(kind: Any, overrides: Mapping[str, Any]) -> Any:
    """A transformers config shrunk by the names of its fields, and so are the configs inside it."""
    import transformers

    plain = kind()
    inner = {
        key: _config(type(value), overrides.get(key, {})).to_dict()
        for key, value in vars(plain).items()
        if isinstance(value, transformers.PreTrainedConfig)
    }
    values = {key: facts.ENCODER_FIELDS[key] for key in plain.to_dict() if key in facts.ENCODER_FIELDS}
    return kind(**{**values, **inner, **facts.ENCODERS.get(kind.__name__, {}), **{k: v for k, v in overrides.items() if k not in inner}})


def tokenizer(length: int = 77, template: str = "<bos> $A <eos>") -> Any:
    """A character tokenizer that any pipeline takes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", "<unk>", *string.printable, *facts.SPECIAL_TOKENS]
    core = Tokenizer(models.WordLevel({token: number for number, token in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<bos>", 1), ("<eos>", 2)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", model_max_length=length,
        additional_special_tokens=list(facts.SPECIAL_TOKENS), chat_template=facts.CHAT_TEMPLATE,
    )  # fmt: skip
    for token, attribute in facts.TOKEN_NAMES.items():
        setattr(wrapped, attribute, token)
        setattr(wrapped, f"{attribute}_id", wrapped.convert_tokens_to_ids(token))
    return wrapped


def _processor(name: str, overrides: Mapping[str, Any]) -> Any:
    import transformers

    values = {**facts.PROCESSORS[name], **overrides}
    arguments = {
        key: _processor(value[1:], {}) if isinstance(value, str) and value.startswith("@") else value for key, value in values.items()
    }
    if "tokenizer" in arguments:
        arguments["tokenizer"] = tokenizer(4096, "$A")
        arguments["chat_template"] = facts.CHAT_TEMPLATE
    return getattr(transformers, arguments.pop("class", name))(**arguments)


def shake_parameters(pipe: Any, size: float, other: int = 0) -> None:
    """Noise of a standard deviation on the parameters of denoisers and ControlNets, always the same of one number ``other``."""
    rng = torch.Generator().manual_seed(1 + other)
    with torch.no_grad():
        for name, module in pipe.components.items():
            if isinstance(module, torch.nn.Module) and name.startswith(("transformer", "unet", "image_unet", "controlnet")):
                for p in module.parameters():
                    p.add_(size * torch.randn(p.shape, generator=rng))


class Unchecked(torch.nn.Module):
    """Stands for a safety checker that has to be there: everything passes."""

    dtype, device = torch.float32, torch.device("cpu")

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


# Media


def image(size: int = 32, mode: str = "RGB") -> Any:
    """A smooth picture, or a mask of its left half for mode ``L``."""
    import numpy
    from PIL import Image

    across, down = numpy.meshgrid(*[numpy.linspace(0, 1, size)] * 2)
    picture = across < 0.5 if mode == "L" else numpy.stack([across, down, numpy.full_like(down, 0.3)], -1)
    return Image.fromarray((255 * picture).astype(numpy.uint8), mode)


def image_tensor(size: int = 32) -> torch.Tensor:
    """A smooth picture ``[1, 3, size, size]`` in -1..1."""
    return torch.linspace(-1, 1, size).expand(1, 3, size, size).clone()


_MEDIA = {
    (
        "image",
        "control_image",
        "input_image",
        "pose_image",
        "ip_adapter_image",
        "conditioning_image",
        "controlnet_condition",
        "last_image",
        "reference_image",
        "condtioning_image",
        "example_image",
    ): image,
    ("mask_image", "mask", "control_mask"): lambda: image(mode="L"),
    ("video", "control_video", "conditioning_frames", "pose_video", "face_video"): lambda: [image() for _ in range(5)],
    ("mask_video",): lambda: [image(mode="L") for _ in range(5)],
    ("images",): lambda: [image()],
    ("image_embeds", "negative_image_embeds", "image_embeddings"): lambda: torch.linspace(-1, 1, WIDTH)[None],
    ("video_tensor",): lambda: image_tensor()[:, :, None].repeat(1, 1, 5, 1, 1),
    ("mask_tensor",): lambda: (image_tensor()[:, :1, None] > 0).float().repeat(1, 1, 5, 1, 1),
    ("plane",): lambda: image_tensor()[:, 0],
    ("hint_large",): lambda: image_tensor(128),
    ("hint",): lambda: torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32),
    ("audio", "init_audio", "initial_audio_waveforms"): lambda: torch.sin(torch.linspace(0, 100, 2 * 1024)).view(1, 2, -1),
}
