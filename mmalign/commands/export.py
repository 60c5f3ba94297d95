"""A trained run as others load it, with a page that says what it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.arguments.places import found
from mmalign.commands._hub import may_push
from mmalign.commands._hub import push as send
from mmalign.commands._metadata import metadata
from mmalign.commands._own_code import OwnCode, own_code
from mmalign.config import build_part
from mmalign.files import appearing
from mmalign.policies.adapters import ADAPTER, Form, Wanted, lora_layers, refuse_taken
from mmalign.policies.diffusers import DiffusersPolicy
from mmalign.policies.exports import scorers
from mmalign.policies.exports.language import auto_class, save
from mmalign.policies.exports.pipelines import export as write
from mmalign.policies.forward import ForwardPolicy
from mmalign.policies.language.codes.image_tokens import ImageTokensPolicy
from mmalign.policies.language.codes.thinking_images import ThinkingImagesPolicy
from mmalign.policies.language.models import gguf
from mmalign.policies.language.models.loading import load as load_language_model
from mmalign.policies.pipelines.calls.calling import load
from mmalign.policies.scorers.scorer import ScorerPolicy
from mmalign.policies.transformers import TransformersPolicy
from mmalign.runs import checkpoint, kept_policy, pixels
from mmalign.runs.metrics import read_benchmarks
from mmalign.runs.trained import Trained, trained
from mmalign.training.rollouts import dead_steps
from mmalign.types import UserError, contents

WORDS = {
    "pipeline": {"package": "diffusers", "a": "A diffusers pipeline", "is": "pipeline", "trained": "denoiser"},
    "model": {"package": "transformers", "a": "A language model", "is": "model", "trained": "model"},
}  # of the card
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that its --max-lora-rank takes, recalled


class Exported(NamedTuple):
    """Where an export is, which parameters it holds, the forms in it (``diffusers``, ``peft``, ``comfyui``, ``full``), files of the user's
    code, and its address on the hub."""

    path: Path
    parameters: str
    forms: tuple[str, ...]
    code: tuple[str, ...] = ()
    address: str | None = None


def export(
    run_folder: str | Path, *, out: str | Path | None = None, parameters: str | None = None, trust: bool = False, push: str | None = None,
    private: bool = True, license: str | None = None, form: Wanted | None = None,
) -> Exported:  # fmt: skip
    """Writes what a run has trained, as of its newest checkpoint: LoRA for diffusers and peft, or else the whole pipeline or model.

    Args:
        run_folder: of a run with a config, finished or interrupted.
        out: a folder that is not there yet; ``export`` in the run by default.
        parameters: ``trained``, ``ema``, ``best`` or another set that the run kept; the best of them by default, as in ``sample``.
        trust: the run's config may name code outside of mmalign, which is then imported and run.
        push: ORGANISATION/NAME of the hub, which gets all of it as one commit. private: whether a repository that is made for it is.
        license: of the export, in the hub's ids (``apache-2.0``); the base model's may bind you.
        form: ``merged`` writes the whole model or pipeline, LoRA in its weights, in place of adapters; ``comfyui`` adds a file with the
            names that ComfyUI and kohya's scripts read, of the models in ``policies.exports.comfyui``.

    A module of the user's that the model is made of, a file of Python that no package holds, is put beside the weights, and the code on
    the page finds it there; packages are named. See ``policies.exports`` for the other files, and for how they are compared with the
    live model before they appear.

    A reward model whose reader no other library loads (``open_clip``, ``noisy_latents``, ``named_features``, ...) is a folder that
    ``{use: trained, run: FOLDER}`` takes in place of the run, with hashes that are compared.

    Errors: UserError for a run without a checkpoint, a set that it does not have, a policy that is neither a diffusers pipeline nor a
    language model nor a reward model, and a comparison that fails.
    """
    if push is not None:
        may_push(push)
    run = trained(run_folder, trust=trust, builds=("policy", "prompts"))
    chosen = parameters or run.best
    if chosen not in run.sets:
        raise UserError(f"--set: got {chosen!r}, this run has {', '.join(run.sets)}")
    node = base_node(run.config["policy"])
    if isinstance(node, dict) and isinstance(node.get("memory"), Mapping):  # LoRA goes onto users' weights; one call is not worth compiling
        node["memory"] = {key: value for key, value in node["memory"].items() if key not in ("storage", "compile")}
    outer: Any = run.policy()
    policy = inner(outer)
    if isinstance(outer, ScorerPolicy) and policy is None:
        return Exported(_reward_model(run, outer, chosen, out), chosen, ("mmalign",))
    if node is None or policy is None:
        raise UserError(
            f"{run.folder}: got the policy {run.config['policy'].get('use')!r}, export takes a diffusers pipeline or a language model"
        )
    folder = run.folder / "export" if out is None else Path(out)
    live = policy.pipe if isinstance(policy, DiffusersPolicy) else policy.model
    own = own_code(node, live)
    head: Callable[[list[Form]], str] = lambda forms: _head(run, node, live, forms, license)  # noqa: E731
    with outer.using("current" if chosen == "trained" else chosen):
        card: Callable[[list[Form]], str] = lambda forms: _card(run, chosen, node, forms, own, head(forms))  # noqa: E731
        forms = written(outer, folder, node, prompt=_prompt(run), card=card, beside=own.files, form=form)
    words = f"{_in_words(run.config.get('method'))}, {checkpoint.step_of(run.checkpoint)} steps, by mmalign"
    address = None if push is None else send(folder, push, private=private, message=words)
    return Exported(folder, chosen, tuple(form.name for form in forms), tuple(file.name for file in own.files), address)


def _reward_model(run: Trained, policy: ScorerPolicy, chosen: str, out: str | Path | None) -> Path:
    """A reward model whose reader no other library loads, as a folder that ``trained`` takes in place of a run."""
    folder = run.folder / "export" if out is None else Path(out)
    refuse_taken(folder)
    with appearing(folder) as place, policy.using("current" if chosen == "trained" else chosen):
        kept_policy.write(place, run.config, policy.parameters())
        (place / "README.md").write_text(_reward_card(run, chosen, policy), encoding="utf-8")
        kept_policy.read(place)
    return folder


def _reward_card(run: Trained, chosen: str, policy: ScorerPolicy) -> str:
    """What the folder is, how it is used, and what was measured."""
    numbers = [f"| {name} | {before} | {after} |" for name, _, before, after in _numbers(run)]
    lines = [
        f"# {_run_name(run)}",
        f"A reward model that mmalign trained by {_in_words(run.config.get('method'))}, {checkpoint.step_of(run.checkpoint)} steps "
        f"(parameters: {chosen}). Its scores: {', '.join(policy.scores)}. It reads with {type(policy.reader).__name__}; what makes that "
        f"stands in `{kept_policy.CONFIG}`, and is loaded from there; here are the parameters that were trained, and hashes of both files, "
        "which are compared whenever it is loaded.",
        '```python\nimport mmalign as mm\n\nreward = mm.rewards.trained(".")  # this folder\n```',
        "```yaml\nrewards: {learned: {use: trained, run: FOLDER}}\n```",
        "\n".join(["| | before | after |", "|---|---|---|", *numbers]) if numbers else "Nothing was measured.",
    ]
    return "\n\n".join(lines) + "\n"


def inner(policy: Any) -> DiffusersPolicy | TransformersPolicy | None:
    """The policy around a pipeline or a language model itself, of one that wraps it; None for any other."""
    while isinstance(policy, ForwardPolicy | ScorerPolicy | ImageTokensPolicy | ThinkingImagesPolicy):
        policy = policy.of
    return policy if isinstance(policy, DiffusersPolicy | TransformersPolicy) else None


def written(
    policy: Any, folder: Path, node: Mapping[str, Any], *, prompt: str, card: Callable[[list[Form]], str], beside: Sequence[Path] = (),
    form: Wanted | None = None,
) -> list[Form]:  # fmt: skip
    """Writes the parameters that a policy has now, as its library loads them; returns how. See ``policies.exports``.

    node: of the policy around the pipeline or model, which says what its base is. prompt: of the one call that is compared. form: as of
    ``export``.
    Errors: UserError where something is at ``folder``, and where what was written does not give the live model again.
    """
    own = inner(policy)
    if isinstance(policy, ScorerPolicy):  # LoRA is added in anyway
        if form == "comfyui":
            raise UserError("export --comfyui: got a reward model, takes a run of a pipeline with lora")
        return scorers.save(policy, folder, prompt=prompt, card=card, beside=beside)
    if isinstance(own, TransformersPolicy):
        base = lambda: _language_model(node)  # noqa: E731
        return save(own, folder, base=base, prompt=prompt, card=card, name=_base_name(node), beside=beside, form=form)
    assert own is not None
    return write(own, folder, base=lambda: _base(node), prompt=prompt, card=card, beside=beside, form=form)


def base_node(node: Any) -> Mapping[str, Any] | None:
    """The node of a policy that has a pipeline or a model: itself, or the one that it wraps."""
    while isinstance(node, Mapping) and not ("pipeline" in node or "model" in node):
        node = node.get("of")
    return found(node) if isinstance(node, Mapping) else None


def _base(node: Mapping[str, Any]) -> Any:
    return load(node["pipeline"], dtype=node.get("dtype")) if isinstance(node["pipeline"], str) else build_part(node, "pipeline")


def _language_model(node: Mapping[str, Any]) -> Any:
    if not (isinstance(node["model"], str) or gguf.is_gguf(node["model"])):
        built = build_part(node, "model")
        return built[0] if isinstance(built, tuple) else built
    settings = {key: node[key] for key in ("tokenizer", "dtype", "trust_remote_code") if key in node}
    return load_language_model(node["model"], **settings)[0]


def _prompt(run: Trained) -> str:
    """One that the run was evaluated with: of its config, or else of its own list, since records bring theirs."""
    prompts = contents(build_part(run.config.get("evaluation") or {}, "prompts") or build_part(run.config, "prompts") or [])
    written = run.folder / "samples" / "prompts.json"
    if not prompts and written.is_file():
        prompts = json.loads(written.read_text(encoding="utf-8"))["prompts"]
    return str(next(iter(prompts or [""])))


# ---- the page


def _head(run: Trained, node: Mapping[str, Any], live: Any, forms: list[Form], license: str | None) -> str:
    """What the hub reads of the page."""
    names = (run.config.get("evaluation") or {}).get("judges") or {}
    after = _after(run) if run.state.get("evaluations") else {}
    judges = {key: float(value) for key, value in after.items() if key in names and value is not None}
    method = run.config.get("method")
    base = None if gguf.is_gguf(_name(node)) else _base_name(node)  # a file in a package is no repository
    return metadata(
        name=_run_name(run), base=base, model=live, forms=[form.name for form in forms],
        method=str(method.get("use") if isinstance(method, Mapping) else method).rpartition(".")[2], judges=judges, license=license,
    )  # fmt: skip


def _run_name(run: Trained) -> str:
    return str((run.config.get("run") or {}).get("name", run.folder.name))


def _card(run: Trained, chosen: str, node: Mapping[str, Any], forms: list[Form], own: OwnCode, head: str) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    config, versions, last = run.config, run.folder / "versions.json", "ema" if "ema" in run.sets else "trained"
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.get_template("card.md").render(
        head=head,
        name=_run_name(run),
        words=WORDS["pipeline" if "pipeline" in node else "model"],
        base=_base_name(node),
        base_code=base_code(node, forms),
        own=own,
        lora=node.get("lora"),
        loaders=[{"name": form.name, "code": form.code} for form in forms],
        served=_served(node, forms),
        method=_in_words(config.get("method")),
        recipe=config.get("use", "online"),
        data=[(key, _in_words(config[key])) for key in ("prompts", "records") if key in config],
        rewards=list(config.get("rewards") or {}),
        combine=_in_words(config["combine"]) if config.get("combine") else None,
        numbers=list(_numbers(run)),
        benchmarks=read_benchmarks(run.folder)[0],
        kl=_kl(run),
        dead=_dead(run),
        shifts=[pixels.in_words(shift) for shift in pixels.shifts(run.state.get("evaluations") or [])],
        steps=checkpoint.step_of(run.checkpoint),
        seed=(config.get("run") or {}).get("seed", 0),
        chosen=chosen,
        measured="best" if "best_step" in run.state else last,
        versions=json.loads(versions.read_text(encoding="utf-8")) if versions.is_file() else {},
    )


def _dead(run: Trained) -> str:
    """What a reader of the page has to know of steps that taught nothing, by its checkpoint; empty where all of them taught something."""
    dead = dead_steps.summed_up(run.state.get("dead") or {})
    if not dead:
        return ""
    step, count, last = checkpoint.step_of(run.checkpoint), dead["dead_steps"], run.state.get("dead_in_a_row", 0)
    if count == step:
        return f"This run learned nothing: none of its {step} steps taught it anything ({dead['dead_because']})."
    ended = f", the last {last} among them" if last else ""
    return f"{count} of its {step} steps taught it nothing{ended} ({dead['dead_because']})."


def _name(node: Mapping[str, Any]) -> Any:
    return node["pipeline"] if "pipeline" in node else node["model"]


def _base_name(node: Mapping[str, Any]) -> str | None:
    """The hub id, folder or file of what was trained; None for what a function makes."""
    name = _name(node)
    if "pipeline" not in node and gguf.is_gguf(name):
        return str(gguf.place_of(name))
    return name if isinstance(name, str) else None


def base_code(node: Mapping[str, Any], forms: Sequence[Form]) -> list[str]:
    """Lines of Python that load what an adapter is put onto."""
    name = _name(node)
    if "pipeline" not in node:
        if gguf.is_gguf(name):
            return gguf.code_of(gguf.place_of(name), auto_class(forms[0].modules["model"]))
        if isinstance(name, str):
            home = auto_class(forms[0].modules["model"])
            return [f"from transformers import {home}", f"model = {home}.from_pretrained({name!r})"]
        return ["from mmalign.config import build_part", f"model = build_part({{'model': {name!r}}}, 'model')"]
    if isinstance(name, str):
        return ["from diffusers import DiffusionPipeline", f"pipe = DiffusionPipeline.from_pretrained({name!r})"]
    return ["from mmalign.config import build_part", f"pipe = build_part({{'pipeline': {name!r}}}, 'pipeline')"]


def _served(node: Mapping[str, Any], forms: Sequence[Form]) -> str:
    """How vLLM serves an adapter of a language model, by its documentation; empty for other forms."""
    if "pipeline" in node or forms[0].name != "peft" or gguf.is_gguf(_name(node)) or not isinstance(_name(node), str):
        return ""
    layers = lora_layers(forms[0].modules["model"])
    if heads := [name for name in layers if name.endswith(("lm_head", "embed_out"))]:
        return f"It has LoRA in {heads[0]}, which vLLM does not load of every model: export with `--merge` for it."
    most = max(layer.r[ADAPTER] for layer in layers.values())
    options = f"--enable-lora --max-lora-rank {next((rank for rank in VLLM_RANKS if rank >= most), most)}"
    return f"vLLM takes this folder as it is (by its documentation): `vllm serve {_name(node)} {options} --lora-modules tuned=.`"


def _in_words(node: Any) -> str:
    """A node of a config in words: ``flow_grpo (clip 0.2, beta 0.03)``; of a file its name, since a card is for others to read."""
    if isinstance(node, Mapping) and "use" in node:
        more = ", ".join(f"{key} {_named(value)}" for key, value in node.items() if key != "use")
        return f"{node['use']} ({more})" if more else str(node["use"])
    return f"{len(node)} of them" if isinstance(node, list) else str(node)


def _named(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _numbers(run: Trained) -> Iterator[tuple[str, str, str, str]]:
    """(name, what it is, before, after) of every number of the first evaluation and of the one that counts."""
    rows = run.state.get("evaluations") or []
    if not rows:
        return
    after = _after(run)
    for key, value in rows[0].items():
        if key in ("step", "kl", pixels.SAMPLES) or key.endswith("_se"):
            continue
        kinds = (("rewards", "reward, trained on"), ("judges", "judge, not trained on"), ("metrics", "metric"))
        configured = {**(run.config.get("evaluation") or {}), "rewards": run.config.get("rewards")}
        what = next((words for kind, words in kinds if key.partition("/")[0] in (configured.get(kind) or {})), "")
        if what and key == (configured.get("stop") or {}).get("judge"):
            what = "judge, decided when to stop"
        yield key, what, _with_error(rows[0], key, value), _with_error(after, key, after.get(key))


def _after(run: Trained) -> dict[str, Any]:
    rows = run.state["evaluations"]
    best: dict[str, Any] = next((row for row in rows if row["step"] == run.state.get("best_step")), rows[-1])
    return best


def _with_error(row: Mapping[str, Any], key: str, value: Any) -> str:
    if value is None:
        return "not measured"
    error = row.get(f"{key}_se")
    return f"{value:.3f}" if error is None or math.isnan(error) else f"{value:.3f} ± {error:.3f}"  # of one sample there is none


def _kl(run: Trained) -> float | None:
    """Nats to the base model, as the last rollout before the evaluation that counts had them; None for a bound, which has none."""
    value = _after(run).get("kl") if run.state.get("evaluations") else run.state.get("kl")
    return None if value is None or value != value else float(value)
