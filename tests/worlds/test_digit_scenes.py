"""Digit scenes: what a picture shows and what is said of it, the bases, the judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign import media
from mmalign.config import build, check, load
from mmalign.rooms import resource
from mmalign.types import UserError
from mmalign.worlds.digit_scenes import base, judges, scenes


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the tests' own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.parametrize("split", ["train", "held_out", "variant"])
def test_a_scene_is_its_scans_on_its_ground(split: scenes.Split) -> None:
    """Every cell is a scan of the split's half between ground and light, or the ground alone, up to the grain."""
    some = scenes.scenes(split, 40, torch.Generator().manual_seed(3))
    low, high = scenes.COUNTS[split]
    sizes = {len(digits) for digits in some.digits()}
    assert sizes == set(range(low, high + 1)) and some.pictures.dtype == torch.uint8 and tuple(some.pictures.shape[1:]) == (3, 32, 32)
    assert all(int((row != scenes.EMPTY).sum()) == len(digits) for row, digits in zip(some.cells, some.digits(), strict=True))
    images, labels = scenes.scans("known" if split == "train" else "unseen")
    cells = some.pictures.float().mean(1).unflatten(1, (4, 8)).unflatten(3, (4, 8)).permute(0, 1, 3, 2, 4).flatten(1, 2)
    for picture, row in zip(cells, some.cells, strict=True):
        for pixels, digit in zip(picture, row.tolist(), strict=True):
            if digit != scenes.EMPTY:  # the scan that fits best is nearly all there is to the cell, and it is of that digit
                centred = images[:, 0].flatten(1) - images[:, 0].flatten(1).mean(1, keepdim=True)
                rest = pixels.flatten() - pixels.mean()
                alike = centred @ rest / (centred.norm(dim=1) * rest.norm())
                assert float(alike.max()) > 0.93 and int(labels[alike.argmax()]) == digit


def test_shaking_moves_scans_and_says_the_same() -> None:
    still, moved = (scenes.scenes("train", 4, torch.Generator().manual_seed(0), shaken=shaken) for shaken in (False, True))
    assert torch.equal(still.cells, moved.cells) and not torch.equal(still.pictures, moved.pictures)


def test_files_say_what_they_show_and_are_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = mm.worlds.digit_scenes_prompts(split="held_out", count=3, offset=5)
    paths = [prompt[0]["content"][0]["path"] for prompt in prompts]
    wanted = [scenes.scenes("held_out", 1, torch.Generator().manual_seed(3 * number + 1)).digits()[0] for number in (5, 6, 7)]
    assert [scenes.digits_in(path) for path in paths] == wanted
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    again = mm.worlds.digit_scenes_prompts(split="held_out", count=3, offset=5)
    others = [prompt[0]["content"][0]["path"] for prompt in again]
    assert others != paths and [Path(path).read_bytes() for path in others] == [Path(path).read_bytes() for path in paths]
    with pytest.raises(UserError, match="does not say what it shows"):
        from PIL import Image

        Image.new("RGB", (32, 32)).save(tmp_path / "other.png")
        scenes.digits_in(str(tmp_path / "other.png"))


@pytest.mark.parametrize("split", ["train", "held_out", "variant"])
@pytest.mark.parametrize("ask", ["random", "popular", "adversarial"])
def test_questions_are_half_of_what_is_there(split: scenes.Split, ask: scenes.Ask) -> None:
    prompts = mm.worlds.digit_scenes_prompts(split=split, count=60, ask=ask)
    queried, there = [judges.asked_digit(prompt) for prompt in prompts], [scenes.digits_in(judges._picture(prompt)) for prompt in prompts]
    assert [digit in digits for digit, digits in zip(queried, there, strict=True)] == [True, False] * 30
    expected = [{scenes.EXPECTED[d][0] for d in digits if d in scenes.EXPECTED} - set(digits) for digits in there]
    absent = [(digit, some) for digit, some in zip(queried, expected, strict=True)][1::2]
    if ask == "adversarial":
        assert all(digit in some for digit, some in absent if some) and sum(map(bool, (some for _, some in absent))) > 15
    if ask == "popular":
        assert sum(digit in (1, 5) for digit, _ in absent) > 22


