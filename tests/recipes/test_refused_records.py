"""Records that only the policy refuses: put aside with their id, counted, and the run goes on."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

import mmalign as mm
from mmalign import config
from mmalign.policies.twins import visions
from mmalign.records import Pair, Ranking, Thumb
from mmalign.types import UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

GOOD = [Pair(f"what is {i}?", f"it is {i}.", f"dog {i}", 1.0, f"record-{i}") for i in range(10)]
ODD = {
    "a token that nobody says": Pair("strike it", "<bos>old new", "x", 1.0, "odd"),
    "a long prompt": Pair("q " * 100, "a", "b", 1.0, "odd"),
    "a long answer": Pair("q", "b", "red " * 30, 1.0, "odd"),
    "an empty answer": Pair("q", "", "b", 1.0, "odd"),
    "an end inside": Pair("q", "a<|im_end|>b", "b", 1.0, "odd"),
    "a picture": Pair([{"role": "user", "content": [{"type": "image", "path": "no.png"}]}], "a", "b", 1.0, "odd"),
    "an assistant's turn": Pair([{"role": "assistant", "content": "a"}], "a", "b", 1.0, "odd"),
}


def policy():
    return transformers(tiny_text.model(), tiny_text.tokenizer(tiny_text.CHATML), max_completion=32, device="cpu", lora={"rank": 2})


def run_of(tmp_path, records, *, method=None, name="run", **more):
    settings = {
        "steps": 6,
        "batch": {"records": 4, "micro_rows": 8},
        "evaluation": {"every": 100, "samples": 1, "call": {"max_completion": 2}},
    }
    settings |= {"run": {"name": name, "folder": str(tmp_path), "checkpoint_every": 2, "trackers": ()}, **more}
    chosen = settings.pop("policy", None) or policy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mm.offline(chosen, records, method or mm.methods.dpo(beta=0.1), **settings)


def named(run):
    return [json.loads(line) for line in (run.path / "broken.jsonl").read_text().splitlines()]


def rows(run):
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines if line["phase"] == "train"]


@pytest.mark.parametrize("what", ODD)
def test_one_record_that_the_policy_refuses_is_put_aside(tmp_path, what):
    run = run_of(tmp_path, [*GOOD[:5], ODD[what], *GOOD[5:]])
    assert [entry["id"] for entry in named(run)] == ["odd"] and "row " not in named(run)[0]["why"]
    assert [row["broken"] for row in rows(run)][-1] == 1.0 and len(rows(run)) == 6 and all(row["known"] == 1.0 for row in rows(run))


def test_a_record_that_is_named_by_a_number_is_not_taken_for_a_count(tmp_path, capsys):
    run_of(tmp_path, [*GOOD[:3], Pair("q", "", "b", 1.0, "19")], steps=1)
    assert "records: id 19 left out: " in capsys.readouterr().out


def test_a_run_with_a_refused_record_is_the_run_without_it(tmp_path):
    one = run_of(tmp_path, [GOOD[0], ODD["a long prompt"]], batch={"records": 1, "micro_rows": 8}, steps=3, name="one")
    other = run_of(tmp_path, [GOOD[0]], batch={"records": 1, "micro_rows": 8}, steps=3, name="other")
    same = lambda run: [{key: row[key] for key in ("loss", "margin", "grad_norm")} for row in rows(run)]  # noqa: E731
    assert same(one) == same(other)


def test_a_resumed_run_goes_on_as_the_whole_one_did(tmp_path):
    records = [*GOOD[:3], ODD["an empty answer"], *GOOD[3:]]
    whole = run_of(tmp_path, records, name="whole")
    run_of(tmp_path, records, name="cut", steps=4)
    resumed = run_of(tmp_path, records, name="cut", steps=6, resume=True)
    assert rows(resumed) == rows(whole) and named(resumed) == named(whole)


@pytest.mark.parametrize("kind", ["thumbs", "rankings"])
def test_other_kinds_of_records(tmp_path, kind):
    if kind == "thumbs":
        records = [Thumb(f"q {i}", "yes" if i % 2 else "no", float(i % 2), f"t{i}") for i in range(8)] + [Thumb("q", "", 1.0, "odd")]
        method = mm.methods.kto()
    else:
        records = [Ranking("q", ("a", "bb", "c"), (3.0, 2.0, 1.0), f"r{i}") for i in range(8)] + [
            Ranking("q", ("a", "", "c"), (3.0, 2.0, 1.0), "odd")
        ]
        method = mm.methods.dpo()
    assert [entry["id"] for entry in named(run_of(tmp_path, records, method=method))] == ["odd"]


def test_records_without_an_id_are_named_by_their_place(tmp_path):
    run = run_of(tmp_path, [*GOOD, ODD["a long prompt"]._replace(id="")], steps=5)
    assert all(entry["id"].startswith("record at ") for entry in named(run)) and named(run)


def test_data_that_the_policy_refuses_as_a_whole_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"3 are put aside and too few others are left; the last one, odd-\d: completion: got an empty one"):
        run_of(tmp_path, [Pair("q", "", "b", 1.0, f"odd-{i}") for i in range(3)])
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


IMAGES = [Pair("a handwritten seven", torch.zeros(1, 16, 16), torch.ones(1, 16, 16), 1.0, f"image-{i}") for i in range(8)]


def test_records_of_another_kind_are_refused_before_anything_is_read(tmp_path):
    forward = mm.policies.forward(mm.policies.diffusers(mm.worlds.digits(), device="cpu"))
    words = r"^records: their outputs are texts, and the policy learns from images or videos"
    images = r"^records: their outputs are images, and the policy learns from texts"
    with pytest.raises(UserError, match=words):
        run_of(tmp_path, GOOD, policy=forward)
    with pytest.raises(UserError, match=images):
        run_of(tmp_path, IMAGES)
    with pytest.raises(UserError, match=r"^evaluation\." + images[1:]):
        run_of(tmp_path, GOOD, evaluation={"every": 1, "samples": 1, "records": IMAGES, "prompts": ["q"]})
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


WORDS = {"use": "transformers", "model": {"use": "text"}, "max_completion": 8}
FORWARD = {"use": "forward", "of": {"use": "diffusers", "pipeline": {"use": "digits"}}}
CHECKED = [  # policy, method, records, what check says of them
    (WORDS, "dpo", {"use": "pairs", "path": __file__}, "records.use: pairs reads images or videos, and the policy transformers"),
    (
        WORDS, "dpo",
        {"use": "mixture", "of": {"a": {"use": "texts", "path": __file__}, "b": {"use": "hub_pairs", "name": "a/b"}}},
        "records.of.b.use: hub_pairs reads images or videos, and the policy transformers learns from texts; takes hub_texts",
    ),
    (FORWARD, "flow_dpo", {"use": "texts", "path": __file__}, "records.use: texts reads texts, and the policy forward learns from images"),
    (FORWARD, "flow_dpo", {"use": "pairs", "path": __file__}, None),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "method", "records", "line"), CHECKED)
def test_check_says_it_of_a_loader_of_the_other_kind(policy, method, records, line):
    mistakes = config.check(
        {"use": "offline", "policy": policy, "method": {"use": method}, "records": records, "steps": 1, "run": {"name": "r"}}
    )
    assert [mistake.startswith(line) for mistake in mistakes] == ([True] if line else []), mistakes


def test_a_picture_that_does_not_decode_is_put_aside(tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(whole[: len(whole) // 2])
    ask = lambda name: [{"role": "user", "content": [{"type": "image", "path": str(tmp_path / name)}, {"type": "text", "text": "what"}]}]  # noqa: E731
    records = [Pair(ask("good.png"), "red", f"blue {i}", 1.0, f"r{i}") for i in range(5)] + [
        Pair(ask("bad.png"), "red", "blue", 1.0, "odd")
    ]
    seeing = transformers(*visions.twin("LlavaForConditionalGeneration"), max_completion=16, device="cpu", lora={"rank": 2})
    run = run_of(tmp_path, records, policy=seeing, steps=3, batch={"records": 2, "micro_rows": 4})
    assert [entry["id"] for entry in named(run)] == ["odd"] and "bad.png" in named(run)[0]["why"]
    assert torch.isfinite(torch.tensor([row["loss"] for row in rows(run)])).all()


def test_a_record_at_the_end_of_a_round_and_at_the_start_of_the_next_stops_nothing(tmp_path):
    for seed in range(6):
        batch, settings = {"records": 1, "micro_rows": 8}, {"name": f"run{seed}", "folder": str(tmp_path), "seed": seed, "trackers": ()}
        run = run_of(tmp_path, [GOOD[0], ODD["an empty answer"], ODD["a long answer"]._replace(id="other")], batch=batch, run=settings)
        assert {entry["id"] for entry in named(run)} == {"odd", "other"}


def test_data_are_told_before_weights_are_loaded(tmp_path, monkeypatch):
    from mmalign.config import build

    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"caption": "x"}\n')
    node = {
        "use": "offline", "policy": {"use": "transformers", "model": str(tmp_path / "nowhere")}, "method": {"use": "dpo"},
        "records": {"use": "texts", "path": "rows.jsonl"}, "steps": 1,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"^records: no usable record \(1 broken"):
        build(node)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    both = {**node["policy"], "lora": {"rank": 2}, "train": {"language": "full"}}
    with pytest.raises(UserError, match=r"^policy\.train: got lora too, takes one of them"):
        build({**node, "policy": both})
    with pytest.raises(UserError, match=r"^policy\.model: got .*nowhere"):
        build(node)
