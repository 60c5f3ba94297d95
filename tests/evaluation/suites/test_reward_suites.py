"""Every benchmark of rewards, from generated files in its own format to numbers."""

from __future__ import annotations

import csv
import json
import math

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

import mmalign as mm
from mmalign.types import UserError


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def picture(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (colour,) * 3).save(path)
    return path


def scored(suite, score):
    """The numbers of a suite whose outputs are scored one by one."""
    tables = [[score(item, output) for output in item.outputs] for item in suite.items]
    return {name: value.value for name, value in suite.score(suite.items, tables).values.items()}


def longest(item, text):
    return float(len(text))


def test_reward_bench(tmp_path):
    rows = [
        {"prompt": "?", "chosen": "long one", "rejected": "short", "subset": "alpacaeval-easy", "id": 1},
        {"prompt": "?", "chosen": "no", "rejected": "certainly", "subset": "math-prm", "id": 1},
        {"prompt": "?", "chosen": "int main", "rejected": "x", "subset": "hep-cpp", "id": 7},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "filtered-00000.parquet")
    suite = mm.evaluation.reward_bench(tmp_path / "filtered-00000.parquet", resamples=20)
    numbers = scored(suite, longest)
    assert numbers["chat"] == 1 and numbers["reasoning"] == pytest.approx(164 / (164 + 984)) and "safety" not in numbers
    assert numbers["sections"] == pytest.approx((1 + 164 / 1148) / 2) and numbers["accuracy"] == pytest.approx(2 / 3)
    with pytest.raises(UserError, match=r"reward_bench: x.jsonl:1 of .* has no subset; takes the columns prompt, chosen, rejected, subset"):
        mm.evaluation.reward_bench(lines(tmp_path / "x.jsonl", [{"prompt": "?", "chosen": "a", "rejected": "b"}]))
    with pytest.raises(UserError, match=r"reward_bench: .*none.jsonl is not there"):
        mm.evaluation.reward_bench(tmp_path / "none.jsonl")


def test_reward_bench_2(tmp_path):
    rows = [
        {"id": "1", "prompt": "?", "chosen": ["aaaa"], "rejected": ["a", "aa", "aaa"], "num_correct": 1, "subset": "Factuality"},
        {"id": "2", "prompt": "?", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1, "subset": "Math"},
        {"id": "ref:3", "prompt": "?", "chosen": ["aaa"], "rejected": ["a", "b"], "num_correct": 1, "subset": "Ties"},
        {"id": "tied:3", "prompt": "?", "chosen": ["aaaa", "bbbb"], "rejected": ["a"], "num_correct": 2, "subset": "Ties"},
    ]
    suite = mm.evaluation.reward_bench_2(lines(tmp_path / "rb2.jsonl", rows), resamples=20)
    numbers = scored(suite, longest)
    assert numbers["accuracy/Factuality"] == 1 and numbers["accuracy/Math"] == 0.25
    assert numbers["ties"] == pytest.approx(1.01)  # all right, and no spread at all: as published, more than 1
    assert numbers["sections"] == pytest.approx((1 + 0.25 + 1.01) / 3)
    missing = suite.score(suite.items, [[math.nan] * 4, [1, 0, 0, 0], [1, 0, 0], [1, 1, math.nan]])
    assert missing.counts["missing"] == 2 and missing.counts["comparisons"] == 4 and math.isnan(missing.values["sections"].value)
    assert [row is None for row in missing.rows] == [True, False, False, True]
    for change, words in (
        ({"id": "x"}, r"the id 'x' in Ties; takes ref:NUMBER or tied:NUMBER"),
        ({"subset": "Math", "num_correct": 2}, "has 2 right answers in Math"),
        ({"chosen": "text"}, "chosen and rejected that are no lists"),
    ):
        with pytest.raises(UserError, match=words):
            mm.evaluation.reward_bench_2(lines(tmp_path / "odd.jsonl", [{**rows[3], **change}]))


def test_rag_reward_bench(tmp_path):
    row = {"prompt": "passages, question", "question": "?", "chosen": "cites [1]", "rejected": "x", "subset": "asqa"}
    lines(tmp_path / "Dataset/citation.jsonl", [row])
    lines(tmp_path / "Dataset/conflict.jsonl", [{**row, "rejected": "much longer than that"}])
    numbers = scored(mm.evaluation.rag_reward_bench(tmp_path / "Dataset", resamples=20), longest)
    assert numbers == {"accuracy": 0.5, "accuracy/citation": 1.0, "accuracy/conflict": 0.0}
    alone = mm.evaluation.rag_reward_bench(lines(tmp_path / "mine.jsonl", [row]), resamples=20)
    assert alone.items[0].subset == "asqa"


