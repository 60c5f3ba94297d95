"""References that are other models, of another width and depth: exactly what those models say when they are asked alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import pad

import mmalign as mm
from mmalign.needs import ENTROPY, OLD, contrast
from mmalign.policies.settings import Schedule
from mmalign.policies.twins import visions
from mmalign.samplers import kernels
from mmalign.samplers.windows import everything
from mmalign.types import Level, Need, Prediction, UserError
from tests.helpers import tiny_text
from tests.helpers.flat import diffusers, transformers

NEVER = [0, 1]  # pad, bos
REFS, WORDS = frozenset({OLD, Need("refs")}), frozenset({OLD, Need("refs"), Need("kls"), Need("reverse_kls"), ENTROPY})


# Language models


def llama(seed, **more):
    """Random weights whose distributions are not flat."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = LlamaForCausalLM(LlamaConfig(**{**tiny_text.GROUPED, **more}))
        for p in made.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.3)
    return made


def student(**more):
    return transformers(llama(0), tiny_text.tokenizer(more.pop("chat", None)), **{"max_completion": 9, **more})


def teacher(seed=1, *, chat=None, model=None, policy=None):
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, **(model or {})}
    return transformers(llama(seed, **sizes), tiny_text.tokenizer(chat), **{"max_completion": 9, **(policy or {})})


def rollout_of(policy, prompts=("hello there, you", "abc")):
    return policy.sample(list(prompts), 3, torch.Generator().manual_seed(0))


def alone(model, rollout, *, never=NEVER, temperature=1.0, prompts=None):
    """``[B, T, V]``: what a model of transformers says of each row by itself, prompt and completion through its own forward."""
    model, held, rows = model.eval(), rollout.held, []
    for row in range(len(rollout.prompts)):
        prompt, length = (prompts or held.prompts)[int(held.which[row])], int(held.lengths[row])
        ids = torch.cat([prompt, held.tokens[row, :length]]).unsqueeze(0)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        full = (logits.double() / temperature).index_fill(-1, torch.tensor(never), -1e9).log_softmax(-1)
        rows.append(pad(full, (0, 0, 0, held.tokens.shape[1] - length)))
    return torch.stack(rows)


def of_tokens(full, rollout):
    return full.gather(-1, rollout.held.tokens.unsqueeze(-1)).squeeze(-1) * rollout.mask


def kl(one, two, mask):
    return (one.exp() * (one - two)).sum(-1) * mask


@pytest.mark.parametrize(
    "settings", [{}, {"lora": {"rank": 2}}, {"temperature": 0.7}, {"gradient_checkpointing": True}, {"offload": "references"}]
)
def test_a_larger_language_model_scores_the_rows_as_it_does_alone(settings):
    scale = {"temperature": settings["temperature"]} if "temperature" in settings else {}
    policy, model = student(**settings), llama(1, hidden_size=24, intermediate_size=40, num_hidden_layers=3)
    policy.refer("ref", teacher(policy=scale), ["hello there, you"])
    rollout = rollout_of(policy)
    policy.remember(rollout, ["ref"], 2)
    steps = policy.steps(rollout, torch.arange(6), needs=WORDS)
    theirs, own = alone(model, rollout, **scale), alone(policy.model, rollout, **scale)
    assert torch.allclose(steps.refs["ref"], of_tokens(theirs, rollout), atol=1e-5, rtol=1e-6)
    assert torch.allclose(steps.log_probs, of_tokens(own, rollout), atol=1e-5, rtol=1e-6)
    assert torch.allclose(steps.kls["ref"], kl(own, theirs, rollout.mask), atol=1e-5, rtol=1e-6)
    assert torch.allclose(steps.reverse_kls["ref"], kl(theirs, own, rollout.mask), atol=1e-5, rtol=1e-6)
    assert float((steps.refs["ref"] - steps.old)[rollout.mask].abs().median()) > 1.0  # so that no other model's would do
    steps.kls["ref"].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for name, p in policy.parameters().items() if "lora_A" not in name)


