"""Language models as policies: the same log-probabilities as a straight forward, whatever is shared, cut into pieces or put in batches."""

from __future__ import annotations

import pytest
import torch

from mmalign.needs import COLLISION, ENTROPY, OLD, VALUE
from mmalign.policies.language.models.logits import Matrix
from mmalign.policies.settings import Lora
from mmalign.types import Need, UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

CLASSES = [
    "qwen2", "qwen2_sliding", "qwen3", "llama", "mistral", "gemma", "gemma2", "gemma3", "gpt2", "gpt_neox", "cohere", "granite", "phi3",
    "opt", "bloom", "mixtral",
]  # fmt: skip
PROMPTS = ["hello there, you", "abc"]
NEVER = [0, 1]  # pad, bos
WORDS = frozenset({OLD, Need("refs"), Need("kls"), Need("reverse_kls"), ENTROPY, COLLISION})


def make(name="qwen2", *, dtype=torch.float32, chat=None, **more):
    return transformers(tiny_text.model(name, dtype=dtype), tiny_text.tokenizer(chat), **{"max_completion": 9, **more})


def rollout_of(policy, group_size=3, seed=0, prompts=PROMPTS):
    return policy.sample(list(prompts), group_size, torch.Generator().manual_seed(seed))


def straight(policy, rollout, temperature=1.0):
    """Full log-probabilities ``[B, T, V]`` of each row by itself: prompt and completion through ``model(...).logits``."""
    held, rows = rollout.held, []
    for row in range(len(rollout.prompts)):
        prompt, length = held.prompts[int(held.which[row])], int(held.lengths[row])
        ids = torch.cat([prompt, held.tokens[row, :length]])
        logits = policy.model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0, len(prompt) - 1 : -1]
        logits = logits.index_fill(-1, torch.tensor(NEVER), -1e9)
        full = (logits.double() / temperature).log_softmax(-1)
        rows.append(torch.nn.functional.pad(full, (0, 0, 0, held.tokens.shape[1] - length)))
    return torch.stack(rows)


def chosen(policy, rollout, temperature=1.0):
    full = straight(policy, rollout, temperature)
    return full.gather(-1, rollout.held.tokens.unsqueeze(-1)).squeeze(-1) * rollout.mask


def gradient(policy, table):
    weights = torch.linspace(-1, 1, table.numel(), dtype=torch.float64).view_as(table)
    gradients = torch.autograd.grad((weights * table).sum(), list(policy.parameters().values()), allow_unused=True, retain_graph=True)
    return torch.cat([torch.zeros(1) if g is None else g.flatten() for g in gradients])


@pytest.mark.parametrize("name", CLASSES)
def test_shared_prompts_and_chunks_equal_a_straight_forward(name):
    policy = make(name, logits_at_once=2 * 64, max_completion=12)  # several pieces of the vocabulary
    assert policy.fit.shared
    assert isinstance(policy.fit.head, Matrix) is (name not in ("gemma2", "cohere", "granite"))
    rollout = rollout_of(policy)
    table = policy.steps(rollout, torch.arange(6)).log_probs
    oracle = chosen(policy, rollout)
    assert torch.allclose(table, oracle, atol=1e-5, rtol=1e-6)
    assert torch.allclose(rollout.log_probs, oracle, atol=1e-5, rtol=1e-6)
    ours, theirs = gradient(policy, table), gradient(policy, oracle)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_in_float64_they_are_the_same_numbers():
    policy = make("gpt2", dtype=torch.float64)  # others norm in float32
    rollout = rollout_of(policy)
    table = policy.steps(rollout, torch.arange(6)).log_probs
    assert torch.allclose(table, chosen(policy, rollout), atol=1e-12)


def test_a_class_whose_cache_is_of_another_kind_runs_plainly_and_says_so():
    with pytest.warns(UserWarning, match="cannot be shared"):
        policy = make("mamba")
    rollout = rollout_of(policy)
    assert torch.allclose(policy.steps(rollout, torch.arange(6)).log_probs, chosen(policy, rollout), atol=1e-5)
    assert torch.equal(rollout.held.tokens, rollout_of(policy).held.tokens)


