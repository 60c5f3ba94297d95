"""Images against reference images, and against what a detector sees in them."""

from __future__ import annotations

import math

import pytest
import torch

import mmalign as mm
from mmalign.rewards.pictures.object_counts import Found, clauses, load_detector, standing
from mmalign.types import UserError
from tests.helpers.tiny_models import PROMPTS, images

# ---- subjects


@pytest.mark.parametrize("features", ["dino", "clip"])
def test_similarity_is_the_mean_cosine(models, features, tmp_path):
    from PIL import Image

    reward = mm.rewards.subject_similarity(features=features, weights=str(models / features), device="cpu", rows_at_once=3)
    pictures = images()
    others = [[pictures[1]], [pictures[1], pictures[2]], pictures[2], [pictures[3]]]
    scores = reward(pictures, PROMPTS, references=others)
    single = torch.stack([reward(pictures[1:2], ["p"], references=[[one]])[0] for one in pictures])
    assert scores.tolist() == pytest.approx([single[0].item(), (1 + single[2].item()) / 2, 1, 1], abs=1e-5)
    assert reward.differentiable and (reward.low, reward.high) == (-1, 1)
    leaf = pictures.clone().requires_grad_()
    reward(leaf, PROMPTS, references=[pictures[0]] * 4).sum().backward()
    assert bool((leaf.grad.flatten(1).abs().amax(1) > 0)[1:].all())
    for number, picture in enumerate(pictures):
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / "1.png")] * 2
    assert reward(pictures[:2], ["a", "a"], references=paths).tolist() == pytest.approx([single[0].item(), 1], abs=1e-5)
    assert reward(pictures[:1], ["b"], references=[[str(tmp_path / "0.png")]]).item() == pytest.approx(1, abs=1e-5)


def test_the_harmonic_mixture_of_subject_and_prompt(models):
    folder = str(models / "clip")
    parts = {
        "subject": mm.rewards.subject_similarity(features="clip", weights=folder, device="cpu"),
        "prompt": lambda outputs, prompts, **_: torch.full((len(prompts),), 0.5),
    }
    reward = mm.rewards.combined(rewards=parts, combine=mm.combinations.harmonic(weights={"subject": 0.3, "prompt": 0.7}))
    scores = reward(images()[:1], ["p"], references=[images()[1]])
    near = parts["subject"](images()[:1], ["p"], references=[images()[1]]).item()
    assert scores.item() == pytest.approx(1 / (0.3 / near + 0.7 / 0.5), abs=1e-6)


def test_dino_sees_what_dreambooth_s_evaluation_shows_it(models):
    from transformers import ViTModel

    from mmalign.media.preprocessing import fitted
    from mmalign.rewards.pictures.subject_similarity import load_dino

    pictures = images(64, 48)
    cut = (fitted(pictures, 37)[..., 2:34, 2:34].clamp(0, 1) - 0.5) / 0.5  # 32 * 256 / 224
    with torch.no_grad():
        wanted = ViTModel.from_pretrained(models / "dino", add_pooling_layer=False).eval()(pixel_values=cut).last_hidden_state[:, 0]
    seen_there = load_dino("x", str(models / "dino"), "cpu")(pictures)
    assert torch.allclose(seen_there, wanted / wanted.norm(dim=-1, keepdim=True), atol=1e-5)


# ---- objects


def cup(x, y, *, size=10, score=0.95, name="cup"):
    return Found(name, score, (x, y, x + size, y + size))


def asked(*include, exclude=(), tag="x"):
    return {"tag": tag, "include": list(include), "exclude": list(exclude)}


def seen(objects, *, where=None, **more):
    """The reward on one black image of which a detector says this."""
    names = []

    def detect(picture, wanted):
        names.append(list(wanted))
        return objects

    reward = mm.rewards.object_counts(detect=detect, **more)
    return reward(torch.zeros(1, 3, 64, 64), ["p"], objects=[where]).item(), names


TWO = {"class": "cup", "count": 2}
DOG = {"class": "dog", "count": 1, "position": ["left of", 0]}


