"""Language models guided while they decode, on tiny models with random weights."""

from __future__ import annotations

import math

import pytest
import torch

import mmalign as mm
from mmalign.guidance.tokens import log_ratio, steered
from mmalign.types import UserError

WORDS = 12
PROMPT = torch.tensor([[1, 5, 6], [0, 1, 7]])  # padded on the left


def model(seed=0, words=WORDS):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=words, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for p in network.parameters():
                p.mul_(3.0)
    return network


def greedy(of, processors=None, length=8):
    more = {"logits_processor": processors} if processors is not None else {}
    return of.generate(PROMPT, attention_mask=(PROMPT != 0).long(), max_new_tokens=length, do_sample=False, **more)


def test_proxy_tuning_at_0_is_the_model_and_of_the_model_itself_the_tuned_one():
    base, tuned = model(0), model(1)
    assert torch.equal(greedy(base, mm.guidance.proxy_tuning(tuned=tuned, untuned=base, scale=0.0)), greedy(base))
    tokens = greedy(base, mm.guidance.proxy_tuning(tuned=tuned, untuned=base, scale=1.0))
    assert torch.equal(tokens, greedy(tuned))
    assert not torch.equal(tokens, greedy(base))


def test_what_is_read_behind_a_cache_is_what_is_read_at_once():
    base, small = model(0), model(1)
    processor = mm.guidance.contrastive(amateur=small, scale=2.0, plausible=0.0)
    ids, scores = PROMPT, torch.zeros(2, WORDS)
    for _ in range(4):  # token by token, and then a text that does not go on from there
        logits = processor(ids, scores)
        with torch.no_grad():
            mask = (ids != 0).long().cummax(1).values
            amateur = small(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, -1]
        expected = 2 * scores.log_softmax(-1) - amateur.log_softmax(-1)
        assert torch.allclose(logits, expected, atol=1e-4)
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    assert torch.allclose(processor(PROMPT, scores), 2 * scores.log_softmax(-1) - _first(small).log_softmax(-1), atol=1e-4)
    assert torch.equal(greedy(base, mm.guidance.contrastive(amateur=small, scale=1.0)), greedy(base))


def _first(of):
    mask = (PROMPT != 0).long()
    with torch.no_grad():
        return of(input_ids=PROMPT, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, -1]


def test_implausible_words_are_left_out():
    scores = torch.tensor([[0.0, -1.0, -5.0] + [-9.0] * (WORDS - 3)])
    logits = mm.guidance.contrastive(amateur=model(1), scale=3.0, plausible=0.1)(torch.tensor([[1]]), scores)
    assert logits.isfinite()[0].tolist() == [True, True] + [False] * (WORDS - 2)


def test_a_value_tilts_the_next_token():
    base = model(0)
    value = lambda ids: (ids == 9).sum(1).float()  # noqa: E731
    assert bool((greedy(base, mm.guidance.value_guided(value=value, scale=100.0, top=WORDS))[:, 3:] == 9).all())
    assert torch.equal(greedy(base, mm.guidance.value_guided(value=value, scale=0.0)), greedy(base))
    with pytest.raises(UserError, match="takes one number for each of 2 texts"):
        greedy(base, mm.guidance.value_guided(value=lambda ids: ids, top=1))


def test_rectification_is_a_bound_and_not_a_tilt():
    scores = torch.tensor([[0.5, 0.3, 0.2]]).log()
    dead = torch.tensor([[-0.9, -0.1, 0.0]])
    chances = mm.guidance.rectified(dead_end=lambda ids: dead)(torch.tensor([[1]]), scores).softmax(-1)
    assert chances[0].tolist() == pytest.approx([0.1 / 0.6, 0.3 / 0.6, 0.2 / 0.6])
    safe = mm.guidance.rectified(dead_end=lambda ids: torch.zeros(1, 3))(torch.tensor([[1]]), scores).softmax(-1)
    assert torch.allclose(safe, scores.exp())
    lost = mm.guidance.rectified(dead_end=lambda ids: torch.full((1, 3), -1.0))(torch.tensor([[1]]), scores).softmax(-1)
    assert lost.isfinite().all() and float(lost.sum()) == pytest.approx(1.0)
    with pytest.raises(UserError, match="takes -1 to 0"):
        mm.guidance.rectified(dead_end=lambda ids: -dead)(torch.tensor([[1]]), scores)


def nines(ids, width):
    return (ids[:, width:] == 9).sum(1).double()


def test_particles_of_text_are_unbiased():
    """The estimate of E exp(r) of two tokens, against all of them counted out."""
    base, scale = model(0), 1.5
    prompt = PROMPT[:1]
    first = _first(base)[:1].double().softmax(-1)[0]
    truth = 0.0
    for a in range(WORDS):
        if a == 2:
            truth += float(first[a])
            continue
        with torch.no_grad():
            second = base(input_ids=torch.cat([prompt, torch.tensor([[a]])], 1)).logits[0, -1].double().softmax(-1)
        rewards = torch.tensor([scale * ((a == 9) + (b == 9)) for b in range(WORDS)]).double()
        truth += float(first[a] * (second * rewards.exp()).sum())
    many = prompt.repeat(600, 1)
    for ess in (0.0, 1.0):
        decoded = steered(base, many, nines, particles=4, block=1, max_new_tokens=2, scale=scale, ess=ess, select="draw")
        estimates = decoded.log_normaliser.exp()
        assert float(estimates.mean()) == pytest.approx(truth, abs=4 * float(estimates.std()) / 600**0.5)
    assert decoded.ledger.evaluations == 600 * 4 * 2 and decoded.ledger.rewards == 600 * 4 * 2


