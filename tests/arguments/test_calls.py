"""What Python calls is checked as a config is, and remembered as one."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

import mmalign as mm
from mmalign.arguments import calls, signatures
from mmalign.arguments.calls import made_by, node_of, sayable
from mmalign.recipes._run import Run
from mmalign.types import UserError


def test_what_a_room_makes_remembers_how():
    method = mm.methods.kto(beta=0.5)
    assert node_of(method) == {"use": "kto", "beta": 0.5}
    assert node_of(mm.like("TRL", mm.methods.ipo)) == {"use": "ipo", "margin": "per_step"}
    assert node_of({"a": [mm.kernels.ddim(eta=0.3), 1, None]}) == {"a": [{"use": "ddim", "eta": 0.3}, 1, None]}
    from mmalign.methods.unpaired.kto import kto

    assert made_by(kto()) is None and node_of({"method": kto()}) == {"method": "<Method>"} and not sayable("<Method>")


def test_nested_calls_and_positional_arguments():
    window = mm.windows.first_fraction(fraction=0.5)
    mixture = mm.worlds.one_gaussian([0.0, 1.0], [1.0, 1.0])
    assert node_of(mixture) == {"use": "one_gaussian", "mean": [0.0, 1.0], "variance": [1.0, 1.0]}
    assert node_of([window])[0]["use"] == "first_fraction" and sayable(node_of([window]))


def test_memory_ends_with_the_thing():
    gc.collect()
    before = len(calls._MADE)
    method = mm.methods.dpo()
    assert len(calls._MADE) == before + 1
    del method
    gc.collect()
    assert len(calls._MADE) == before


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: mm.methods.kto(bta=1.0), "kto.bta: unknown key of kto; nearest: beta; takes beta, desirable"),
        (lambda: mm.methods.kto(beta="high"), "kto.beta: got 'high', takes float"),
        (lambda: mm.methods.kto(baseline="none"), "kto.baseline: got 'none', takes 'mismatched' or 'batch' or 'zero'"),
        (lambda: mm.kernels.flow_sde(noise=1.0), "flow_sde.noise: unknown key of flow_sde; nearest: noise_level"),
        (lambda: mm.rewards.novelty(), "novelty: missing a required argument: 'scale'; takes scale, features"),
        (lambda: mm.Prompt("a fox", colums={}), "Prompt: got an unexpected keyword argument 'colums'; takes content, columns"),
        (lambda: mm.Prompt(), "Prompt: missing 1 required positional argument: 'content'; takes content, columns"),
        (lambda: mm.like("dpo"), "like: missing a required argument: 'function'; takes who, function"),
        (lambda: mm.like("TRL", "ipo"), "like.function: got 'ipo', takes what makes a method, as in mm.like('TRL', mm.methods.ipo)"),
        (lambda: mm.like("TRL", mm.methods.ipo, bta=1.0), "ipo.bta: unknown key of ipo; nearest: beta; takes beta"),
        (lambda: mm.sample(object(), count=1), "sample.run_folder: got a object, takes str or path"),
        (lambda: mm.guided_sample(object()), "model: got a object, takes a pipeline, or the name of a run"),
        (
            lambda: Run(Path("run"), {}, None).export(fromat="peft"),
            "export.fromat: unknown key of export; nearest: form; takes out, parameters, form",
        ),
        (lambda: Run(Path("run"), {}, None).sample(cont=1), "sample.cont: unknown key of sample; nearest: count; takes prompts, count"),
    ],
)
def test_a_wrong_keyword_in_python_is_the_line_of_a_config(call, line):
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_what_an_annotation_names_may_be_there_after_the_first_question(monkeypatch):
    def score(weight: Later, beta: float = 1.0): ...  # noqa: F821 (of a module that is half imported)

    annotations = lambda: [parameter.annotation for parameter in signatures.parameters(score)[0].values()]  # noqa: E731
    assert annotations() == [Any, float]
    monkeypatch.setitem(score.__globals__, "Later", int)
    assert annotations() == [int, float] == annotations()