def test_a_head_that_cannot_run_apart_is_found_out():
    model = tiny_text.model()
    forward = model.forward
    model.forward = lambda input_ids, **told: _lifted(forward(input_ids=input_ids, **told), input_ids)
    with pytest.warns(UserWarning, match="cannot be run apart"):
        policy = transformers(model, tiny_text.tokenizer(), max_completion=9)
    rollout = rollout_of(policy)
    assert torch.allclose(policy.steps(rollout, torch.arange(6)).log_probs, chosen(policy, rollout), atol=1e-5)


def _lifted(said, ids):
    said.logits = said.logits + torch.nn.functional.one_hot(ids, 64)[:, -said.logits.shape[1] :]
    return said


def test_temperature_is_that_of_the_trained_distribution():
    policy = make(temperature=0.7)
    rollout = rollout_of(policy)
    assert torch.allclose(rollout.log_probs, chosen(policy, rollout, 0.7), atol=1e-5)
    assert rollout.metrics["engine_difference_max"] < 1e-5


def test_some_rows_and_columns_are_those_of_the_whole_table():
    policy = make()
    rollout = rollout_of(policy)
    whole = policy.steps(rollout, torch.arange(6)).log_probs
    rows, columns = torch.tensor([4, 1]), torch.tensor([2, 5])
    part = policy.steps(rollout, rows, columns)
    assert torch.allclose(part.log_probs, whole[rows][:, columns], atol=1e-6)
    assert torch.equal(part.old, rollout.log_probs[rows][:, columns])


def test_rows_do_not_depend_on_what_is_sampled_beside_them():
    whole, parts = make(rows_at_once=64), make(rows_at_once=2)
    a, b = rollout_of(whole, group_size=4), rollout_of(parts, group_size=4)
    assert a.outputs == b.outputs and torch.equal(a.held.tokens, b.held.tokens)
    assert torch.equal(rollout_of(whole, group_size=4).held.tokens, a.held.tokens)
    assert not torch.equal(rollout_of(whole, group_size=4, seed=1).held.tokens, a.held.tokens)


def test_lora_starts_at_the_reference_and_its_gradient_arrives():
    policy = make(lora={"rank": 2})
    rollout = rollout_of(policy)
    policy.remember(rollout, ["ref"], 6)
    steps = policy.steps(rollout, torch.arange(6), needs=WORDS)
    assert torch.equal(steps.refs["ref"], steps.old)
    assert float(steps.kls["ref"].abs().max()) == 0.0
    steps.log_probs.sum().backward()
    assert all("lora_" in key for key in policy.parameters())
    assert max(float(p.grad.norm()) for p in policy.parameters().values() if p.grad is not None) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_an_adapter_is_that_of_a_straight_forward(dtype):
    policy = make("llama", dtype=dtype, lora={"rank": 2}, temperature=0.7, logits_at_once=7 * 64)
    rollout = rollout_of(policy)
    for p in policy.parameters().values():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    ours = gradient(policy, policy.steps(rollout, torch.arange(6)).log_probs)
    theirs = gradient(policy, chosen(policy, rollout, 0.7))
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize("lora", [None, {"rank": 2, "targets": "all-linear"}])
@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_numbers_of_whole_distributions_equal_their_formulas(name, lora):
    policy = make(name, lora=lora, logits_at_once=5 * 64)
    rollout = rollout_of(policy)
    policy.remember(rollout, ["ref"], 4)
    with torch.no_grad(), policy.using("ref"):
        ref = straight(policy, rollout)
    for p in policy.parameters().values():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    steps = policy.steps(rollout, torch.arange(6), needs=WORDS)
    own = straight(policy, rollout)
    wanted = {
        "kls": (own.exp() * (own - ref)).sum(-1),
        "reverse_kls": (ref.exp() * (ref - own)).sum(-1),
        "entropy": -(own.exp() * own).sum(-1),
        "collision": (2 * own).logsumexp(-1),
    }
    tables = {"kls": steps.kls["ref"], "reverse_kls": steps.reverse_kls["ref"], **steps.terms}
    for word, formula in wanted.items():
        assert torch.allclose(tables[word], formula * rollout.mask, atol=2e-5), word
        ours, theirs = gradient(policy, tables[word]), gradient(policy, formula * rollout.mask)
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-4, word
    assert float(steps.kls["ref"].max()) > 1e-3
    assert torch.allclose(steps.refs["ref"], ref.gather(-1, rollout.held.tokens.unsqueeze(-1)).squeeze(-1) * rollout.mask, atol=1e-5)