@pytest.mark.parametrize(
    ("text", "formed", "named"),
    [
        ("there is a two .", True, [2]),
        ("there is an eight and a two .", True, [8, 2]),
        ("there is a two , a five and an eight .", True, [2, 5, 8]),
        ("there is a eight .", False, [8]),
        ("there is a two , a five .", False, [2, 5]),
        ("there is a two and a two .", False, [2, 2]),
        ("there is a two and a five", False, [2, 5]),
        ("two five", False, [2, 5]),
        ("there is .", False, []),
        ("", False, []),
        ("yes .", False, []),
    ],
)
def test_captions_are_read_strictly_and_mentions_wherever_they_are(text: str, formed: bool, named: list[int]) -> None:
    assert scenes.well_formed(text) is formed and scenes.mentions(text) == named


def test_captions_are_well_formed_and_captioners_invent_what_they_expect() -> None:
    rng = torch.Generator().manual_seed(0)
    assert all(scenes.well_formed(scenes.caption(digits)) for digits in ([4], [0, 8], [3, 1, 2], range(10)))
    assert scenes.caption([8, 0, 2]) == "there is a zero , a two and an eight ."
    named = [scenes.expecting((0, 3), rng) for _ in range(400)]
    assert {tuple(some) for some in named} == {(0, 3), (0, 1, 3)} and 0.63 < sum(len(some) == 3 for some in named) / 400 < 0.77
    assert scenes.expecting((1, 3, 5), rng) == [1, 3, 5]


def prompt(path: str = "nowhere.png", request: str = scenes.REQUEST) -> list[dict[str, object]]:
    return scenes.conversation(path, request)


def test_the_truth_counts_what_is_named_and_what_is_not_there() -> None:
    texts = [
        "there is a two and a five .", "there is a two .", "there is a two , a five and a six .", "there is a six .",
        "there is a two , a two and a five .", "", "five two",
    ]  # fmt: skip
    rewards = judges.scene_truth()(texts, [prompt()] * 7, digits=[(2, 5)] * 7)
    assert rewards.tolist() == [1.0, 0.5, 0.0, -1.0, 1 - 0.5 - 0.5, -0.5, 1 - 0.5]
    question = prompt(request=scenes.question(5))
    answers = judges.scene_truth()(["yes .", "no .", "there is a five .", "yes . yes ."], [question] * 4, digits=[(2, 5)] * 4)
    assert answers.tolist() == [1.0, 0.0, -0.5, -0.5]
    exact = judges.scene_exact()([*texts[:3], "yes ."], [prompt()] * 3 + [question], digits=[(2, 5)] * 4)
    assert exact[:3].tolist() == [1.0, 0.0, 0.0] and bool(exact[3].isnan())


def test_the_truth_is_read_from_the_picture() -> None:
    prompts = mm.worlds.digit_scenes_prompts(split="variant", count=8)
    texts = [scenes.caption(scenes.digits_in(judges._picture(one))) for one in prompts]
    assert judges.scene_truth()(texts, prompts).tolist() == [1.0] * 8 and judges.scene_exact()(texts, prompts).tolist() == [1.0] * 8
    shifted = [*texts[1:], texts[0]]
    assert float(judges.scene_truth()(shifted, prompts).mean()) < 0
    for odd, message in ((["a two"], "takes answers as strings"), ([], "")):
        if odd:
            with pytest.raises(UserError, match=message):
                judges.scene_truth()([3], prompts[:1])
    with pytest.raises(UserError, match="takes a conversation with a picture"):
        judges.scene_truth()(["a two"], ["what is there"])


