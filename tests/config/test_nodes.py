"""Functions that are rewards themselves stand in a config as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmalign.config import build_part, check, load
from mmalign.config.nodes import maker

OWN = """
def plain(outputs, prompts):
    return [float(len(output)) for output in outputs]

def with_column(outputs, prompts, answer, scale=1.0):
    return [scale * (output == right) for output, right in zip(outputs, answer)]

def trl(completions, **kwargs):
    return [0.0 for _ in completions]

def made(scale):
    return lambda outputs, prompts: [scale for _ in outputs]
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_rewards.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("node", "outputs", "columns", "scores"),
    [
        ("their_rewards.plain", ["a", "bcd"], {}, [1.0, 3.0]),
        ({"use": "their_rewards.plain"}, ["a", "bcd"], {}, [1.0, 3.0]),
        ({"use": "their_rewards.with_column", "scale": 2.0}, ["a", "b"], {"answer": ["a", "a"]}, [2.0, 0.0]),
        ("their_rewards.with_column", ["a", "b"], {"answer": ["a", "a"]}, [1.0, 0.0]),
        ({"use": "their_rewards.made", "scale": 4.0}, ["a"], {}, [4.0]),
    ],
)
def test_a_reward_itself_and_what_makes_one(node, outputs, columns, scores):
    (reward,) = build_part({"rewards": {"own": node}}, "rewards").values()
    assert reward(outputs, ["?"] * len(outputs), **columns) == scores


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    ("node", "mistake"),
    [
        ({"use": "their_rewards.with_column", "scal": 2.0}, "scal: unknown key of their_rewards.with_column; nearest: scale; takes scale"),
        ({"use": "their_rewards.plain", "scale": 2.0}, "scale: unknown key of their_rewards.plain; takes nothing"),
        ("their_rewards.made", "scale: missing, their_rewards.made needs it"),
        (
            "their_rewards.trl",
            "own.completions: missing, their_rewards.trl needs it; a function that scores by itself begins with (outputs, prompts)",
        ),
    ],
)
def test_mistakes_are_found_imported_or_not(node, mistake, trust):
    config = {**load("digits/lora"), "rewards": {"own": node}, "combine": None, "evaluation": {}}
    mistakes = check(config, trust=trust)
    assert [line for line in mistakes if mistake in line], mistakes


@pytest.mark.parametrize(
    ("key", "name", "says"),
    [
        ("policy", "text", "gives no policy but tuple[Any, Any]; it stands under model"),
        ("policy", "digits", "gives no policy but Any; it stands under pipeline"),
        ("policy.pipeline", "text", "gives no pipeline but tuple[Any, Any]; it stands under model"),
        ("prompts", "texts", "gives no prompts but Stored; it stands under records"),
        ("prompts", "text_plain", "gives no prompts but Callable[..., Tensor]"),
        ("evaluation.records", "text_plain", "gives no records but Callable[..., Tensor]"),
        ("evaluation.records", "digits", "gives no records but Any; it stands under pipeline"),
    ],
)
def test_what_stands_in_the_same_room_and_is_another_thing_is_refused(key, name, says):
    """A room holds models, prompts, records and rewards beside each other; a run would end in an error of Python's."""
    home = config = load("digits/demo")
    *homes, last = key.split(".")
    for word in homes:
        home = home[word]
    home[last] = {"use": name}
    assert f"{key}.use: got {name!r}, which {says}" in check(config)


def test_elsewhere_a_function_is_what_makes_the_thing():
    def window(outputs, prompts):
        return outputs

    assert maker(window, ("samplers.windows",)) is window
    assert maker(window, ("rewards", "worlds"))() is window


@pytest.mark.parametrize(
    "key", ["policy", "policy.pipeline", "policy.schedule.kernel", "policy.schedule.window", "method", "combine", "oracle", "rewards"]
)
@pytest.mark.parametrize("value", [[], [None], [{"use": "digits"}], 3])
def test_a_list_is_no_node_where_one_object_is_built(key, value):
    home = config = load("digits/demo")
    *homes, last = key.split(".")
    for word in homes:
        home = home[word]
    home[last] = value
    assert any(line.startswith(f"{key}: got {value!r}, takes a node") for line in check(config)), check(config)


def test_a_node_is_no_data():
    """Neither in place of a list of numbers, nor inside of it: it would be built, and handed to what takes numbers."""
    demo = load("digits/demo")
    for within in ({"use": "everything"}, [{"use": "everything"}, 1.0]):
        window = {"use": "random_window", "within": within}
        schedule = {**demo["policy"]["schedule"], "window": window}
        lines = check({**demo, "policy": {**demo["policy"], "schedule": schedule}})
        assert lines == ["policy.schedule.window.within: got a node, takes list of float and float"]
    lines = check({**demo, "combine": {"use": "weighted_sum", "weights": {"proxy": {"use": "ddim"}, "novelty": 1.0}}})
    assert any(line.startswith("combine.weights: got a node, takes mapping of str to float") for line in lines), lines
