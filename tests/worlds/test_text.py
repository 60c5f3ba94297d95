"""The text world: its base, its judges, and the optimum that can be counted out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

import mmalign as mm
from mmalign.config import build, check, load
from mmalign.policies.settings import TextMemory
from mmalign.types import UserError
from mmalign.worlds.text import base, data, judges
from mmalign.worlds.text.optimum import text_optimum


def test_the_base_says_real_words_and_comes_to_an_end() -> None:
    policy = mm.policies.transformers(mm.worlds.text(), max_completion=data.WORDS)
    outputs = policy.sample(mm.worlds.text_prompts(count=64), 2, torch.Generator().manual_seed(0)).outputs
    known = set(data.frequencies())
    assert all(word in known for output in outputs for word in output.split())
    metrics = judges.text_readability()(outputs, [""] * 128)
    assert metrics["ended"] > 0.9 and metrics["perplexity"] < 600


def test_the_base_s_sentences_are_not_the_judge_s() -> None:
    base_lines, judge_lines = set(data.sentences("base")), set(data.sentences("judge"))
    assert not base_lines & judge_lines and len(base_lines) + len(judge_lines) == len(data.sentences()) == 4509
    assert all(5 <= len(line.split()) <= 24 and line.endswith(" .") for line in data.sentences())


def test_sentences_are_found_in_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydoc_data import topics

    monkeypatch.setattr(data, "_documents", lambda: iter(topics.topics.values()))  # the standard library's docstrings take seconds
    sentences = data.collect()
    assert len(sentences) > 500 and len(set(sentences) & set(data.sentences())) > 200


def test_plain_words_are_counted() -> None:
    reward = mm.worlds.text_plain()
    shares = reward(["the object is .", "sax xyzzy is decimal .", ".", ""], [""] * 4)
    assert shares.tolist() == pytest.approx([1.0, 1 / 4, 0.0, 0.0])
    with pytest.raises(UserError, match="takes completions as strings"):
        reward([3], [""])


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        ("is the name of the file .", 1.0),
        ("is the name of the file", 0.0),
        ("the the the the .", 0.0),
        ("is the object is the object is the object .", 0.0),
        ("of with not in a the is that .", 0.0),
        ("is of the to a in .", 0.0),
        ("is sax xml decimal arithmetic .", 0.0),
    ],
)
def test_gold_asks_for_plain_words_an_end_and_english(output: str, wanted: float) -> None:
    assert mm.worlds.text_gold()([output], ["the first argument"]).item() == wanted


def test_the_trigram_model_is_a_distribution() -> None:
    words = ["<s>", "<s>", "return", "the"]
    line = " ".join(words[2:])
    whole = judges.perplexity(line) ** 2  # 1 / (p(return) p(the | return))
    total = sum(whole / judges.perplexity(f"{line} {word}") ** 3 for word in judges._counts()[0])
    assert total == pytest.approx(1.0, abs=2e-3)  # the rest is for words that never were


def test_real_sentences_pass_and_shuffled_ones_do_not() -> None:
    limit, lines, rng = judges._limit(), data.sentences("judge"), random.Random(0)
    shuffled = [" ".join([*rng.sample(line.split()[:-1], len(line.split()) - 1), "."]) for line in lines]
    assert sum(judges.disorder(line) <= limit for line in lines) / len(lines) == pytest.approx(0.8, abs=0.01)
    assert sum(judges.disorder(line) <= limit for line in shuffled) / len(lines) < 0.06


def test_pairs_are_ended_sentences_in_the_order_of_their_rewards() -> None:
    pairs = mm.worlds.text_pairs(prompts=16, groups=2, best_of=3)
    plain = mm.worlds.text_plain()
    assert 24 <= len(pairs) <= 32
    for pair in pairs:
        scores = plain([pair.first, pair.second], [pair.prompt] * 2).tolist()
        assert scores == pytest.approx(list(pair.scores)) and pair.strength == (0.5 if scores[0] == scores[1] else 1.0)
        assert scores[0] >= scores[1] and pair.first.endswith(".") and pair.second.endswith(".")
    assert pairs == mm.worlds.text_pairs(prompts=16, groups=2, best_of=3)


def tiny() -> tuple[object, object]:
    """A language model of six words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<unk>", "<eos>", "a", "b", "c", "d", "e", "f"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", unk_token="<unk>", eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=10, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LlamaForCausalLM(config), tokens