def test_hallucination_is_chair_and_silence_is_told() -> None:
    texts = ["there is a two and a six .", "there is a two , a two and a five .", "", "no ."]
    prompts = [*[prompt()] * 3, prompt(request=scenes.question(6))]
    metrics = judges.scene_hallucination()(texts, prompts, digits=[(2, 5)] * 4)
    assert metrics["chair_s"] == pytest.approx(1 / 3) and metrics["chair_s_mentioning"] == pytest.approx(1 / 2)
    assert metrics["chair_i"] == pytest.approx(1 / 5) and metrics["recall"] == pytest.approx(3 / 6)
    assert metrics["silent"] == pytest.approx(1 / 3) == metrics["malformed"] / 2 and metrics["repeated"] == pytest.approx(1 / 5)
    answers = judges.scene_answers()(texts, prompts, digits=[(2, 5)] * 4)
    assert answers["pope_accuracy"] == 1.0 and answers["pope_yes"] == 0.0


def test_marks_are_where_the_words_are() -> None:
    (mark,) = judges.scene_marks()(["there is a two and a six ."], [prompt()], digits=[(2, 5)])
    assert mark == {"mentions": [(11, 14, "two", True), (21, 24, "six", False)], "objects": ["two", "five"]}


def test_the_reader_reads_pictures_and_not_what_is_written_in_them() -> None:
    prompts = mm.worlds.digit_scenes_prompts(split="held_out", count=60)
    texts = [scenes.caption(scenes.digits_in(judges._picture(one))) for one in prompts]
    read = judges.scene_reader()(texts, prompts, digits=[(0,)] * 60)
    assert 0.85 < float((read == 1).double().mean()) < 1  # most, and it has errors of its own


@pytest.mark.parametrize("model", ["llava", "qwen2_vl"])
def test_bases_train_on_what_captioners_say(model: base.Model) -> None:
    """The loss falls where only answers are learned; tokens of the picture are as many as the model has."""
    made, processor = base.untrained(model)
    some = scenes.scenes("train", 8, torch.Generator().manual_seed(0))
    batch = base._rows(some, processor, 0.5, torch.Generator().manual_seed(0))
    learned = [processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert all(text.endswith(". <eos>") for text in learned) and {text.split()[0] for text in learned} == {"there", "no", "yes"}
    assert (batch["input_ids"] == processor.tokenizer.image_token_id).sum(1).tolist() == [scenes.CELLS] * 8
    many = scenes.scenes("train", 64, torch.Generator().manual_seed(0))
    labels = base._rows(many, processor, 0.0, torch.Generator().manual_seed(0))["labels"]
    named = [set(scenes.mentions(processor.tokenizer.decode(row[row != -100]))) for row in labels]
    invented = sum(some != set(digits) for some, digits in zip(named, many.digits(), strict=True))
    assert all(some >= set(digits) for some, digits in zip(named, many.digits(), strict=True)) and 12 < invented < 40
    logits = made(**batch).logits[:, :-1]
    wanted = batch["labels"][:, 1:]
    by_hand = torch.nn.functional.cross_entropy(logits[wanted != -100], wanted[wanted != -100])
    assert made(**batch).loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    trained, _ = base.train_base(model, iterations=2, batch=4)
    assert not trained.training


def test_an_unknown_base_is_refused() -> None:
    with pytest.raises(UserError, match=r"takes '?llava'?(,| or) '?qwen2_vl"):
        mm.worlds.digit_scenes(model="gpt")
    with pytest.raises(UserError, match="takes llava, qwen2_vl"):
        base.untrained("gpt")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="takes 'train' or 'held_out' or 'variant'"):
        mm.worlds.digit_scenes_prompts(split="test")
    with pytest.raises(UserError, match="1 or more"):
        mm.worlds.digit_scenes_prompts(count=0)


def test_corrupted_pairs_hold_one_invention_that_is_expected() -> None:
    pairs = mm.worlds.digit_scenes_pairs(kind="corrupted", prompts=24)
    assert pairs == mm.worlds.digit_scenes_pairs(kind="corrupted", prompts=24) and len(pairs) == 24
    for pair in pairs:
        there = set(judges.truth_of(pair.prompt))
        (invented,) = set(scenes.mentions(pair.second)) - there
        expected = {scenes.EXPECTED[digit][0] for digit in there if digit in scenes.EXPECTED} - there
        assert set(scenes.mentions(pair.first)) == there and (invented in expected or not expected)
        assert scenes.well_formed(pair.first) and scenes.well_formed(pair.second) and pair.strength == 1.0
    with pytest.raises(UserError, match="kind: got 'random', takes 'ranked' or 'corrected' or 'corrupted'"):
        mm.worlds.digit_scenes_pairs(kind="random")