def test_the_trained_policy_samples_and_scores_as_without_it():
    plain, policy = student(), student()
    policy.refer("ref", teacher())
    a, b = rollout_of(plain), rollout_of(policy)
    policy.remember(b, ["ref"], 6)
    assert a.outputs == b.outputs and torch.equal(a.log_probs, b.log_probs)
    ours, theirs = (some.steps(rows, torch.arange(6), needs=frozenset({OLD})).log_probs for some, rows in ((plain, a), (policy, b)))
    assert torch.equal(ours, theirs)


def moves(patch):
    """Where modules are moved to, as it is asked for."""
    moved, own = [], torch.nn.Module.to
    patch.setattr(torch.nn.Module, "to", lambda self, *args, **more: (moved.append((id(self), *args)), own(self, *args, **more))[1])
    return moved


def test_it_waits_elsewhere_between_its_uses_and_copies_too(monkeypatch):
    policy, other, small = student(offload="references"), teacher(), teacher(2)
    moved = moves(monkeypatch)
    policy.refer("ref", other)
    policy.sets.workplaces["ref"] = torch.device("cpu", 0)  # as a GPU would be another place than home
    policy.refer("judge", small)
    home, work = (id(other.model), torch.device("cpu")), (id(other.model), torch.device("cpu", 0))
    of_other = lambda: [move for move in moved if move[0] == id(other.model)]  # noqa: E731
    assert of_other() == [home, home] and policy.sets.home == torch.device("cpu")
    moved.clear()
    rollout = rollout_of(policy)
    policy.remember(rollout, ["ref"], 6)
    assert of_other() == [work, home]
    with policy.using("ref"), policy.using("judge"), policy.using("ref"):
        assert of_other() == [work, home, work]
    with pytest.raises(KeyError), policy.using("ref"):
        raise KeyError
    assert of_other() == [work, home] * 3
    plain = student()
    plain.refer("ref", teacher())
    moved.clear()
    again = rollout_of(plain)
    plain.remember(again, ["ref"], 6)
    assert torch.equal(again.held.refs["ref"], rollout.held.refs["ref"]) and moved == []


def test_it_stays_as_it_was_while_the_policy_is_trained():
    policy, other = student(lora={"rank": 2}), teacher()
    policy.refer("ref", other)
    rollout = rollout_of(policy)
    policy.remember(rollout, ["ref"], 6)
    before = policy.steps(rollout, torch.arange(6), needs=REFS)
    with torch.no_grad():
        for p in policy.parameters().values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    again = rollout_of(student())  # the same rows
    policy.remember(again, ["ref"], 6)
    after = policy.steps(again, torch.arange(6), needs=REFS)
    assert torch.equal(again.held.tokens, rollout.held.tokens)
    assert torch.equal(after.refs["ref"], before.refs["ref"]) and float((after.log_probs - before.log_probs).abs().max()) > 0.1
    assert not any(p.requires_grad for p in other.model.parameters()) and not other.model.training
    assert policy.sets.tables().keys() == {"trained"}  # no checkpoint holds it


def test_blocks_of_sets_and_of_other_models_nest():
    policy = student()
    policy.sets.keep("before")
    policy.refer("ref", teacher(1))
    policy.refer("judge", teacher(2, model={"num_hidden_layers": 1}))
    rollout = rollout_of(policy)
    with torch.no_grad():
        for p in policy.parameters().values():
            p.mul_(1.5)
    read = lambda: policy.steps(rollout, torch.arange(6)).log_probs.detach()  # noqa: E731
    scored = {}
    for name in ("current", "before", "ref", "judge"):
        with policy.using(name):
            scored[name] = read()
    assert torch.equal(scored["before"], rollout.log_probs)
    assert len({float(table.sum()) for table in scored.values()}) == 4
    for outer in ("ref", "judge"):
        with policy.using(outer):
            for inner in scored.keys() - {"current"}:
                with policy.using(inner):
                    assert torch.equal(read(), scored[inner]), (outer, inner)
                assert torch.equal(read(), scored[outer])
            with policy.using("before"), policy.using(outer):
                assert torch.equal(read(), scored[outer])
    with pytest.raises(RuntimeError, match="on purpose"), policy.using("ref"):
        raise RuntimeError("on purpose")
    assert torch.equal(read(), scored["current"])


