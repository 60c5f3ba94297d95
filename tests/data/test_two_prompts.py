"""One output under two prompts: which records make such pairs, and what a method learns of them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import mmalign as mm
from mmalign.media import Limits, picture
from mmalign.media.altering import Alteration
from mmalign.recipes._records import rows_of
from mmalign.records import Pair, Thumb, prompts_of
from mmalign.types import Steps, UserError
from tests.helpers import tiny_text

EDIT = {"attributes": {"red": ["blue"]}}


def shown(path, words="what is it?"):
    return [{"role": "user", "content": [{"type": "image", "path": str(path)}, {"type": "text", "text": words}]}]


def drawn(path: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(path)
    return path


def test_good_outputs_under_words_that_they_do_not_fit(tmp_path):
    talk = shown(tmp_path / "a.png", "a red fox")
    records = [
        Pair("a red fox", "good", "bad", 1.0, "0"), Pair("a red hen", "bad", "good", 0.0, "1"), Pair("a red cat", "x", "y", 0.5, "2"),
        Thumb("a red dog", "bad", 0.0, "3"), Thumb(talk, "good", 1.0, "4"), Thumb("a green dog", "good", 1.0, "5"),
    ]  # fmt: skip
    source = mm.data.two_prompts(records, edits=mm.data.edited(vocabulary=EDIT, ways=["attribute"]))
    found = {pair.id: pair for pair in islice(source.stream(seed=0), 12)}
    assert set(found) == {"0", "1", "4"} and list(source.broken) == ["5"]
    assert {(pair.first, pair.second, pair.strength) for pair in found.values()} == {("good", "good", 1.0)}
    assert [found[name].other for name in "01"] == ["a blue fox", "a blue hen"]
    assert found["4"].other == shown(tmp_path / "a.png", "a blue fox") and prompts_of(found["4"]) == (talk, found["4"].other)
    with pytest.raises(UserError, match="has two prompts"):
        next(mm.data.conditioned([found["0"]._replace(scores=(1.0, 0.0))], words=" {score}").stream(seed=0))


def test_answers_under_changed_pictures_that_are_always_changed_alike(tmp_path):
    """A blur by Pillow's own, and a crop that is random, by the picture and the seed."""
    first, second = drawn(tmp_path / "a.png"), drawn(tmp_path / "b.png", seed=1)
    cache = str(tmp_path / "cache")
    records = [Thumb(shown(first), "a fox", 1.0, "a"), Thumb("no picture", "a hen", 1.0, "b")]
    made = next(mm.data.two_pictures(records, transform="GaussianBlur", settings={"radius": 2}, cache=cache).stream(seed=0))
    assert (
        made.prompt == shown(first) and made.other[0]["content"][1] == made.prompt[0]["content"][1] and made.first == made.second == "a fox"
    )
    path = made.other[0]["content"][0]["path"]
    wanted = Image.open(first).filter(ImageFilter.GaussianBlur(2))
    assert path.startswith(cache) and np.array_equal(np.asarray(picture(path, Limits())), np.asarray(wanted))
    inverted = picture(Alteration("invert", cache=cache)(str(first)), Limits())
    assert np.array_equal(np.asarray(inverted), 255 - np.asarray(Image.open(first)))
    pytest.importorskip("torchvision")
    crop = {"size": [24, 20], "scale": [0.1, 0.2]}
    state = torch.get_rng_state()
    paths = [
        Alteration("RandomResizedCrop", crop, seed=seed, cache=cache)(str(file))
        for file, seed in ((first, 0), (first, 0), (first, 1), (second, 0))
    ]
    assert paths[0] == paths[1] and len(set(paths)) == 3 and torch.equal(state, torch.get_rng_state())
    elsewhere = Alteration("RandomResizedCrop", crop, seed=0, cache=str(tmp_path / "other"))(str(first))
    assert Path(elsewhere).read_bytes() == Path(paths[0]).read_bytes()
    assert picture(paths[0], Limits()).size == (20, 24)


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("Blurr", {}, "got 'Blurr'; PIL.ImageFilter and PIL.ImageOps have none of that name"),
        ("__class__", {}, "got '__class__', takes the name of one of"),
        ("GaussianBlur", {"width": 2}, "GaussianBlur does not take"),
    ],
)
def test_transforms_that_there_are_not(name, settings, line):
    with pytest.raises(UserError, match=line):
        mm.data.two_pictures([Thumb("p", "y", 1.0)], transform=name, settings=settings)


def test_dpo_compares_the_prompts(tmp_path):
    """The loss of such a pair by hand, from log-probabilities of the two prompts that were read apart."""
    policy = mm.policies.transformers(tiny_text.model(), tiny_text.tokenizer(), max_completion=9)
    for parameter in policy.sets.trained.values():  # so that policy and reference differ
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter.shape)))
    method, pair = mm.methods.dpo(beta=0.5), Pair("a red fox", "it is so", "it is so", 1.0, "0", other="a blue fox")
    prompts, outputs, feedback = rows_of([pair], method)
    assert prompts == ["a red fox", "a blue fox"]
    rollout = policy.encode(prompts, outputs, feedback.group, torch.Generator())
    policy.remember(rollout, ["ref"], 8)
    steps = policy.steps(rollout, torch.arange(2), needs=method.needs)
    loss = (method.weigh(steps.mask) * method.loss(steps, method.signal(feedback)).values).sum()

    def gain(prompt):
        alone = policy.encode([prompt], ["it is so"], torch.zeros(1, dtype=torch.int64), torch.Generator())
        totals = []
        for name in ("current", "ref"):
            with policy.using(name):
                totals.append(policy.steps(alone, torch.arange(1)).log_probs.sum())
        return totals[0] - totals[1]

    wanted = -torch.nn.functional.logsigmoid(0.5 * (gain("a red fox") - gain("a blue fox")))
    torch.testing.assert_close(loss, wanted, rtol=0, atol=1e-5)
    assert isinstance(steps, Steps) and abs(float(loss) - 0.6931) > 1e-3