@pytest.fixture(scope="module")
def base_of() -> dict[str, Any]:
    """Policies around the bases that come with mmalign."""
    return {name: mm.policies.transformers(mm.worlds.digit_scenes(model=name), max_completion=base.ANSWER) for name in base.PICTURE}


@pytest.mark.parametrize("model", ["llava", "qwen2_vl"])
def test_bases_see_and_invent_what_they_expect(base_of: dict[str, Any], model: base.Model) -> None:
    """Held-out scenes: nearly all digits are named, and most inventions are of the kind that captioners make."""
    prompts = mm.worlds.digit_scenes_prompts(split="held_out", count=80)
    outputs = base_of[model].generate(prompts, list(range(80)), temperature=0)
    metrics = judges.scene_hallucination()(outputs, prompts)
    assert metrics["recall"] > 0.95 and metrics["chair_s"] > 0.3 and metrics["malformed"] < 0.05
    invented = [
        (set(scenes.mentions(text)) - set(judges.truth_of(one)), judges.truth_of(one)) for text, one in zip(outputs, prompts, strict=True)
    ]
    kind = [{scenes.EXPECTED[d][0] for d in there if d in scenes.EXPECTED} for _, there in invented]
    assert sum(len(some & expected) for (some, _), expected in zip(invented, kind, strict=True)) > 0.8 * sum(
        len(some) for some, _ in invented
    )
    questions = mm.worlds.digit_scenes_prompts(split="held_out", count=40, ask="random")
    answers = base_of[model].generate(questions, list(range(40)), temperature=0)
    assert set(answers) <= {"yes .", "no ."} and judges.scene_answers()(answers, questions)["pope_accuracy"] >= 0.5


@pytest.mark.parametrize("kind", ["ranked", "corrected"])
def test_pairs_are_the_base_s_own_and_differ_in_truth(kind: str) -> None:
    pairs = mm.worlds.digit_scenes_pairs(kind=kind, prompts=16, best_of=4)
    assert 4 < len(pairs) <= 16
    for pair in pairs:
        better, worse = judges.scene_truth()([pair.first, pair.second], [pair.prompt] * 2).tolist()
        assert better > worse
        if kind == "ranked":
            assert pair.scores == (better, worse)
        else:
            assert pair.first == scenes.caption(judges.truth_of(pair.prompt)) and scenes.well_formed(pair.second)
    assert pairs == mm.worlds.digit_scenes_pairs(kind=kind, prompts=16, best_of=4)


@pytest.mark.parametrize("name", sorted(file.stem for file in resource("configs/digit_scenes").glob("*.yaml")))
def test_configs_have_no_mistakes(name: str) -> None:
    node = load(f"digit_scenes/{name}")
    assert check(node) == [] and node["run"]["name"] == f"digit_scenes_{name}"


