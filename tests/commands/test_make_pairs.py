"""Files of pairs that a policy makes: its ranked answers, and what it says under a handicap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mmalign as mm
from mmalign.records import Pair, Thumb
from mmalign.types import UserError
from tests.helpers import tiny_text


@pytest.fixture(scope="module")
def policy():
    return mm.policies.transformers(tiny_text.model(), tiny_text.tokenizer(), max_completion=9)


def letters(outputs, prompts, **_):
    return torch.tensor([float("nan") if "z" in text else float(text.count("e")) for text in outputs], dtype=torch.float64)


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


ASKED = [f"{word} " for word in ("one", "two", "three", "four", "five")]


def test_ranked_answers_of_its_own(tmp_path, policy):
    settings = {"group": 6, "prompts_at_once": 2, "cut": "keep"}
    counts = mm.commands.make_pairs(policy, ASKED, {"e": letters}, out=str(tmp_path / "new" / "a.jsonl"), **settings)
    rows = lines(tmp_path / "new" / "a.jsonl")
    assert counts["pairs"] == len(rows) > 2 and counts["prompts"] == 5 and counts["pairs"] + counts["tied"] == 5 and counts["missing"] > 0
    drawn = {prompt: [] for prompt in ASKED}
    for start in (0, 2, 4):
        from mmalign.training.seeds import stream

        rollout = policy.sample(ASKED[start : start + 2], 6, stream(0, start, 0, "pairs"))
        for prompt, output in zip(rollout.prompts, rollout.outputs, strict=True):
            drawn[prompt].append(output)
    for line in rows:
        scores = [text.count("e") for text in drawn[line["prompt"]] if "z" not in text]
        assert (line["score_chosen"], line["score_rejected"]) == (max(scores), min(scores))
        assert line["chosen"].count("e") == max(scores) and line["rejected"].count("e") == min(scores)
        assert ASKED[int(line["id"])] == line["prompt"] and {line["chosen"], line["rejected"]} <= set(drawn[line["prompt"]])
    records = mm.data.texts(str(tmp_path / "new" / "a.jsonl"))
    assert records.first(9)[0].scores == (rows[0]["score_chosen"], rows[0]["score_rejected"])
    wide = mm.commands.make_pairs(policy, ASKED, {"e": letters}, out=str(tmp_path / "b.jsonl"), least_gap=1.0, most=3, **settings)
    several = lines(tmp_path / "b.jsonl")
    assert all(line["score_chosen"] - line["score_rejected"] > 1 for line in several) and wide["pairs"] == len(several)
    assert not list(tmp_path.rglob("*.tmp"))


def test_answers_under_a_handicap_against_those_of_the_data(tmp_path, policy):
    records = [
        Pair("one ", "yes", "no", 1.0, "a"),
        Pair("two ", "no", "yes sir", 0.0, "b"),
        Thumb("three ", "ok", 1.0, "c"),
        Thumb("x ", "no", 0.0),
        Pair("four ", "yes", "no", 0.5, "tie"),
    ]
    for kind in (Pair, Thumb):
        some, out = [record for record in records if isinstance(record, kind)], tmp_path / f"{kind.__name__}.jsonl"
        counts = mm.commands.make_rejected(policy, some, out=str(out), count=4, call={"temperature": 2.0}, records_at_once=3, cut="keep")
        assert counts["records"] == 4 == counts["pairs"] + counts["alike"] and counts["pairs"] == len(lines(out))
        better = {"a": ("one ", "yes"), "b": ("two ", "yes sir"), "c": ("three ", "ok")}
        assert all((line["prompt"], line["chosen"]) == better[line["id"]] and line["rejected"] for line in lines(out))
        assert len({line["rejected"] for line in lines(out)}) > 1
    again = mm.commands.make_rejected(
        policy, some, out=str(tmp_path / "c.jsonl"), count=4, call={"temperature": 2.0}, records_at_once=2, cut="keep"
    )
    assert lines(tmp_path / "c.jsonl") == lines(out) and again == counts
    none = mm.commands.make_rejected(
        policy, [Pair("p ", "a b", "x")], out=str(tmp_path / "d.jsonl"), count=3, alike=0.0, call={"temperature": 0.5}, cut="keep"
    )
    assert none["pairs"] + none["alike"] == 3


def test_what_is_too_like_the_better_answer_is_left_out(tmp_path, policy):
    answer = policy.generate(["one "], [0], temperature=1e-3)[0]
    records = [Pair("one ", answer, "x", 1.0, "a")]
    counts = mm.commands.make_rejected(policy, records, out=str(tmp_path / "a.jsonl"), count=2, call={"temperature": 1e-3}, cut="keep")
    assert counts == {"pairs": 0, "records": 2, "alike": 2, "cut": 0} and lines(tmp_path / "a.jsonl") == []


def test_answers_without_an_end_are_left_out_and_the_rest_can_be_trained_on(tmp_path, policy):
    """Tokens are characters here: what is cut has 9 of them, and with the end that training adds it would have 10."""
    questions, records = ASKED * 6, [Pair("one ", "yes", "no", 1.0, "a")] * 30
    made = mm.commands.make_pairs(policy, questions, {"e": letters}, out=str(tmp_path / "a.jsonl"), group=6)
    kept = mm.commands.make_pairs(policy, questions, {"e": letters}, out=str(tmp_path / "b.jsonl"), group=6, cut="keep")
    assert made["cut"] > made["pairs"] > 0 == kept["cut"] and kept["pairs"] > made["pairs"]
    rejected = mm.commands.make_rejected(policy, records, out=str(tmp_path / "c.jsonl"), count=30)
    assert rejected["pairs"] > 0 < rejected["cut"] and rejected["pairs"] + rejected["alike"] + rejected["cut"] == rejected["records"] == 30
    for name in ("a", "c"):
        some = lines(tmp_path / f"{name}.jsonl")
        answers = [line["rejected"] for line in some] + ([line["chosen"] for line in some] if name == "a" else [])
        policy.encode([some[0]["prompt"]] * len(answers), answers, torch.arange(len(answers)), torch.Generator())
    cut = [line["chosen"] for line in lines(tmp_path / "b.jsonl") if len(line["chosen"]) == 9][:1]
    with pytest.raises(UserError, match="has 10 tokens, max_completion is 9"):
        policy.encode(["one "], cut, torch.zeros(1, dtype=torch.int64), torch.Generator())


def test_mistakes_leave_nothing_behind(tmp_path, policy):
    (tmp_path / "there.jsonl").write_text("")
    for wrong, line in (
        ({"out": str(tmp_path / "there.jsonl")}, "is there already"),
        ({"group": 1}, "group: got 1, takes 2 or more"),
        ({"most": 0}, "most: got 0, takes 1"),
    ):
        with pytest.raises(UserError, match=line):
            mm.commands.make_pairs(policy, ASKED, {"e": letters}, **{"out": str(tmp_path / "new.jsonl"), **wrong})
    with pytest.raises(UserError, match="alike: got 2"):
        mm.commands.make_rejected(policy, [Pair("p", "a", "b")], out=str(tmp_path / "new.jsonl"), count=1, alike=2)
    with pytest.raises(UserError, match="reward e: raised"):
        mm.commands.make_pairs(policy, ASKED, {"e": lambda outputs, prompts: 1 / 0}, out=str(tmp_path / "new.jsonl"))
    assert [file.name for file in tmp_path.iterdir()] == ["there.jsonl"]


def test_the_command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from mmalign.cli import app

    tiny_text.model().save_pretrained(tmp_path / "base")
    tiny_text.tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "pairs.yaml").write_text(
        f"use: make_pairs\npolicy: {{use: transformers, model: {tmp_path / 'base'}, max_completion: 6}}\nprompts: [ab, cd]\n"
        f"rewards:\n  short: {{use: length, most: 1, unit: characters, soft: 1}}\nout: {tmp_path / 'out.jsonl'}\ngroup: 3\n"
    )
    done = CliRunner().invoke(app, ["pairs", str(tmp_path / "pairs.yaml")])
    assert done.exit_code == 0 and f"{tmp_path / 'out.jsonl'}: " in done.output and "2 prompts" in done.output
    done = CliRunner().invoke(app, ["train", str(tmp_path / "pairs.yaml"), f"out={tmp_path / 'again.jsonl'}"])
    assert done.exit_code == 0 and f"make_pairs: {tmp_path / 'again.jsonl'} (" in done.output and "2 prompts" in done.output
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "out.jsonl").read_text()
    (tmp_path / "scores.yaml").write_text(
        f"use: calibrate\npolicy: {{use: transformers, model: {tmp_path / 'base'}, max_completion: 6}}\nprompts: [ab, cd]\n"
        f"rewards:\n  short: {{use: length, most: 1, unit: characters, soft: 1}}\nout: {tmp_path / 'scores.jsonl'}\nsamples: 2\n"
    )
    done = CliRunner().invoke(app, ["train", str(tmp_path / "scores.yaml")])
    assert done.exit_code == 0 and f"calibrate: {tmp_path / 'scores.jsonl'}\n" in done.output
    assert len(lines(tmp_path / "scores.jsonl")) == 2
    (tmp_path / "other.yaml").write_text("use: online\n")
    assert CliRunner().invoke(app, ["pairs", str(tmp_path / "other.yaml")]).exit_code == 2


class Fixed:
    """A policy that gives answers by heart; rewards are what they say."""

    def __init__(self, *groups):
        self.groups = dict(zip(ASKED, groups, strict=False))

    def sample(self, prompts, group_size, rng, *, step=0):
        from mmalign.types import Rollout

        outputs = [text for prompt in prompts for text in self.groups[prompt]]
        mask, group = torch.ones(len(outputs), 1, dtype=torch.bool), torch.arange(len(prompts)).repeat_interleave(group_size)
        return Rollout([prompt for prompt in prompts for _ in range(group_size)], outputs, mask.double(), mask, group)


def told(outputs, prompts, **_):
    return torch.tensor([float(text) for text in outputs], dtype=torch.float64)


def test_each_answer_is_in_one_pair_and_what_has_no_score_in_none(tmp_path):
    policy = Fixed(["3", "nan", "1", "5", "2", "4"], ["nan", "nan", "nan", "nan", "nan", "7"], ["1", "1.0", "1", "1", "1", "1"])
    counts = mm.commands.make_pairs(policy, ASKED[:3], {"r": told}, out=str(tmp_path / "a.jsonl"), group=6, most=9)
    pairs = [(line["chosen"], line["rejected"], line["id"]) for line in lines(tmp_path / "a.jsonl")]
    assert pairs == [("5", "1", "0-0"), ("4", "2", "0-1")]
    assert counts == {"pairs": 2, "prompts": 3, "tied": 2, "missing": 6, "cut": 0, "empty": 0}


def lengths(outputs, prompts, **_):
    return torch.tensor([float(len(text)) for text in outputs], dtype=torch.float64)


def test_answers_of_several_policies_are_ranked_together(tmp_path):
    cold, warm = Fixed(["aa", "aaa"], ["a", "bb"]), Fixed(["aaaa", "b"], ["bbb", "bbbbb"])
    counts = mm.commands.make_pairs(cold, ASKED[:2], {"l": lengths}, samplers={"w": warm}, out=str(tmp_path / "a.jsonl"), group=2, most=2)
    pairs = [(line["chosen"], line["rejected"], line["id"]) for line in lines(tmp_path / "a.jsonl")]
    assert pairs == [("aaaa", "b", "0-0"), ("aaa", "aa", "0-1"), ("bbbbb", "a", "1-0"), ("bbb", "bb", "1-1")] and counts["pairs"] == 4


def test_an_answer_without_a_word_is_in_no_pair(tmp_path):
    counts = mm.commands.make_pairs(Fixed(["", " ", "a", "bb"]), ASKED[:1], {"l": lengths}, out=str(tmp_path / "a.jsonl"), group=4, most=2)
    assert [(line["chosen"], line["rejected"]) for line in lines(tmp_path / "a.jsonl")] == [("bb", "a")]
    assert (counts["empty"], counts["missing"], counts["pairs"]) == (2, 0, 1) and len(
        mm.data.texts(str(tmp_path / "a.jsonl")).first(9)
    ) == 1


def test_a_model_that_sees_answers_with_its_picture_hidden(tmp_path):
    from mmalign.policies.twins import visions
    from mmalign.rooms import resource

    model, processor = visions.twin("LlavaForConditionalGeneration")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8.0)  # so that what is seen changes what is said
    policy = mm.policies.transformers(model, processor, max_completion=6, device="cpu")
    source = str(resource("assets/pictures/pairs.jsonl"))
    pairs_of = {}
    for share in (0.0, 1.0):
        out, call = tmp_path / f"{share}.jsonl", {"hidden_media": share, "temperature": 1.0}
        counts = mm.commands.make_rejected(policy, mm.data.picture_texts(source), out=str(out), count=4, call=call, cut="keep")
        assert counts == {"pairs": 4, "records": 4, "alike": 0, "cut": 0}
        pairs_of[share] = [(line["prompt"], line["chosen"], line["rejected"]) for line in lines(out)]
    assert [row[:2] for row in pairs_of[0.0]] == [row[:2] for row in pairs_of[1.0]] and pairs_of[0.0] != pairs_of[1.0]
    again = mm.data.picture_texts(str(tmp_path / "1.0.jsonl")).first(9)
    assert {pair.second for pair in again} <= {row[2] for row in pairs_of[1.0]} and again[0].prompt[0]["content"][0]["type"] == "image"


def test_an_answer_is_guided_by_the_better_one_and_its_pair_is_not(tmp_path):
    class Echo:
        kind = "token"

        def generate(self, prompts, seeds, **call):
            return [f"{prompt}!" for prompt in prompts]

    records = [Pair("one ", "yes", "no", 1.0, "a"), Pair("two ", "no", "yes sir", 0.0, "b")]
    mm.commands.make_rejected(Echo(), records, out=str(tmp_path / "a.jsonl"), count=2, guide="like {answer}")
    assert {(line["prompt"], line["rejected"]) for line in lines(tmp_path / "a.jsonl")} == {
        ("one ", "one like yes!"), ("two ", "two like yes sir!")
    }  # fmt: skip


def test_answers_drawn_on_changed_pictures_stand_beside_the_own_prompt(tmp_path):
    """What the policy is asked has the changed picture, what is written has its own."""
    from PIL import Image

    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "a.png")
    asked = []

    class Answering:
        def generate(self, prompts, seeds, **call):
            asked.extend(prompts)
            return ["worse"] * len(prompts)

    talk = [{"role": "user", "content": [{"type": "image", "path": str(tmp_path / "a.png")}, {"type": "text", "text": "which?"}]}]
    settings = {"pictures": {"transform": "invert", "cache": str(tmp_path / "cache")}, "count": 2}
    records = [Thumb(talk, "red", 1.0, "0"), Thumb("no picture", "hen", 1.0, "1")]
    mm.commands.make_rejected(Answering(), records, out=str(tmp_path / "r.jsonl"), **settings)
    changed = next(prompt for prompt in asked if not isinstance(prompt, str))[0]["content"][0]["path"]
    assert Image.open(changed).getpixel((0, 0)) == (55, 245, 245) and "no picture" in asked
    assert {json.dumps(line["prompt"]) for line in lines(tmp_path / "r.jsonl")} == {json.dumps(talk), '"no picture"'}
    with pytest.raises(UserError, match=r"make_rejected\.pictures: got transforms .* takes transform, and settings, seed, cache"):
        mm.commands.make_rejected(Answering(), records, out=str(tmp_path / "s.jsonl"), count=1, pictures={"transforms": "invert"})
