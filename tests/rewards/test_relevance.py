"""Relevance and its regularisers, repetition, chrF and BLEU."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import mmalign as mm
from mmalign.types import UserError
from tests.helpers.tiny_models import ANSWERS, GOLDEN, PROMPTS, text_rewards


def test_repetition():
    reward = mm.rewards.repetition(n=2)
    assert reward(["a b a b", "a b c", "A b a B", "a", ""], ["p"] * 5).tolist() == pytest.approx([2 / 3, 1, 2 / 3, 1, 1])
    assert mm.rewards.repetition(n=2, case=True)(["A b a B"], ["p"]).item() == 1
    assert mm.rewards.repetition(n=1)(["a a a b"], ["p"]).item() == 0.5
    with pytest.raises(UserError, match=r"repetition\.n: got 0"):
        mm.rewards.repetition(n=0)


def test_golden_scores(models):
    scores = text_rewards(models)["relevance"](ANSWERS, PROMPTS)
    assert scores.tolist() == pytest.approx(json.loads(GOLDEN.read_text())["relevance"], abs=2e-4)


def test_relevance_is_a_product(models):
    from transformers import AutoModel, AutoTokenizer

    model, words = AutoModel.from_pretrained(models / "encoder").eval(), AutoTokenizer.from_pretrained(models / "encoder")

    def mean(text):
        with torch.no_grad():
            return model(**words(text, return_tensors="pt")).last_hidden_state[0].double().mean(0)

    answer, question, true = "two blue birds on a wire two blue birds on a wire", "a red fox", "birds on a wire"
    reward = mm.rewards.relevance(weights=str(models / "encoder"), closed=(-10.0, 30.0), words=50, device="cpu", rows_at_once=2)
    distinct = 6 / 10  # of the trigrams of six words said twice
    product = float(mean(answer) @ mean(question))
    assert reward([answer], [question]).item() == pytest.approx(product * 12 / 50 * distinct, rel=1e-4)
    talk = [{"role": "user", "content": question}]
    assert reward([answer], [talk]).item() == pytest.approx(product * 12 / 50 * distinct, rel=1e-4)
    level = (float(mean(answer) @ mean(true)) + 10) / 40
    assert 0 < level < 1
    assert reward([answer, answer], [question] * 2, reference=[true, ""]).tolist() == pytest.approx(
        [level * distinct, product * 12 / 50 * distinct], rel=1e-4
    )
    far = mm.rewards.relevance(weights=str(models / "encoder"), closed=(1e6, 1e7), device="cpu")
    assert far([answer], [question], reference=[true]).item() == 0
    with pytest.raises(UserError, match=r"relevance\.weights: got '\./nowhere'"):
        mm.rewards.relevance(weights="./nowhere")
    with pytest.raises(UserError, match="relevance: got closed="):
        mm.rewards.relevance(closed=(1.0, 0.0))


def test_overlap_is_sacrebleu_s():
    sacrebleu = pytest.importorskip("sacrebleu")
    texts, references = ["the cat sat on the mat", "a dog"], ["the cat sat on a mat", ["the dog", "a dog"]]
    chrf = mm.rewards.text_overlap()(texts, ["p"] * 2, answer=references)
    assert chrf.tolist() == pytest.approx([sacrebleu.sentence_chrf(texts[0], [references[0]]).score / 100, 1])
    bleu = mm.rewards.text_overlap(metric="bleu")(texts, ["p"] * 2, answer=references)
    assert bleu.tolist() == pytest.approx([sacrebleu.sentence_bleu(texts[0], [references[0]]).score / 100, 1])
    assert mm.rewards.text_overlap(case=False)(["A DOG"], ["p"], answer=["a dog"]).item() == pytest.approx(1)
    with pytest.raises(UserError, match=r"text_overlap\.tokenize: got 'nothing'"):
        mm.rewards.text_overlap(metric="bleu", tokenize="nothing")(["a"], ["p"], answer=["a"])


def test_overlap_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match="text_overlap: needs the package sacrebleu"):
        mm.rewards.text_overlap()
    with pytest.raises(UserError, match=r"text_overlap\.metric: got 'rouge'"):
        mm.rewards.text_overlap(metric="rouge")
    with pytest.raises(UserError, match=r"text_overlap\.tokenize: got '13a' with chrf"):
        mm.rewards.text_overlap(tokenize="13a")


def test_entailment_is_the_classifier_s_own_word(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "rains", "is", "dry", "wet"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": len(words)}
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(**sizes, id2label={0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}, num_labels=3)
    ).eval()
    BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"), model_max_length=32).save_pretrained(tmp_path / "m")
    model.save_pretrained(tmp_path / "m")
    said = mm.rewards.entailment(weights=str(tmp_path / "m"), device="cpu", rows_at_once=2)(["it is wet", "dry", "it"], ["it rains"] * 3)
    tokens = BertTokenizerFast.from_pretrained(tmp_path / "m")("it rains", "dry", return_tensors="pt")
    wanted = model(**tokens).logits.double().softmax(-1)[0]
    assert [said[part][1].item() for part in ("contradiction", "neutral", "entailment")] == pytest.approx(wanted.tolist(), abs=1e-5)
    by_column = mm.rewards.entailment(weights=str(tmp_path / "m"), device="cpu", column="source")
    assert by_column(["dry"], ["?"], source=["it rains"])["neutral"].item() == pytest.approx(wanted[1].item(), abs=1e-5)
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match=r"entailment\.weights: .* tells a, b, c apart, takes a classifier of entailment"):
        mm.rewards.entailment(weights=str(tmp_path / "m"))