def test_named_sets_swap_and_come_back():
    policy = make()
    rollout = rollout_of(policy)
    policy.sets.keep("previous")
    for p in policy.parameters().values():
        p.data += 0.1
    moved = policy.steps(rollout, torch.arange(6)).log_probs
    policy.remember(rollout, ["previous"], 2)
    assert torch.allclose(rollout.held.refs["previous"], rollout.log_probs, atol=1e-6)
    assert torch.equal(policy.steps(rollout, torch.arange(6)).log_probs, moved)


def test_a_head_is_trained_with_the_rest_and_kept():
    for lora in (None, {"rank": 2}):
        policy = make(heads=["value"], lora=lora)
        rollout = rollout_of(policy)
        assert "value" in policy.gives
        with torch.no_grad():
            policy.parameters()["value.bias"] += 2.0
        policy.sets.follow("ema", decay=0.0)
        steps = policy.steps(rollout, torch.arange(6), needs=frozenset({VALUE}))
        assert torch.allclose(steps.terms["value"], 2.0 * rollout.mask.double())
        steps.terms["value"].sum().backward()
        assert float(policy.parameters()["value.weight"].grad.norm()) > 0
        with policy.using("ema"):
            assert float(policy.parameters()["value.bias"]) == 2.0


def test_what_cannot_be_drawn_is_never_drawn_and_an_end_is_a_step():
    policy = make(max_completion=40)
    rollout = rollout_of(policy, group_size=16)
    tokens = rollout.held.tokens[rollout.mask]
    assert not bool(torch.isin(tokens, torch.tensor(NEVER)).any())
    assert bool(torch.isin(tokens, torch.tensor([3, 4])).any())  # other special tokens may be said
    assert rollout.mask.sum(1).tolist() == rollout.held.lengths.tolist()
    ended = ~rollout.held.cut
    assert 0 < int(ended.sum()) < 32
    last = rollout.held.tokens.gather(1, rollout.held.lengths.unsqueeze(1) - 1).squeeze(1)
    assert torch.equal(last == 2, ended)
    assert all("<" not in text for text in rollout.outputs)


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])  # one matrix, and a head of its own
def test_what_is_sampled_is_what_is_scored(name):
    policy = make(name, max_completion=1)
    every = torch.arange(64).unsqueeze(1)
    ones = torch.ones_like(every)
    rollout = policy.table([policy.chat.prompt("abc")], torch.zeros(64, dtype=torch.int64), every, ones.squeeze(1), ones.bool())
    chances = policy.steps(rollout, torch.arange(64)).log_probs.detach().exp().squeeze(1)
    assert float(chances.sum()) == pytest.approx(1.0, abs=1e-5) and chances[NEVER].tolist() == [0.0, 0.0]
    drawn = policy.sample(["abc"], 4000, torch.Generator().manual_seed(0)).held.tokens
    parts = torch.bincount(drawn.flatten(), minlength=64) / 4000
    assert float((parts - chances).abs().max()) < 0.03


def test_a_completion_that_is_never_said_is_refused():
    policy = make(template=False)
    with pytest.raises(UserError, match=r"row 1: completion: holds '<bos>' \(id 1\)"):
        policy.encode(["ab", "ab"], ["cd", "c<bos>d"], torch.tensor([0, 0]), torch.Generator())
    model = tiny_text.model()
    model.config.image_token_id = 3
    shown = transformers(model, tiny_text.tokenizer(pad_token="<eos>"), max_completion=9)
    assert shown.chat.never == (1, 3)  # a pad that is the end is said


def test_top_p_and_top_k_cut_off_the_unlikely_and_are_not_in_the_log_probabilities():
    policy = make(top_k=1)
    rollout = rollout_of(policy, group_size=2)
    assert torch.equal(rollout.held.tokens[0], rollout.held.tokens[1])
    assert torch.allclose(rollout.log_probs, chosen(policy, rollout), atol=1e-5)
    assert rollout.outputs[0] == policy.generate(PROMPTS[:1], [5], temperature=0.0)[0]
    assert rollout_of(make(top_p=1e-6), group_size=2).outputs == rollout.outputs