def test_vl_reward_bench(tmp_path):
    held = picture(tmp_path / "x.png").read_bytes()
    row = {"query": "<image>\nWhat?", "image": {"bytes": held, "path": "x.png"}, "query_source": ""}
    rows = [
        {**row, "id": "RLAIF-V-1", "response": ["short", "a long one"], "human_ranking": [1, 0]},
        {**row, "id": "mathverse_2", "response": ["short", "a long one"], "human_ranking": [0, 1]},
        {**row, "id": "VLF-3", "response": ["a long one", "short"], "human_ranking": [0, 1], "query_source": "vlfeedback"},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test-00000.parquet")
    suite = mm.evaluation.vl_reward_bench(tmp_path / "test-00000.parquet", resamples=20)
    assert suite.items[0].prompt == [{"role": "user", "content": [{"type": "image", "image": held}, {"type": "text", "text": "What?"}]}]
    numbers = scored(suite, longest)
    assert numbers["hallucination"] == 1 and numbers["reasoning"] == 0 and numbers["general"] == 1
    assert numbers["accuracy"] == numbers["sections"] == pytest.approx(2 / 3)
    by_path = {"id": "a", "query": "?", "response": ["a", "b"], "ranking": [0, 1], "image_path": "x.png"}
    suite = mm.evaluation.vl_reward_bench(lines(tmp_path / "data.jsonl", [by_path]))
    assert suite.items[0].prompt[0]["content"][0] == {"type": "image", "path": str(tmp_path / "x.png")}
    with pytest.raises(UserError, match=r"ranks 2 answers as \[0, 0\]; takes two, and 0 for the better one"):
        mm.evaluation.vl_reward_bench(lines(tmp_path / "odd.jsonl", [{**by_path, "ranking": [0, 0]}]))
    with pytest.raises(UserError, match="has no image"):
        mm.evaluation.vl_reward_bench(lines(tmp_path / "odd.jsonl", [{**by_path, "image_path": None}]))


def test_multimodal_reward_bench(tmp_path):
    row = {"Text": "?", "Image": "images/a.png", "Output1": "short", "Output2": "a long one", "Better": "Output2"}
    rows = [
        {**row, "ID": "mathvista-1", "Category": "reasoning"}, {**row, "ID": "EMMA-1", "Category": "reasoning", "Better": "Output1"},
        {**row, "ID": "PAIRS-1", "Category": "safety"}, {**row, "ID": "memes-1", "Category": "safety"},
        {**row, "ID": "v", "Category": "vqa"},
    ]  # fmt: skip
    (tmp_path / "all_data.json").write_text(json.dumps(rows))
    suite = mm.evaluation.multimodal_reward_bench(tmp_path / "all_data.json", resamples=20)
    numbers = scored(suite, longest)
    assert numbers["accuracy"] == 0.8 and numbers["accuracy/reasoning/math"] == 1 and numbers["accuracy/reasoning/coding"] == 0
    assert {item.subset for item in suite.items} >= {"safety/bias", "safety/toxicity", "vqa"}
    (tmp_path / "all_data.json").write_text(json.dumps([{**rows[0], "Better": "A"}]))
    with pytest.raises(UserError, match="has Better 'A'; takes Output1 or Output2"):
        mm.evaluation.multimodal_reward_bench(tmp_path / "all_data.json")


def test_mm_rlhf_reward_bench(tmp_path):
    for number in range(2):
        picture(tmp_path / f"video/clip/{number}.png")
    row = {"prompt": "<image>?", "chosen": "a long one", "rejected": "short"}
    rows = [
        {**row, "id": "1", "image": "mcq/a.png"}, {**row, "id": "1", "image": "mcq/a.png", "rejected": "a much longer one"},
        {**row, "id": "2", "video": "video/clip"},
    ]  # fmt: skip
    suite = mm.evaluation.mm_rlhf_reward_bench(lines(tmp_path / "mm_reward_bench.jsonl", rows), resamples=20)
    numbers = scored(suite, longest)
    assert numbers["accuracy"] == pytest.approx(2 / 3) and numbers["acc_plus"] == 0.5 and numbers["accuracy/mcq"] == 0.5
    assert suite.items[2].prompt[0]["content"][0]["video"] == [str(tmp_path / f"video/clip/{number}.png") for number in range(2)]
    missing = suite.score(suite.items, [[1, 0], [math.nan, 0], [1, 0]])
    assert missing.values["acc_plus"].value == 1 and missing.counts["missing"] == 1
    with pytest.raises(UserError, match="has neither image nor video"):
        mm.evaluation.mm_rlhf_reward_bench(lines(tmp_path / "odd.jsonl", [{**row, "id": "1"}]))


def test_videogen_reward_bench(tmp_path):
    columns = ["path_A", "path_B", "prompt", "fps_A", "VQ", "MQ", "TA", "Overall"]
    with open(tmp_path / "videogen-rewardbench.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [columns, ["a.mp4", "b.mp4", "cat", 8, "A", "B", "same", "A"], ["c.mp4", "d.mp4", "dog", 8, "A", "", "same", "same"]]
        )
    suite = mm.evaluation.videogen_reward_bench(tmp_path / "videogen-rewardbench.csv", resamples=20)
    assert suite.of == "videos" and suite.items[0].outputs[0].source == str(tmp_path / "a.mp4")
    gaps = {"a.mp4": 1.0, "b.mp4": 0.0, "c.mp4": 0.0, "d.mp4": 0.1}
    numbers = scored(suite, lambda item, output: gaps[output.name])
    assert numbers == {"accuracy": 1.0, "accuracy_with_ties": 1.0, "threshold": pytest.approx(0.1)}
    motion = mm.evaluation.videogen_reward_bench(tmp_path / "videogen-rewardbench.csv", dimension="MQ", resamples=20)
    assert scored(motion, lambda item, output: gaps[output.name])["accuracy"] == 0 and math.isnan(motion.items[1].known["preferred"])
    (tmp_path / "odd.csv").write_text("path_A,path_B,prompt,Overall\na,b,c,left\n")
    with pytest.raises(UserError, match="says 'left' under Overall; takes A, B or same"):
        mm.evaluation.videogen_reward_bench(tmp_path / "odd.csv")


def test_genai_bench(tmp_path):
    row = {"prompt": "cat", "left_model": "x", "right_model": "y"}
    for number, name in enumerate("ab"):
        row[f"{('left', 'right')[number]}_image"] = {"bytes": picture(tmp_path / f"{name}.png", 200 * number).read_bytes(), "path": None}
    rows = [{**row, "vote_type": vote} for vote in ("rightvote", "leftvote", "bothbad_vote", "tievote")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    suite = mm.evaluation.genai_bench(tmp_path / "test.parquet", resamples=20)
    assert suite.of == "images" and [item.known["preferred"] for item in suite.items] == [-1, 1, 0, 0]
    assert float(suite.items[0].read()[1].mean()) == pytest.approx(200 / 255)
    numbers = scored(suite, lambda item, output: float(output.read().mean()))
    assert numbers["accuracy"] == 0.5 and numbers["accuracy_with_ties"] == 0.5
    films = mm.evaluation.genai_bench(
        lines(tmp_path / "v.jsonl", [{**dict.fromkeys(("left_video", "right_video"), "a.mp4"), "prompt": "x", "vote_type": "tievote"}])
    )
    assert films.of == "videos"
    with pytest.raises(UserError, match=r"vote_type 'left'; takes a prompt, one of left_video"):
        mm.evaluation.genai_bench(
            lines(tmp_path / "odd.jsonl", [{"prompt": "x", "left_video": "a", "right_video": "b", "vote_type": "left"}])
        )


def test_picture_pairs(tmp_path):
    for number in range(3):
        picture(tmp_path / f"{number}.png", 100 * number)
    bright = lambda item, output: float(output.read().mean())  # noqa: E731
    ranked = {"prompt": "cat", "generations": ["0.png", "1.png", "2.png"], "ranking": [3, 2, 1]}
    suite = mm.evaluation.picture_pairs(lines(tmp_path / "imagereward.jsonl", [ranked]), resamples=20)
    assert len(suite.items) == 3 and scored(suite, bright)["accuracy"] == 1.0
    pair = {"prompt": "cat", "path1": "2.png", "path2": "0.png", "confidence": 1.0}
    assert scored(mm.evaluation.picture_pairs(lines(tmp_path / "hpdv3.jsonl", [pair]), resamples=20), bright)["accuracy"] == 1.0
    held = {f"jpg_{number}": (tmp_path / f"{number}.png").read_bytes() for number in range(2)}
    picks = [{"caption": "cat", **held, "label_0": first, "label_1": 1 - first, "has_label": True} for first in (1.0, 0.0, 0.5)]
    parquet.write_table(pyarrow.Table.from_pylist(picks), tmp_path / "pickapic.parquet")
    numbers = scored(mm.evaluation.picture_pairs(tmp_path / "pickapic.parquet", resamples=20), bright)
    assert numbers["accuracy"] == 0.5
    hpd = {"prompt": "cat", "image_path": ["0.png", "1.png"], "raw_annotations": [[1, 2], [1, 2], [2, 1]]}
    suite = mm.evaluation.picture_pairs(lines(tmp_path / "test.json", [hpd]), schema="hpdv2", resamples=20)
    assert suite.items[0].known["preferred"] == 1.0  # two of three people
    with pytest.raises(UserError, match="look like no known schema"):
        mm.evaluation.picture_pairs(lines(tmp_path / "odd.jsonl", [{"a": 1}]))
    with pytest.raises(UserError, match=r"of 1 pairs of .* nobody judged one"):
        mm.evaluation.picture_pairs(lines(tmp_path / "odd.jsonl", [{**hpd, "raw_annotations": None}]), schema="hpdv2")


def test_best_of_samples(tmp_path):
    rows = [
        {"prompt": "a", "outputs": ["x", "xx", "xxx", "xxxx"], "gold": [0.0, 1.0, 2.0, 0.0]},
        {"prompt": "b", "outputs": ["x", "xx", "xxx", "xxxx"], "gold": [0.0, 0.0, None, 4.0]},
    ]
    suite = mm.evaluation.best_of_samples(lines(tmp_path / "samples.jsonl", rows), resamples=20)
    numbers = scored(suite, longest)
    assert list(suite.headline) == ["gold/n=1", "gold/n=2", "gold/n=4"] and "0.193 at n = 2" in suite.notes[0]
    # of two of a: 3 of 6 pairs have the last (0), 2 the third (2), 1 the second (1); of b, of three samples: 2 of 3 the last
    assert numbers["gold/n=1"] == pytest.approx((0.75 + 4 / 3) / 2) and numbers["gold/n=2"] == pytest.approx((5 / 6 + 8 / 3) / 2)
    assert numbers["gold/n=4"] == 0 and numbers["reward/n=4"] == 4  # b has three samples with gold
    with pytest.raises(UserError, match="no two or more outputs with a gold score each"):
        mm.evaluation.best_of_samples(lines(tmp_path / "odd.jsonl", [{**rows[0], "gold": [1.0]}]))
    with pytest.raises(UserError, match=r"counts: got \[0\]"):
        mm.evaluation.best_of_samples(tmp_path / "samples.jsonl", counts=[0])


def test_contrast_instructions(tmp_path):
    rows = [
        {"prompt_1": "capital of France?", "answer_1": "Paris", "prompt_2": "capital of Italy?", "answer_2": "Rome"},
        {"prompt_1": "2 + 2?", "answer_1": "4", "prompt_2": "2 + 3?", "answer_2": "5"},
    ]
    suite = mm.evaluation.contrast_instructions(lines(tmp_path / "contrast.jsonl", rows), resamples=20)
    right = {"France": "Paris", "Italy": "Rome", "+ 2": "4", "+ 3": "5"}
    knows = scored(suite, lambda item, output: float(any(word in item.prompt and output == own for word, own in right.items())))
    assert knows == {"c_res": 1, "c_ins": 1, "c_all": 1}
    assert scored(suite, longest)["c_res"] == 0.5 and scored(suite, longest)["c_ins"] == 0.5
    asks = scored(suite, lambda item, output: float("Italy" in item.prompt) + float(output == "Paris") * 0.5)
    assert asks == {"c_res": 0.5, "c_ins": 0.5, "c_all": 0}
    half = suite.score(suite.items[:3], [[1, 0], [1, 0], [1, 0]])  # of the second pair one question alone
    assert half.counts == {"pairs": 2, "missing": 1}
    with pytest.raises(UserError, match="has no answer_2"):
        mm.evaluation.contrast_instructions(lines(tmp_path / "odd.jsonl", [{**rows[0], "answer_2": None}]))