def test_several_references_at_once_are_each_their_own():
    policy = student(lora={"rank": 2})
    policy.refer("ref", teacher(1))
    policy.refer("judge", teacher(2, model={"num_hidden_layers": 1}))
    rollout = rollout_of(policy)
    policy.remember(rollout, ["ref", "judge"], 6)
    steps = policy.steps(rollout, torch.arange(6), needs=WORDS)
    for name, model in (
        ("ref", llama(1, hidden_size=24, intermediate_size=40, num_hidden_layers=3)),
        ("judge", llama(2, hidden_size=24, intermediate_size=40, num_hidden_layers=1)),
    ):
        theirs, own = alone(model, rollout), alone(policy.model, rollout)
        assert torch.allclose(steps.refs[name], of_tokens(theirs, rollout), atol=1e-5)
        assert torch.allclose(steps.kls[name], kl(own, theirs, rollout.mask), atol=1e-5)


@pytest.mark.parametrize(("own", "theirs"), [(64, 80), (80, 64), (80, 72)])
def test_ids_without_a_word_are_said_by_neither_where_heads_are_filled_up_differently(own, theirs):
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "vocab_size": theirs}
    policy = transformers(llama(0, vocab_size=own), tiny_text.tokenizer(), max_completion=9)
    policy.refer("ref", teacher(model=sizes))
    rollout, least = rollout_of(policy), min(own, theirs)
    assert int(rollout.held.tokens.max()) < least
    policy.remember(rollout, ["ref"], 6)
    steps = policy.steps(rollout, torch.arange(6), needs=WORDS)
    there = alone(llama(1, **sizes), rollout, never=[*NEVER, *range(least, theirs)])
    here = alone(policy.model, rollout, never=[*NEVER, *range(least, own)])
    assert torch.allclose(steps.refs["ref"], of_tokens(there, rollout), atol=1e-5)
    assert torch.allclose(steps.log_probs, of_tokens(here, rollout), atol=1e-5)
    assert torch.allclose(steps.old, steps.log_probs, atol=1e-5)
    assert torch.allclose(steps.kls["ref"], kl(here[..., :least], there[..., :least], rollout.mask), atol=1e-5)
    assert torch.allclose(steps.reverse_kls["ref"], kl(there[..., :least], here[..., :least], rollout.mask), atol=1e-5)


def test_a_reference_that_wears_an_adapter_is_scored_with_it():
    other = teacher(policy={"lora": {"rank": 2}})
    with torch.no_grad():
        for p in other.parameters().values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    policy, bare = student(lora={"rank": 2}), llama(1, hidden_size=24, intermediate_size=40, num_hidden_layers=3)
    policy.refer("ref", other)
    rollout = rollout_of(policy)
    policy.remember(rollout, ["ref"], 6)
    refs = policy.steps(rollout, torch.arange(6), needs=REFS).refs["ref"]
    assert torch.allclose(refs, of_tokens(alone(other.model, rollout), rollout), atol=1e-4)
    assert float((refs - of_tokens(alone(bare, rollout), rollout)).abs().max()) > 0.1
    assert not any(p.requires_grad for p in other.model.parameters()) and all(p.requires_grad for p in policy.parameters().values())


def test_a_reference_in_half_precision_is_asked_in_its_own_type():
    policy, half = student(), llama(1, num_hidden_layers=3).bfloat16()
    other = transformers(half, tiny_text.tokenizer(), max_completion=9)
    policy.refer("ref", other)
    rollout = rollout_of(policy)
    policy.remember(rollout, ["ref"], 6)
    steps = policy.steps(rollout, torch.arange(6), needs=WORDS)
    assert policy.model.dtype == torch.float32
    assert torch.allclose(steps.refs["ref"], of_tokens(alone(half, rollout), rollout), atol=0.15)
    own = alone(policy.model, rollout)
    assert torch.allclose(steps.kls["ref"], kl(own, alone(half, rollout), rollout.mask), atol=0.15)