def test_generate_has_a_seed_for_each_prompt():
    policy = make()
    texts = policy.generate(["ab", "cd"], [3, 4])
    assert texts[1] == policy.generate(["cd"], [4])[0]
    with pytest.raises(UserError, match=r"call\.height"):
        policy.generate(["ab"], [0], height=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"truncate": "middle"}, "truncate"),
        ({"max_completion": 128}, "context"),
        ({"template": True}, "no chat template"),
        ({"lora": {"targets": ["to_x"]}}, "matches no linear layer"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        make(**arguments)


def test_a_folder_is_a_model_and_its_tokenizer(tmp_path):
    import mmalign as mm
    from mmalign.config import build_part

    made = tiny_text.model()
    made.save_pretrained(tmp_path)
    tiny_text.tokenizer(tiny_text.CHATML).save_pretrained(tmp_path)
    node = {"use": "transformers", "model": str(tmp_path), "dtype": "float32", "lora": {"rank": 2}, "max_completion": 9}
    policy = build_part({"policy": node}, "policy")
    own = transformers(made, tiny_text.tokenizer(tiny_text.CHATML), max_completion=9)
    assert policy.chat.prompt("a b\nc") == own.chat.prompt("a b\nc")
    assert policy.generate(["a b", "c"], [0, 1]) == own.generate(["a b", "c"], [0, 1])
    with pytest.raises(UserError, match=r"policy\.model"):
        mm.policies.transformers(str(tmp_path / "nowhere"))
    with pytest.raises(
        UserError, match=r"policy\.tokenizer: got '.*nowhere', takes a folder or a hub id .* of a tokenizer: no such folder"
    ):
        mm.policies.transformers(str(tmp_path), str(tmp_path / "nowhere"))
    for reader in ({"use_fast": False}, ["a"], 3):
        with pytest.raises(UserError, match=r"policy\.tokenizer: got .*, takes a tokenizer, or the folder or hub id of one"):
            mm.policies.transformers(str(tmp_path), reader)
        with pytest.raises(UserError, match=r"policy\.tokenizer: got .*, takes a tokenizer, or the folder or hub id of one"):
            mm.policies.transformers(made, reader)
    named = mm.policies.transformers(made, str(tmp_path), max_completion=9)
    assert named.chat.prompt("a b\nc") == own.chat.prompt("a b\nc")
    with pytest.raises(UserError, match=r"transformers\.dtype: got 'int8'"):
        mm.policies.transformers(str(tmp_path), dtype="int8")


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_gradient_checkpointing_changes_no_number(name):
    tables, calls = [], []
    for on in (False, True):
        policy = make(name, gradient_checkpointing=on)
        rollout = rollout_of(policy)
        table = policy.steps(rollout, torch.arange(6)).log_probs
        assert torch.allclose(table, rollout.log_probs, atol=1e-5)
        seen = []
        inner = next(module for module in policy.model.modules() if type(module).__name__ in ("LayerNorm", "Qwen2RMSNorm"))
        inner.register_forward_hook(lambda *told: seen.append(1))  # noqa: B023
        tables.append(gradient(policy, table))
        calls.append(len(seen))
    assert float((tables[0] - tables[1]).norm() / tables[0].norm()) < 1e-5
    assert calls[0] == 0 and calls[1] > 0  # computed again


def test_bf16_models_score_within_their_tolerance():
    policy = make("llama", dtype=torch.bfloat16, lora={"rank": 2})
    rollout = rollout_of(policy)
    steps = policy.steps(rollout, torch.tensor([0, 4]), torch.arange(3))
    assert policy.fit.shared and steps.log_probs.dtype == torch.float64
    assert float((steps.log_probs - steps.old).abs().max()) < policy.tolerance
    steps.log_probs.sum().backward()
    assert all(p.dtype == torch.float32 for p in policy.parameters().values())


def test_dropout_stays_off():
    import transformers as library

    config = tiny_text.config("gpt2")
    config.resid_pdrop = config.attn_pdrop = config.embd_pdrop = 0.5
    made = library.GPT2LMHeadModel(config).train()
    policy = transformers(made, tiny_text.tokenizer(), max_completion=9)
    rollout = rollout_of(policy)
    assert torch.equal(policy.steps(rollout, torch.arange(6)).log_probs, rollout.log_probs)


def test_a_model_that_is_handed_over_gets_the_type_that_is_asked_for():
    made = transformers(tiny_text.model("llama"), tiny_text.tokenizer(), max_completion=4, dtype="bfloat16", lora=Lora(rank=2))
    assert {p.dtype for name, p in made.model.named_parameters() if "lora_" not in name} == {torch.bfloat16}
    assert {p.dtype for p in made.parameters().values()} == {torch.float32}