@pytest.mark.parametrize(
    ("objects", "where", "score", "part"),
    [
        ([cup(0, 0), cup(30, 0)], asked(TWO), 1, 1),
        ([cup(0, 0)], asked(TWO), 0, 0),
        ([cup(0, 0), cup(30, 0), cup(0, 30)], asked(TWO), 1, 1),
        ([cup(0, 0), cup(30, 0), cup(0, 30)], asked(TWO, exclude=[{"class": "cup", "count": 3}]), 0, 0.5),
        ([cup(0, 0), cup(30, 0, score=0.2)], asked(TWO), 0, 0),  # too unsure
        ([cup(0, 0), cup(30, 0, score=0.5)], asked(TWO, tag="counting"), 0, 0),
        ([cup(40, 0), cup(30, 0), cup(0, 0, name="dog")], asked(TWO, DOG), 1, 1),
        ([cup(40, 0), cup(0, 0), cup(20, 0, name="dog")], asked(TWO, DOG), 0, 0.5),  # left of one, and not of the other
        ([cup(40, 0), cup(0, 0, name="dog")], asked(TWO, DOG), 0, 0),  # of two cups that are not there
        ([], asked(exclude=[{"class": "cup", "count": 1}]), 1, 1),
    ],
)
def test_what_is_asked_for_has_to_be_there(objects, where, score, part):
    assert seen(objects, where=where)[0] == score
    assert seen(objects, where=where, part=True)[0] == part


def test_the_detector_is_asked_for_the_names_and_one_object_counts_once():
    value, names = seen([cup(0, 0), cup(1, 0, score=0.9)], where=asked(TWO, DOG), overlap=0.5)
    assert (value, names) == (0, [["cup", "dog"]])
    assert seen([cup(0, 0), cup(1, 0, score=0.9)], where=asked(TWO))[0] == 1  # GenEval counts both
    many = [cup(number, 0, size=1) for number in range(40)]
    assert seen(many, where=asked({"class": "cup", "count": 17}))[0] == 0  # at most 16 of a class, as there


def test_places_are_those_of_the_centres_less_a_tenth_of_the_sizes():
    assert standing(cup(0, 0), cup(30, 0)) == {"left of"} and standing(cup(30, 0), cup(0, 0)) == {"right of"}
    assert standing(cup(0, 0), cup(0, 30)) == {"above"} and standing(cup(0, 30), cup(0, 0)) == {"below"}
    assert standing(cup(0, 0), cup(40, 40)) == {"left of", "above"}
    assert standing(cup(0, 0), cup(1, 0)) == set() and standing(cup(0, 0), cup(0, 0)) == set()
    near = 4.0  # 2 of it are left of the slack of .1 * 20
    assert standing(cup(0, 0), cup(near, 0)) == set() and standing(cup(0, 0), cup(near + 0.1, 0)) == {"left of"}


def test_colours_are_asked_of_the_objects_that_count():
    red = {"class": "cup", "count": 2, "color": "red"}
    objects = {"cup": [cup(0, 0), cup(30, 0), cup(0, 30)]}
    answers = iter(["red", "red"])
    assert clauses(asked(red), objects, lambda one: next(answers)) == [True]
    assert clauses(asked(red), objects, lambda one: "red" if one.corners[0] == 0 else "blue") == [False]


def test_a_colour_is_the_nearest_of_ten(models):
    where = asked({"class": "cup", "count": 1, "color": "red"})
    scores = {}
    for color in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"):
        where["include"][0]["color"] = color
        scores[color] = seen([cup(0, 0, size=30)], where=where, clip=str(models / "clip"), device="cpu")[0]
    assert sum(scores.values()) == 1  # exactly one of them is said of a box


def test_a_zero_shot_detector_of_transformers(models):
    detect = load_detector("object_counts.detector", str(models / "owl"), "cpu")
    picture = (images()[0] * 255).byte().permute(1, 2, 0)
    seen_there = detect(picture, ["red fox", "cup"])
    assert len(seen_there) == 16 and {one.name for one in seen_there} <= {"red fox", "cup"}
    assert all(0 <= one.score <= 1 and math.isfinite(sum(one.corners)) for one in seen_there)
    reward = mm.rewards.object_counts(detector=str(models / "owl"), device="cpu", least=0.0)
    assert reward(images(), PROMPTS, objects=[asked(exclude=[{"class": "cup", "count": 17}])] * 4).tolist() == [1] * 4


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: mm.rewards.subject_similarity(features="vit"), r"subject_similarity\.features: got 'vit'"),
        (lambda: mm.rewards.subject_similarity(weights="./nowhere"), r"subject_similarity\.weights: got '\./nowhere'"),
        (lambda: mm.rewards.object_counts(least=2.0), "object_counts.least: got 2.0, takes 0 to 1"),
        (lambda: mm.rewards.object_counts(detector="./nowhere"), r"object_counts\.detector: got '\./nowhere'"),
        (lambda: seen([], where={"include": []}), r"object_counts\.column: got"),
        (lambda: seen([], where=asked({"class": "cup", "count": 1, "color": "teal"})), r"object_counts\.column: got"),
        (lambda: seen([], where=asked({"class": "cup", "count": 1, "position": ["near", 0]})), r"object_counts\.column: got"),
    ],
)
def test_mistakes_are_one_line(build, says):
    with pytest.raises(UserError, match=says) as caught:
        build()
    assert "\n" not in str(caught.value)