def test_other_prompts_are_scored_by_it_too():
    policy = student(chat=tiny_text.CHATML, contrasts={"bad": "lie"}, template=True)
    policy.refer("ref", teacher(chat=tiny_text.CHATML, policy={"template": True}), ["abc"])
    rollout = rollout_of(policy)
    policy.remember(rollout, ["ref"], 6)
    contrasted = policy.steps(rollout, torch.arange(6), needs=frozenset({contrast("bad"), Need("refs")})).contrasts["bad"]
    chat = teacher(chat=tiny_text.CHATML, policy={"system": "lie"}).chat
    model = llama(1, hidden_size=24, intermediate_size=40, num_hidden_layers=3)
    behind = [torch.tensor(chat.prompt(prompt).ids) for prompt in rollout.held.sources]
    for other_model, table in ((model, contrasted.refs["ref"]), (policy.model, contrasted.log_probs)):
        assert torch.allclose(table, of_tokens(alone(other_model, rollout, prompts=behind), rollout), atol=1e-5)


def test_its_prompts_are_the_policy_s_with_their_system_turn():
    policy = student(chat=tiny_text.CHATML, system="be brief")
    policy.refer("ref", teacher(chat=tiny_text.CHATML), ["abc"])
    rollout, model = rollout_of(policy), llama(1, hidden_size=24, intermediate_size=40, num_hidden_layers=3)
    policy.remember(rollout, ["ref"], 6)
    refs = policy.steps(rollout, torch.arange(6), needs=REFS).refs["ref"]
    assert "be brief" in policy.chat.tokenizer.decode(rollout.held.prompts[0].tolist())
    assert torch.allclose(refs, of_tokens(alone(model, rollout), rollout), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "dtype"), [("Llava", torch.float32), ("Llava", torch.bfloat16), ("PaliGemma", torch.float32), ("SmolVLM", torch.float32)]
)
def test_a_model_that_sees_is_asked_about_the_same_pictures(name, dtype):
    """Against its own forward; PaliGemma's tokenizer has words without a logit."""
    more = {"max_completion": 6, "device": "cpu", **({"template": False} if name == "PaliGemma" else {})}
    policy = transformers(*visions.twin(f"{name}ForConditionalGeneration"), **more)
    model, processor = visions.twin(f"{name}ForConditionalGeneration")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    policy.refer("ref", transformers(model.to(dtype), processor, **more))
    picture = {"type": "image", "image": torch.rand(3, 40, 64, generator=torch.Generator().manual_seed(0))}
    turn = [{"role": "user", "content": [picture, {"type": "text", "text": "what is it"}]}]
    rollout = policy.sample([turn, "only words"], 2, torch.Generator().manual_seed(0))
    policy.remember(rollout, ["ref"], 4)
    refs = policy.steps(rollout, torch.arange(4), needs=REFS).refs["ref"]
    held = rollout.held
    for row in range(4):
        place, length = int(held.which[row]), int(held.lengths[row])
        prompt, tokens = held.prompts[place], held.tokens[row, :length]
        with torch.no_grad():
            inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in held.extras[place].items()}
            for key in [key for key in inputs if key.endswith("token_type_ids")]:
                inputs[key] = torch.cat([inputs[key], torch.full((1, length), int(name == "PaliGemma"))], 1)
            logits = model(input_ids=torch.cat([prompt, tokens]).unsqueeze(0), use_cache=False, **inputs).logits[0, len(prompt) - 1 : -1]
        full = logits.double().index_fill(-1, torch.tensor(policy.chat.never), -1e9).log_softmax(-1)
        wanted = full.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        assert torch.allclose(refs[row, :length], wanted, atol=1e-4 if dtype == torch.float32 else 0.15)


CHATML = {"chat": tiny_text.CHATML}


