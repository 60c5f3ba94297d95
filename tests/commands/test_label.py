"""`mmalign label`: what is drawn or read, what goes on, what is refused before a page is served, and a server that is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import httpx2
import pytest

pytest.importorskip("fastapi", reason="the extra label is not installed")
import torch

import mmalign as mm
from mmalign.labelling.judgements import Judgement
from mmalign.types import UserError

room = import_module("mmalign.commands.label")  # the room has its function under that name
PAIRS = [{"prompt": f"q{number}", "chosen": f"yes {number}", "rejected": f"no {number}"} for number in range(3)]


@pytest.fixture
def served(monkeypatch):
    """What the page would be served with; nothing listens."""
    applications = []
    monkeypatch.setattr(room, "answer", lambda app, bound, **_: applications.append(app))
    return applications


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().split("\n") if line]


def label(out, **settings):
    said = []
    counts = mm.commands.label(str(out), port=0, say=said.append, **settings)
    return counts, said


def test_pairs_that_are_there_go_on_from_where_they_were(tmp_path, served):
    source, out = written(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "labels.jsonl"
    counts, said = label(out, pairs=source)
    assert counts == {"items": 3, "judgements": 0, "annotators": 0, "pairs": 0} and any("read by texts" in line for line in said)
    items = room.Items(tmp_path / "labels")
    judgements = room.Judgements(items, out)
    judgements.say(Judgement(items.all[0].id, "ann", ((1,), (0,))))
    assert label(out, pairs=source)[0] == label(out)[0] == {"items": 3, "judgements": 1, "annotators": 1, "pairs": 1}


def test_pairs_of_another_file_are_refused_and_no_label_is_lost(tmp_path, served):
    out = tmp_path / "labels.jsonl"
    label(out, pairs=written(tmp_path / "pairs.jsonl", PAIRS))
    judgements = room.Judgements(room.Items(tmp_path / "labels"), out)
    judgements.say(Judgement(judgements.items.all[0].id, "ann", ((1,), (0,))))
    before = out.read_bytes()
    with pytest.raises(UserError, match="was made with another"):
        label(out, pairs=written(tmp_path / "pairs.jsonl", PAIRS[:2]))
    assert out.read_bytes() == before


def test_pictures_and_what_is_about_pictures_are_told_apart(tmp_path):
    from PIL import Image

    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    assert room.loader_of(written(tmp_path / "1.jsonl", [{"prompt": "p", "chosen": "a.png", "rejected": "b.png"}])) == "pairs"
    about = {"image": "a.png", "prompt": "what is it?", "chosen": "a.b", "rejected": "c"}
    assert room.loader_of(written(tmp_path / "2.jsonl", [about])) == "picture_texts"
    turns = [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "what?"}]}]
    assert room.loader_of(written(tmp_path / "3.jsonl", [{"prompt": turns, "chosen": "a", "rejected": "b"}])) == "picture_texts"
    assert room.loader_of(written(tmp_path / "4.jsonl", PAIRS)) == "texts"
    assert room.loader_of(written(tmp_path / "5.jsonl", [{"caption": "p", "jpg_0": "a.png", "jpg_1": "b.png"}])) == "pairs"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of a tiny generator, of another seed each."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "other")):
        mm.online(
            mm.policies.diffusers(mm.worlds.digits(), schedule=mm.Schedule(steps=3)),
            prompts=mm.worlds.digit_prompts(count=4),
            rewards={"proxy": mm.worlds.digits_proxy()},
            method=mm.methods.flow_grpo(ratio="per_step", clip=0.2, std="none", beta=0.0),
            steps=1,
            batch={"prompts": 2, "group": 2},
            evaluation={"samples": 2, "call": {"num_inference_steps": 2}},
            run={"name": name, "folder": str(folder), "seed": seed, "trackers": ()},
        )
    return [folder / "one", folder / "other"]


def test_outputs_of_one_run_differ_by_seed_and_are_drawn_once(tmp_path, runs, served):
    out = tmp_path / "labels.jsonl"
    counts, _ = label(out, models=[str(runs[0])], outputs=3, limit=2)
    items = room.Items(tmp_path / "labels")
    assert counts["items"] == 2 and [len(item.outputs) for item in items.all] == [3, 3] and items.all[0].kind == "image"
    files = {item.outputs[place]: items.path(item, place).stat().st_mtime_ns for item in items.all for place in range(3)}
    assert len({items.path(items.all[0], place).read_bytes() for place in range(3)}) == 3
    label(out, models=[str(runs[0])], outputs=3, limit=2)
    assert files == {item.outputs[place]: items.path(item, place).stat().st_mtime_ns for item in items.all for place in range(3)}
    with pytest.raises(UserError, match="made with another outputs"):
        label(out, models=[str(runs[0])], outputs=2, limit=2)


def test_two_runs_against_each_other_blind_and_who_is_preferred(tmp_path, runs, served):
    out = tmp_path / "labels.jsonl"
    label(out, models=[str(run) for run in runs], limit=2)
    judgements = room.Judgements(room.Items(tmp_path / "labels"), out)
    assert judgements.items.all[0].made_by == tuple(str(run) for run in runs)
    for item in judgements.items.all:
        judgements.say(Judgement(item.id, "ann", ((1,), (0,))))
    _, said = label(out)
    assert any(line.startswith(f"{runs[1]}: preferred in 100% of 2") for line in said)
    assert any(line.startswith(f"{runs[0]}: preferred in 0% of 2") for line in said)


def test_labels_of_a_model_that_has_changed_are_refused(tmp_path, runs, served):
    import shutil

    out, run = tmp_path / "labels.jsonl", tmp_path / "one"
    shutil.copytree(runs[0], run)
    label(out, models=[str(run)], limit=2)
    for newest in (run / "checkpoints").iterdir():
        if newest.is_dir():
            shutil.rmtree(newest)
            shutil.copytree(runs[1] / "checkpoints" / newest.name, newest)
    with pytest.raises(UserError, match="made with another model"):
        label(out, models=[str(run)], limit=2)
    assert label(out)[0]["items"] == 2


def test_mistakes_are_lines_and_leave_nothing(tmp_path, served, monkeypatch):
    source = written(tmp_path / "pairs.jsonl", PAIRS)
    (tmp_path / "mine.jsonl").write_text("{}\n")
    for settings, words in (
        ({"out": tmp_path / "a.csv"}, "takes a file that ends in .jsonl"),
        ({"out": tmp_path / "mine.jsonl"}, "is there already"),
        ({"out": tmp_path / "a.jsonl"}, "nothing to judge there yet"),
        ({"out": tmp_path / "a.jsonl", "pairs": "nowhere.jsonl"}, "is not there"),
        ({"out": tmp_path / "a.jsonl", "pairs": source, "models": ["x"]}, "takes one of both"),
        ({"out": tmp_path / "a.jsonl", "models": ["digits/nothing"]}, "nothing"),
        ({"out": tmp_path / "a.jsonl", "pairs": written(tmp_path / "none.jsonl", [])}, "none.jsonl"),
    ):
        with pytest.raises(UserError, match=words):
            label(**settings)
    assert (tmp_path / "mine.jsonl").read_text() == "{}\n" and not (tmp_path / "a.jsonl").exists()
    monkeypatch.setattr(room, "find_spec", lambda package: None if package == "fastapi" else package)
    with pytest.raises(UserError, match=r"pip install 'mmalign\[label\]'"):
        label(tmp_path / "a.jsonl", pairs=source)


def test_a_port_in_use(tmp_path, served):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="port: cannot listen at"):
            mm.commands.label(str(tmp_path / "a.jsonl"), pairs=written(tmp_path / "p.jsonl", PAIRS), port=taken.getsockname()[1])


def test_answers_that_are_all_the_same_cannot_be_compared(tmp_path, served, monkeypatch):
    author = room.Author("m", lambda: None, "current", {}, lambda *_: ["a", "b"], {"config": "m"})
    monkeypatch.setattr(room, "_author", lambda name, trust: author)
    monkeypatch.setattr(room, "_outputs", lambda *_: ((row, place, "same") for row in range(2) for place in range(2)))
    with pytest.raises(UserError, match="temperature above 0"):
        label(tmp_path / "a.jsonl", models=["m"])
    monkeypatch.setattr(room, "_outputs", lambda *_: ((row, place, f"{row * place}") for row in range(2) for place in range(2)))
    counts, said = label(tmp_path / "b.jsonl", models=["m"])
    assert counts["items"] == 1 and any(line.startswith("1 prompts are left out") for line in said)


def test_pairs_for_training_are_not_of_the_prompts_that_judge_it(tmp_path):
    written(tmp_path / "pairs.jsonl", [*PAIRS, {**PAIRS[0], "chosen": "another"}])
    for name in ("asked", "held"):
        written(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {number}"} for number in range(2)])
    prompts = {name: {"use": "prompts", "path": str(tmp_path / f"{name}.jsonl")} for name in ("asked", "held")}
    records = {"use": "texts", "path": str(tmp_path / "pairs.jsonl")}

    def own(config, held_out, limit=None):
        return sorted(map(str, room._own_prompts(config, held_out, limit)))

    offline, online = {"records": records, "evaluation": {"prompts": prompts["held"]}}, {"prompts": prompts["asked"], "records": records}
    assert own(offline, False) == ["q0", "q1", "q2"] and own(offline, True) == ["held 0", "held 1"] and len(own(offline, False, 2)) == 2
    assert own(online, False) == own(online, True) == ["asked 0", "asked 1"]
    assert own({"evaluation": offline["evaluation"]}, False) == ["held 0", "held 1"] and own({}, True) == []


def serve(folder, *words):
    """A server of its own process, and where it listens."""
    command = [sys.executable, "-m", "mmalign", "label", "labels.jsonl", "--no-open", "--port", "0", *words]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    heard = []
    for line in process.stdout:
        heard.append(line)
        if line.startswith("judge at "):
            return process, line.split()[2]
    raise AssertionError("".join(heard))


def test_a_killed_server_loses_no_label_and_a_second_one_is_refused(tmp_path):
    written(tmp_path / "pairs.jsonl", PAIRS)
    process, address = serve(tmp_path, "--pairs", "pairs.jsonl")
    headers = {"X-Mmalign": "1"}
    word = {"annotator": "ann", "ranking": [[0], [1]]}
    first = httpx2.get(f"{address}next", params={"annotator": "ann"}, headers=headers, trust_env=False, timeout=300).json()["item"]
    told = httpx2.post(f"{address}judgements", json={**word, "item": first["id"]}, headers=headers, trust_env=False, timeout=300).json()
    assert told["judged"] == 1
    with pytest.raises(AssertionError, match="another process shows a page for this file"):
        serve(tmp_path)
    process.kill()
    process.wait()
    assert [row["chosen"] for row in lines(tmp_path / "labels.jsonl")] == [first["outputs"][0]]
    process, address = serve(tmp_path)
    told = httpx2.get(f"{address}next", params={"annotator": "ann"}, headers=headers, trust_env=False, timeout=300).json()
    assert told["judged"] == 1 and told["item"]["id"] != first["id"]
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait() == 0 and "3 items, 1 judgements, 1 annotators, 1 pairs" in rest
    assert 'records="{use: texts, path: labels.jsonl}"' in rest and os.listdir(tmp_path).count("labels.jsonl") == 1


def test_pictures_stay_what_they_were(tmp_path, served):
    from PIL import Image

    for number, name in enumerate("ab"):
        Image.new("RGB", (4, 4), (number * 200, 10, 20)).save(tmp_path / f"{name}.png")
    source = written(tmp_path / "p.jsonl", [{"prompt": "p", "chosen": "a.png", "rejected": "b.png"}])
    label(tmp_path / "labels.jsonl", pairs=source)
    judgements = room.Judgements(room.Items(tmp_path / "labels"), tmp_path / "labels.jsonl")
    judgements.say(Judgement(judgements.items.all[0].id, "ann", ((1,), (0,))))
    record = next(mm.data.pairs(str(tmp_path / "labels.jsonl")).stream(seed=0))
    assert torch.equal((record.first[:, 0, 0] * 255).round(), torch.tensor([200.0, 10.0, 20.0]))


def test_strengths_are_told_of_three_or_more_whom_nobody_swept():
    met = {("a", "b"): 3.0, ("b", "a"): 1.0, ("b", "c"): 3.0, ("c", "b"): 1.0}
    lines = list(import_module("mmalign.commands.label")._strengths(["a", "b", "c"], met))
    assert [line.split(" +- ")[0] for line in lines] == ["a: strength +1.10", "b: strength +0.00", "c: strength -1.10"]  # log 3 apart
    assert "not known yet" in next(import_module("mmalign.commands.label")._strengths(["a", "b"], {("a", "b"): 2.0}))