def test_blocks_raise_the_value_and_come_again():
    base = model(0)
    one = steered(base, PROMPT, nines, particles=1, block=4, max_new_tokens=12)
    best = steered(base, PROMPT, nines, particles=8, keep=1, block=12, max_new_tokens=12)
    blocks = steered(base, PROMPT, nines, particles=8, keep=1, block=2, max_new_tokens=12)
    assert float(one.values.mean()) <= float(best.values.mean()) <= float(blocks.values.mean())
    assert float(blocks.values.mean()) > float(one.values.mean())
    again = steered(base, PROMPT, nines, particles=8, keep=1, block=2, max_new_tokens=12)
    assert torch.equal(again.tokens, blocks.tokens)
    assert torch.equal(nines(blocks.tokens, 0), blocks.values)


def test_rows_that_are_over_stay_over():
    decoded = steered(model(0), PROMPT, nines, particles=6, block=3, max_new_tokens=30, scale=0.0, select="draw")
    for row in decoded.tokens.tolist():
        if 2 in row:
            assert set(row[row.index(2) + 1 :]) <= {0}


def test_beams_follow_what_two_small_models_say():
    base, tuned, untuned = model(0), model(1), model(2)
    decoded = mm.guidance.beam_search(base, PROMPT, tuned=tuned, untuned=untuned, width=2, successors=3, block=3, max_new_tokens=9)
    plain = steered(base, PROMPT, log_ratio(tuned, untuned), particles=1, max_new_tokens=9)
    assert float(decoded.values.mean()) > float(plain.values.mean())
    ids = torch.cat([PROMPT, decoded.tokens], 1)
    assert torch.allclose(log_ratio(tuned, untuned)(ids, 3), decoded.values, atol=1e-4)
    assert torch.allclose(log_ratio(tuned, tuned)(ids, 3), torch.zeros(2).double())


def test_a_reward_of_texts_is_a_value():
    class Letters:
        def batch_decode(self, ids, skip_special_tokens):
            return ["".join(map(str, row.tolist())) for row in ids]

    seen = []

    def reward(outputs, prompts):
        seen.append(prompts)
        return [float(text.count("9")) for text in outputs]

    value = mm.guidance.text_value(reward, Letters(), ["a", "b"])
    assert value(torch.tensor([[1, 9, 9], [1, 3, 4], [1, 9, 3], [1, 4, 4]]), 1).tolist() == [2.0, 0.0, 1.0, 0.0]
    assert seen == [["a", "a", "b", "b"]]


def test_urial_shows_three_examples_and_asks_at_the_end():
    (prompt,) = mm.guidance.urial(["Why is the sky blue?"])
    assert prompt.endswith("# Person:\nWhy is the sky blue?\n\n# Assistant:\n") and prompt.count("# Assistant:") == 4
    with pytest.raises(UserError, match="would end it"):
        mm.guidance.urial(["# Person: hello"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: steered(model(), PROMPT, nines, particles=4, keep=3), "takes a number that divides them"),
        (lambda: steered(model(), PROMPT, nines, temperature=0.0), "takes a number above 0"),
        (lambda: steered(model(), PROMPT, nines, scale=math.inf), "keep=1 takes the best"),
        (lambda: steered(model(), PROMPT, lambda ids, width: ids), "takes one number for each of 8 texts"),
        (lambda: greedy(model(), mm.guidance.proxy_tuning(tuned=model(1, 20), untuned=model(2, 20))), "takes models of one tokenizer"),
        (lambda: mm.guidance.contrastive(amateur=model(), plausible=2.0), "takes 0 to 1"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_what_comes_after_the_end_does_not_count():
    value, text = log_ratio(model(1), model(2)), [1, 5, 6, 4, 2]
    values = value(torch.tensor([[*text, 0, 0], [*text, 7, 8]]), 3)
    assert float(values[0]) == pytest.approx(float(values[1]), abs=1e-5)
    assert float(values[0]) != pytest.approx(float(value(torch.tensor([[1, 5, 6, 4, 3, 7, 8]]), 3)), abs=1e-3)


def test_rows_that_move_take_their_cache_along():
    from mmalign.guidance.ledger import Ledger
    from mmalign.guidance.tokens import _Text

    base = model(0)
    prompts = torch.tensor([[1, 5, 6], [1, 9, 7], [1, 3, 4]])
    moved = _Text(base, prompts, torch.Generator().manual_seed(0), Ledger())
    moved.grow(2, 1.0)
    moved.take(torch.tensor([2, 2, 0]))
    plain = _Text(base, moved.ids.clone(), torch.Generator().manual_seed(0), Ledger())
    plain.over = moved.over.clone()
    for text in (moved, plain):
        text.grow(4, 1e-4)  # the likeliest
    assert torch.equal(moved.ids, plain.ids)


def test_a_text_of_the_right_length_that_does_not_go_on_is_read_anew():
    processor, scores = mm.guidance.contrastive(amateur=model(1), scale=2.0, plausible=0.0), torch.zeros(1, WORDS)
    processor(torch.tensor([[1, 5, 6]]), scores)
    logits = processor(torch.tensor([[1, 9, 8, 7]]), scores)
    fresh = mm.guidance.contrastive(amateur=model(1), scale=2.0, plausible=0.0)(torch.tensor([[1, 9, 8, 7]]), scores)
    assert torch.allclose(logits, fresh, atol=1e-5)