def renamed():
    """A tokenizer of the same size in which two ids are swapped."""
    words = tiny_text.tokenizer()
    swapped = {"a": words.get_vocab()["b"], "b": words.get_vocab()["a"]}
    own = words.get_vocab()
    words.get_vocab = lambda: {**own, **swapped}
    return words


@pytest.mark.parametrize(
    ("policy", "other", "line"),
    [
        ({}, lambda: transformers(llama(1), renamed(), max_completion=9), r"its tokenizer has other ids: 'a' has the id"),
        ({}, lambda: teacher(policy={"temperature": 0.5}), r"policy\.temperature: got 0\.5, and policy\.temperature is 1\.0"),
        (CHATML, lambda: teacher(), r"policy\.template: got False, and policy\.template is True"),
        (CHATML, lambda: teacher(chat=tiny_text.CHATML, policy={"system": "be kind"}), r"policy\.system: got 'be kind'"),
        (
            CHATML,
            lambda: teacher(chat=tiny_text.CHATML.replace("assistant\n", "model\n")),
            r"of the prompt 'What is 2 \+ 2\?' its chat template writes 'model\\n' where the policy's writes 'assistan'",
        ),
        ({}, lambda: teacher(model={"max_position_embeddings": 64}), r"reads 64 tokens, and rows may be up to 128 tokens long"),
        ({"heads": ["reward_mask"]}, lambda: teacher(), r"the head reward_mask reads the hidden states of this one's own"),
        ({}, lambda: teacher(model={"vocab_size": 40}), r"has 40 logits, and the policy 49 words"),
        ({}, lambda: mm.policies.diffusers(digits()), r"references\.ref\.policy: got a DiffusersPolicy, takes one that transformers makes"),
    ],
)
def test_what_cannot_score_the_same_tokens_is_refused(policy, other, line):
    with pytest.raises(UserError, match=line) as refused:
        student(**policy).refer("ref", other(), ["abc"])
    assert str(refused.value).startswith("references.ref.policy") and "\n" not in str(refused.value)


def test_the_policy_s_own_model_is_refused():
    policy = student(lora={"rank": 2})
    with pytest.raises(UserError, match="shares weights with the policy that is trained; takes a model that was loaded by itself"):
        policy.refer("ref", policy)
    assert any(p.requires_grad for p in policy.model.parameters())


# Pipelines


