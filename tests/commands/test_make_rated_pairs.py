"""Rated candidates as pairs, counted by hand, and EditReward's way from ratings over a reward model to a filtered set of edits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign import config
from mmalign.files import write_text
from mmalign.runs.pictures import write_png
from mmalign.types import UserError


def rated(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[dict[str, int], list[dict[str, Any]]]:
    path, out = folder / "rated.jsonl", folder / "pairs.jsonl"
    out.unlink(missing_ok=True)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    counts = mm.commands.make_rated_pairs(str(path), out=str(out), **settings)
    return counts, [json.loads(line) for line in out.read_text().splitlines()]


def said(follows: float | None, looks: float | None) -> dict[str, float | None]:
    return {"follows": follows, "looks": looks}


EDIT = {"prompt": "make it red", "source": "a.png", "outputs": ["x", "y", "z"], "ratings": [said(4, 2), said(2, 4), said(1, 4)]}


def test_a_tie_becomes_two_pairs_of_one_dimension_each(tmp_path: Path) -> None:
    """x and y are equal by their means, 3; z has 2.5, and is as good as y in looks."""
    counts, lines = rated(tmp_path, [EDIT])
    assert counts == {"rows": 1, "pairs": 4, "split": 1, "tied": 0, "disagreed": 0, "missing": 0}
    assert [(line["chosen"], line["rejected"], line["labels"], line["strength"], line["id"]) for line in lines] == [
        ("x", "y", {"follows": 1.0}, 1.0, "1-0-1"),
        ("y", "x", {"looks": 1.0}, 1.0, "1-1-0"),
        ("x", "z", {"follows": 1.0, "looks": 0.0}, 1.0, "1-0-2"),
        ("y", "z", {"follows": 1.0, "looks": 0.5}, 1.0, "1-1-2"),
    ]
    assert {(line["prompt"], line["source"]) for line in lines} == {("make it red", "a.png")}
    assert [(line["score_chosen"], line["score_rejected"]) for line in lines] == [(3.0, 3.0), (3.0, 3.0), (3.0, 2.5), (3.0, 2.5)]
    dropped, kept = rated(tmp_path, [EDIT], ties="drop")[0], rated(tmp_path, [EDIT], ties="keep")
    assert (dropped["pairs"], dropped["tied"]) == (2, 1)
    assert kept[1][0]["strength"] == 0.5 and kept[1][0]["labels"] == {"follows": 1.0, "looks": 0.0}
    assert rated(tmp_path, [EDIT], tie=0.5)[0] == {"rows": 1, "pairs": 4, "split": 2, "tied": 1, "disagreed": 0, "missing": 0}  # y and z


def test_annotators_vote_and_who_is_alone_leaves_the_pair_out(tmp_path: Path) -> None:
    """Three rate a and b: two for b, one for a. The third rated no c; the first has a before c, the second both equal."""
    votes = [[said(1, 1), said(2, 2), said(4, 4)], [said(3, 3), said(3, 2), said(1, 1)], [said(0, 0), said(2, 2), None]]
    row = {"prompt": "p", "outputs": ["a", "b", "c"], "ratings": votes, "id": "r"}
    counts, lines = rated(tmp_path, [row], ties="keep", least_agreement=0.6)
    assert counts == {"rows": 1, "pairs": 2, "split": 0, "tied": 0, "disagreed": 1, "missing": 0}
    one = lines[0]  # a and b are rated 7/3 and 13/6: a is ahead by the mean, two of three are for b
    assert (one["chosen"], one["rejected"], one["id"]) == ("a", "b", "r-0-1")
    assert one["strength"] == pytest.approx(1 / 3) and one["labels"] == pytest.approx({"follows": 1 / 3, "looks": 1 / 2})
    assert (one["score_chosen"], one["score_rejected"]) == pytest.approx((7 / 3, 13 / 6))
    assert lines[1]["chosen"] == "b" and lines[1]["strength"] == 1.0  # both who rated b and c
    nobody = {"prompt": "p", "outputs": ["a", "b"], "ratings": [[said(1, None), None], [said(None, 1), said(2, 2)]]}
    assert rated(tmp_path, [row, nobody])[0]["missing"] == 1


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"ratings": [said(1, 1)]}, "takes a list of two outputs or more, and a list of as many ratings"),
        ({"ratings": [[said(1, 1)], [said(1, 1)] * 2]}, r"outputs have 1, 2 annotators; takes as many of each \(null: none\)"),
        ({"ratings": [said(1, 1), {"looks": "good"}]}, "got 'good' as the rating of looks, takes a number"),
        ({"ratings": [said(1, 1), said(1, 1)]}, r"none of 1 pairs is left \(1 tied"),
    ],
)
def test_what_is_refused(tmp_path: Path, row: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        rated(tmp_path, [{"prompt": "p", "outputs": ["a", "b"], **row}])


def test_the_best_rows_are_kept_as_they_are(tmp_path: Path) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "kept.jsonl"
    answers = ["a b c", "a", "", "a b", "a b c d"]
    write_text(path, "".join(json.dumps({"prompt": "p", "answer": text, "task": n}) + "\n" for n, text in enumerate(answers)))
    words = {"words": lambda outputs, prompts, **columns: torch.tensor([float(len(text.split())) for text in outputs])}
    counts = mm.commands.keep_best(str(path), words, out=str(out), output="answer", part=0.5, rows_at_once=2)
    assert counts == {"kept": 2, "left_out": 2, "missing": 0, "broken": 1}
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert kept == [
        {"prompt": "p", "answer": "a b c", "task": 0, "score": 3.0},
        {"prompt": "p", "answer": "a b c d", "task": 4, "score": 4.0},
    ]
    out.unlink()
    assert mm.commands.keep_best(str(path), words, out=str(out), output="answer", least=2.0)["kept"] == 3
    out.unlink()
    with pytest.raises(UserError, match=r"keep_best: none of 5 rows is left \(4 have a score; has no output"):
        mm.commands.keep_best(str(path), words, out=str(out), output="answer", least=9.0)
    assert not out.exists()
    with pytest.raises(UserError, match="takes rewards, and one of part and least"):
        mm.commands.keep_best(str(path), words, out=str(out))


def test_from_ratings_of_edits_to_a_filtered_set(tmp_path: Path) -> None:
    """Grey squares made darker: rated by how dark they are, a reward model of both dimensions, and the better half of other edits."""
    for level in range(8):
        write_png(tmp_path / f"{level}.png", torch.full((3, 24, 24), level * 36, dtype=torch.uint8))
    rows = [
        {"prompt": "darker", "source": "7.png", "outputs": [f"{a}.png" for a in of], "ratings": [said(9 - a, 5) for a in of]}
        for of in ([0, 3, 6], [1, 4, 7], [2, 5, 6])
    ]
    _, held = rated(tmp_path, [{**rows[0], "prompt": "much darker"}])
    write_text(tmp_path / "held.jsonl", "".join(json.dumps(line) + "\n" for line in held))
    assert rated(tmp_path, rows)[0]["pairs"] == 9
    node = config.load("reward_models/digits", ["steps=12", "batch.records=6", f"run.folder={tmp_path}", "run.name=rm"])
    records = {"use": "pairs", "path": str(tmp_path / "pairs.jsonl"), "columns": {"source": "source"}, "size": 24}
    node |= {"records": records, "method": {"use": "bradley_terry_gaussian"}}
    node["evaluation"] = {"every": 12, "records": {**records, "path": str(tmp_path / "held.jsonl")}}
    node["policy"] |= {"scores": ["follows", "follows_spread", "looks", "looks_spread"]}
    node["optimizer"] = {"rate": 3.0e-3}
    assert config.build(node).summary["held_out/accuracy_after"] == 0.75  # all looks alike, which is half right
    edits = [{"prompt": "darker", "source": "7.png", "output": f"{level}.png"} for level in range(8)]
    write_text(tmp_path / "edits.jsonl", "".join(json.dumps(row) + "\n" for row in [*edits, {**edits[0], "output": "gone.png"}]))
    reward = {"edit": mm.rewards.trained(str(tmp_path / "rm"), part="follows")}
    out = tmp_path / "best.jsonl"
    counts = mm.commands.keep_best(str(tmp_path / "edits.jsonl"), reward, out=str(out), source="source", part=0.5, rows_at_once=4)
    assert counts == {"kept": 4, "left_out": 4, "missing": 0, "broken": 1}
    assert sum(json.loads(line)["output"] in ("0.png", "1.png", "2.png", "3.png") for line in out.read_text().splitlines()) >= 3