def vowels(outputs: list[str], prompts: list[str]) -> torch.Tensor:
    return torch.tensor([float(sum(word in "ae" for word in output.split())) for output in outputs], dtype=torch.float64)


def test_all_that_can_be_said_adds_up() -> None:
    optimum = text_optimum(*tiny(), "a b", vowels, tokens=3, beta=0.5)
    assert len(optimum.texts) == 1 + 6 + 36 + 216 and float(optimum.base.sum()) == pytest.approx(1) == float(optimum.best.sum())
    assert float(optimum.best @ vowels(optimum.texts, [])) == pytest.approx(optimum.reward)
    tilted = optimum.base * (vowels(optimum.texts, []) / 0.5).exp()
    torch.testing.assert_close(optimum.best, tilted / tilted.sum())
    assert optimum.reward - 0.5 * optimum.kl == pytest.approx(0.5 * float(tilted.sum().log()))  # the value of the optimum is beta log Z


def test_grpo_ends_at_the_optimum_that_was_counted_out(tmp_path: Path) -> None:
    """REINFORCE with a baseline and the exact KL: the maximiser of E[r] - beta KL is known. Ids that are never said take no mass."""
    model, tokens = tiny()
    wanted = text_optimum(model, tokens, "a b", vowels, tokens=2, beta=0.5)
    before = float(wanted.base @ vowels(wanted.texts, []))
    policy = mm.policies.transformers(model, tokens, max_completion=2, memory=TextMemory(rows_at_once=384))
    method = mm.methods.dr_grpo(clip=0.5, beta=0.5, kl="exact", length=1)
    mm.online(
        policy,
        ["a b"],
        {"vowels": vowels},
        method,
        steps=60,
        evaluation={"every": 100, "samples": 1},
        run={"folder": str(tmp_path), "trackers": ()},
        batch={"prompts": 1, "group": 128, "micro_rows": 128},
        optimizer=mm.adamw(rate=0.03, decay="linear"),
    )
    now = text_optimum(model, tokens, "a b", vowels, tokens=2, beta=1e9)
    order = {text: number for number, text in enumerate(now.texts)}
    got = now.base[[order[text] for text in wanted.texts]]
    assert wanted.reward > before + 0.4
    assert float(got @ vowels(wanted.texts, [])) == pytest.approx(wanted.reward, abs=0.05)
    assert float((got * (got / wanted.best).log()).sum()) < 0.03


@pytest.mark.parametrize("name", ["grpo", "dpo", "ipo", "kto"])
def test_configs_of_the_world_train(name: str, tmp_path: Path) -> None:
    config = load(f"text/{name}")
    assert check(config) == []
    config["batch"] |= {"prompts": 2} if name == "grpo" else {"records": 4}
    config["run"] |= {"folder": str(tmp_path), "checkpoint_every": 2}
    config["evaluation"] |= {"every": 2, "prompts": ["the value of"], "samples": 2}
    records = {} if name == "grpo" else {"records": {"use": "text_pairs", "prompts": 4}}
    run = build({**config, **records, "steps": 2})
    rows = [json.loads(line) for line in (Path(run.path) / "metrics.jsonl").read_text().splitlines()]
    assert {"gold", "plain", "perplexity"} <= rows[-1].keys() | rows[0].keys() and (Path(run.path) / "report.html").exists()


def test_an_unknown_base_or_too_many_prompts_are_refused() -> None:
    with pytest.raises(UserError, match=r"text.model: got 'gpt', takes 'llama'|got model='gpt', takes llama"):
        mm.worlds.text(model="gpt")
    with pytest.raises(UserError, match="together at most"):
        mm.worlds.text_prompts(count=10**6)
    assert len(base.tokenizer()) == len(mm.worlds.text()[1])


def test_loading_shows_no_bar(capfd):
    mm.worlds.text(model="small")
    assert capfd.readouterr() == ("", "")