def digits(seed=0, **sizes):
    """A pipeline of digits with random weights that say something."""
    from mmalign.policies.twins import pipelines
    from mmalign.worlds.digits.base import untrained
    from mmalign.worlds.digits.model import DigitsTransformer

    pipe = untrained(seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if sizes:
            pipe.register_modules(transformer=DigitsTransformer(**sizes))
        pipelines.shake_parameters(pipe, 0.05)
    return pipe


LARGER = {"width": 96, "depth": 5, "heads": 6}


def said_by(pipe, x, sigma, digit):
    """A digits pipeline's velocity, asked directly."""
    condition = pipe.text_encoder(torch.tensor([digit]))
    return pipe.transformer(
        hidden_states=x[None], timestep=torch.tensor([sigma * 1000]), encoder_hidden_states=condition[:, None],
        pooled_projections=condition, return_dict=False,
    )[0][0]  # fmt: skip


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_larger_pipeline_s_transitions_are_those_of_its_denoiser_asked_alone(lora):
    kernel = kernels.flow_sde(noise_level=0.7)
    policy = diffusers(digits(), steps=4, guidance=1.0, lora=lora, device="cpu", window=everything(), kernel=kernel)
    other = diffusers(digits(1, **LARGER), steps=4, guidance=1.0, device="cpu")
    policy.refer("ref", other, ["a 1"])
    rollout = policy.sample(["a 1", "a 2"], 2, torch.Generator().manual_seed(0))
    policy.remember(rollout, ["ref"], 3)
    steps = policy.steps(rollout, torch.arange(4), needs=frozenset({OLD, Need("refs"), Need("kls")}))
    assert float((steps.log_probs - steps.old).abs().max()) == 0.0
    pipe, held = digits(1, **LARGER), rollout.held
    _, levels = policy.schedule()
    with torch.no_grad():
        for row in range(4):
            for column in range(steps.log_probs.shape[1]):
                x, x_next, sigma = held.x[column, row], held.x_next[column, row], float(levels.noise[column])
                velocity = said_by(pipe, x, sigma, 1 + row // 2)
                between = [Level(levels.signal[place], levels.noise[place]) for place in (column, column + 1)]
                prediction = Prediction((x - sigma * velocity)[None], (x + (1 - sigma) * velocity)[None])
                mean, std = kernel(prediction, x[None], *between)
                if bool(rollout.mask[row, column]):
                    wanted = float(kernels.log_prob(x_next[None], mean, std))
                    assert steps.refs["ref"][row, column].item() == pytest.approx(wanted, abs=1e-2, rel=1e-4)
                    own = said_by(policy.pipe, x, sigma, 1 + row // 2)
                    own_mean, _ = kernel(Prediction((x - sigma * own)[None], (x + (1 - sigma) * own)[None]), x[None], *between)
                    distance = float(kernels.kl(own_mean, std, mean, std))
                    assert steps.kls["ref"][row, column].item() == pytest.approx(distance, rel=1e-3) and distance > 1e-3


@pytest.mark.parametrize(
    ("name", "says"), [("StableDiffusionPipeline", "v_prediction"), ("StableDiffusion3Pipeline", None), ("FluxPipeline", None)]
)
def test_a_pipeline_of_other_weights_says_what_a_policy_around_it_says(name, says):
    """says: another parametrisation than the policy's, of the same noise."""
    from diffusers import DDIMScheduler

    from mmalign.policies.twins import pipelines

    def made(amount):
        plan = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
        spoken = {} if says is None else {"scheduler": DDIMScheduler(**plan, prediction_type=says if amount else "epsilon")}
        pipe = pipelines.twin(name, **spoken)
        if amount:
            denoiser = pipe.components.get("transformer") or pipe.components["unet"]
            with torch.no_grad():
                for p in denoiser.parameters():
                    p.add_(amount * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        return diffusers(pipe, steps=3, guidance=4.0, call=pipelines.call_arguments(pipe), device="cpu")

    policy, other_model = made(0.0), made(0.05)
    policy.refer("ref", made(0.05), ["a 1"])
    rollout = policy.sample(["a 1", "a 2"], 2, torch.Generator().manual_seed(0))
    policy.remember(rollout, ["ref"], 4)
    steps = policy.steps(rollout, torch.arange(4), needs=frozenset({OLD, Need("refs"), Need("kls")}))
    wanted = other_model.steps(rollout, torch.arange(4)).log_probs
    assert torch.equal(steps.refs["ref"], wanted.detach()) and float(steps.kls["ref"].min()) > 0
    assert torch.equal(policy.sample(["a 1", "a 2"], 2, torch.Generator().manual_seed(0)).outputs, rollout.outputs)


def test_a_larger_pipeline_s_bounds_are_its_own_errors():
    make = lambda pipe: mm.policies.forward(mm.policies.diffusers(pipe, device="cpu", schedule=Schedule(steps=2)), draws=2)  # noqa: E731
    policy, pipe = make(digits()), digits(1, **LARGER)
    policy.refer("ref", make(digits(1, **LARGER)), ["a 3"])
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    table = policy.encode(["a 3", "a 3", "a 5", "a 5"], images, torch.arange(4) // 2, torch.Generator().manual_seed(0))
    policy.remember(table, ["ref"], 4)
    steps = policy.steps(table, torch.arange(4), needs=REFS)
    held, clean = table.held, 2 * images - 1
    with torch.no_grad():
        for row in range(4):
            for draw in range(2):
                sigma, noise = float(1000 - held.places[row // 2, draw]) / 1000, held.noise[row // 2, draw]
                for other_model, steps_there in ((pipe, steps.refs["ref"]), (policy.of.pipe, steps.log_probs)):
                    velocity = said_by(other_model, (1 - sigma) * clean[row] + sigma * noise, sigma, 3 if row < 2 else 5)
                    wanted = -0.5 * float(((velocity - (noise - clean[row])) ** 2).sum())
                    assert steps_there[row, draw].item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"steps": 5}, r"references\.ref\.policy\.schedule\.steps: got 5, and the policy has 4; takes as many"),
        ({"shift": 3.0}, r"references\.ref\.policy\.pipeline: the timesteps of its schedule is .* at place 2, the policy's"),
        ({"kernel": kernels.flow_sde(noise_level=0.2)}, r"references\.ref\.policy\.schedule\.kernel: is another one than the policy's"),
        ({"window": everything()}, r"references\.ref\.policy\.schedule\.window: is another one than the policy's"),
        ({"dtype": "bfloat16"}, r"references\.ref\.policy\.dtype: its latents are bfloat16, the policy's float32; takes dtype: float32"),
        ({"size": 16}, r"references\.ref\.policy: its latents are \[1, 16, 16\] and the policy's \[1, 8, 8\]; takes the same size"),
    ],
)
def test_a_pipeline_of_another_path_or_other_latents_is_refused(settings, line):
    from diffusers import FlowMatchEulerDiscreteScheduler

    settings = dict(settings)
    pipe = digits(1, **LARGER, **({"sample_size": settings.pop("size")} if "size" in settings else {}))
    pipe.register_modules(scheduler=FlowMatchEulerDiscreteScheduler(shift=settings.pop("shift", 1.0)))
    policy = diffusers(digits(), steps=4, device="cpu")
    with pytest.raises(UserError, match=line):
        policy.refer("ref", diffusers(pipe, **{"steps": 4, "device": "cpu", **settings}), ["a 1"])


def test_a_pipeline_that_refuses_its_call_is_one_line():
    def conditions(prompts):
        raise ValueError("no picture")

    other = diffusers(digits(), steps=4, device="cpu", conditions=conditions)
    with pytest.raises(UserError, match=r"references\.ref\.policy: DigitsPipeline refuses a call \(ValueError: no picture\); takes what"):
        diffusers(digits(), steps=4, device="cpu").refer("ref", other, ["a 1"])


def test_another_autoencoder_is_refused():
    from mmalign.policies.twins import pipelines

    def made(change):
        pipe = pipelines.twin("StableDiffusion3Pipeline")
        change(pipe.vae)
        return diffusers(pipe, steps=3, call=pipelines.call_arguments(pipe), device="cpu")

    def moved(vae):
        with torch.no_grad():
            next(vae.parameters()).add_(1.0)

    for change, line in (
        (lambda vae: vae.register_to_config(scaling_factor=0.5), r"pipeline: scaling_factor of its autoencoder is 0\.5, of the policy's"),
        (moved, r"pipeline: its autoencoder has other weights \(.*\); takes a model of the same latents"),
    ):
        with pytest.raises(UserError, match=line):
            made(lambda vae: None).refer("ref", made(change), ["a 1"])
    made(lambda vae: None).refer("ref", made(lambda vae: None), ["a 1"])


def test_bounds_of_other_errors_are_refused():
    make = lambda **more: mm.policies.forward(mm.policies.diffusers(digits(), device="cpu", schedule=Schedule(steps=2)), **more)  # noqa: E731
    for other, line in (
        (make(draws=2), r"policy\.draws: is 2, and the policy's 1; takes the same"),
        (make(target="epsilon"), r"policy\.target: is 'epsilon', and the policy's 'flow'"),
        (make().of, r"policy: got a DiffusersPolicy, takes one that forward makes"),
    ):
        with pytest.raises(UserError, match=line):
            make().refer("ref", other, ["a 1"])


def test_a_digest_tells_weights_apart():
    from mmalign.distributed.shards import digest

    same, moved = llama(1), llama(1)
    assert digest({"model": same}) == digest({"model": llama(1)}) != digest({"model": llama(2)})
    assert digest({"model": same}) != digest({"model": llama(1).bfloat16()})
    with torch.no_grad():
        moved.model.layers[1].mlp.up_proj.weight.add_(1e-3)
    assert digest({"model": moved}) != digest({"model": same})