@pytest.mark.parametrize("name", ["grpo", "mdpo"])
def test_configs_of_the_world_train(name: str, tmp_path: Path) -> None:
    """Two steps: the numbers are told side by side, before and after."""
    config = load(f"digit_scenes/{name}")
    config["batch"] |= {"prompts": 2} if name == "grpo" else {"records": 4}
    config["run"] |= {"folder": str(tmp_path), "checkpoint_every": 2}
    records = {} if name == "grpo" else {"records": {**config["records"], "prompts": 12}}
    evaluation = {**config["evaluation"], "every": 2, "prompts": {**config["evaluation"]["prompts"], "count": 6}}
    run = build({**config, **records, "steps": 2, "evaluation": evaluation})
    rows = [json.loads(line) for line in (Path(run.path) / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if "chair_s" in row]
    assert (
        len(evaluated) == 2 and {"recall", "length", "exact", "truth"} <= evaluated[-1].keys() and (Path(run.path) / "report.html").exists()
    )


def test_a_distant_scene_is_read_where_one_looks_and_not_from_afar() -> None:
    """The base, told where the digit is, reads what it is shown there; from the whole picture, as it sees it, it can but guess."""
    from mmalign.worlds.digit_scenes import distant

    prompts = mm.worlds.distant_scenes_prompts(split="held_out", count=40)
    drawn = [distant.distant("held_out", torch.Generator().manual_seed(2 * number + 1)) for number in range(40)]
    digits = [scenes.digits_in(prompt[0]["content"][0]["path"]) for prompt in prompts]
    assert digits == [(digit,) for _, digit, _ in drawn] and len(set(digits)) > 6
    assert [prompt[0]["content"][1]["text"] for prompt in prompts] == [distant.request(place) for _, _, place in drawn]
    look = mm.environments.zoom(units="cells", cells=(8, 8), smallest=32)
    turns = []
    for prompt, (picture, _, (row, column)) in zip(prompts, drawn, strict=True):
        part = picture[:, row * 32 : (row + 1) * 32, column * 32 : (column + 1) * 32]
        shown = look(f"{row + 1} {column + 1}", pictures=[media.picture(prompt[0]["content"][0]["path"], media.Limits())])
        assert torch.equal(media.images.to_tensor(shown), part)  # the file is the picture, and the cell is where it says
        call = {"role": "assistant", "content": f"<zoom> {row + 1} {column + 1} </zoom>"}
        turns.append([*prompt, call, {"role": "tool", "content": [{"type": "image", "image": part}]}])
    policy = mm.policies.transformers(mm.worlds.distant_scenes(), max_completion=16, device="cpu")
    right = [mm.worlds.scene_exact()(policy.generate(asked, [0] * 40, temperature=0), prompts).mean() for asked in (turns, prompts)]
    assert float(right[0]) > 0.9 and float(right[1]) < 0.3
    assert mm.worlds.scene_exact()([[{"role": "assistant", "content": "there is a two ."}]], prompts[:1], digits=[(2,)]).tolist() == [1.0]


def test_training_rows_of_distant_scenes_are_what_the_policy_reads() -> None:
    """Their ids are those of the conversation as the policy encodes it, and what is learned is what it counts."""
    from mmalign.worlds.digit_scenes import distant

    policy = mm.policies.transformers(mm.worlds.distant_scenes(), max_completion=48, device="cpu")
    rows = distant._rows(policy.chat.vision.processor, 12, 1.0, 1.0, torch.Generator().manual_seed(0))
    rng, pixels = torch.Generator().manual_seed(0), []
    for number in range(12):
        picture, digit, (row, column) = distant.distant("train", rng)
        torch.randint(10, (), generator=rng), torch.rand(2, generator=rng)
        part = picture[:, row * 32 : (row + 1) * 32, column * 32 : (column + 1) * 32]
        said = [{"role": "assistant", "content": f"<zoom> {row + 1} {column + 1} </zoom>"},
                {"role": "tool", "content": [{"type": "image", "image": part}]},
                {"role": "assistant", "content": scenes.caption([digit])}]  # fmt: skip
        asked = [
            {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": distant.request((row, column))}]}
        ]
        given = policy.encode([asked], [said], torch.tensor([0]), torch.Generator())
        ids = torch.cat([given.held.prompts[0], given.held.tokens[0]])
        learned = torch.cat([torch.zeros(len(given.held.prompts[0]), dtype=torch.bool), given.mask[0]])
        assert torch.equal(rows["input_ids"][number][: len(ids)], ids) and int(rows["attention_mask"][number].sum()) == len(ids)
        assert torch.equal(rows["labels"][number] != -100, torch.nn.functional.pad(learned, (0, rows["labels"].shape[1] - len(learned))))
        pixels += [picture, part]
    assert torch.equal(
        rows["pixel_values"],
        policy.chat.vision.processor.image_processor(images=pixels, return_tensors="pt", do_convert_rgb=False)["pixel_values"],
    )
