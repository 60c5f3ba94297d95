"""Every method on two processes takes the steps that it takes on one: the same losses, metrics and parameters, row by row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.records import Pair, Ranking, Thumb
from mmalign.runs import checkpoint
from mmalign.samplers import kernels
from mmalign.training.evaluations.evaluation import Results
from mmalign.types import Method, UserError
from mmalign.worlds import gaussian
from mmalign.worlds.gaussian import GaussianPolicy, QuadraticReward
from tests.helpers import tiny_text
from tests.helpers.flat import transformers
from tests.helpers.once import once
from tests.helpers.processes import together
from tests.test_contract import METHODS, ORACLES

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
"""Of runs in float64: sums of some 500 numbers of size 1 in another order differ by up to 500 * 2^-53 = 6e-14, Adam's rate / eps makes up
to ten times that of a parameter, and ORPO's odds divide by 1 - p. The parts of a loss cancel, so that it is their size that counts."""

CLOSE_IN_FLOAT32 = {"rtol": 1e-6, "atol": 1.2e-7}
"""Where a part is in float32 (LoRA, heads, pipelines): 16 roundings of 2^-24, and two of a loss's terms of size 1; Adam makes no more of
gradients whose terms are below 0.2. A language model here is GPT-2: norms of Llama and Qwen round to float32 in float64 models too."""

PROMPTS = ["abc", "why", "one two"]
WORDS = [("the answer", "a nswer"), ("no", "yes it is"), ("three", "two")]
RECORDS: dict[str, list[Any]] = {
    "scored pairs": [Pair(PROMPTS[n], *WORDS[n], scores=(0.9 - n / 5, -0.3 + n / 3)) for n in range(3)],
    "thumbs": [Thumb(PROMPTS[n], WORDS[n][n % 2], label=float(n % 2)) for n in range(3)],
    "rankings": [Ranking(PROMPTS[n], (*WORDS[n], "or not"), scores=(0.7, 0.2 + n / 9, -0.4)) for n in range(3)],
}


def varied(outputs: Any, prompts: list[str]) -> list[float]:
    return [float(len(set(str(output))) + len(str(output)) / 7) for output in outputs]


def method_of(name: str) -> Method:
    return METHODS[name](**ORACLES[name][0][0])


@cache
def built(*heads: str, alike: bool) -> tuple[Any, dict[str, dict[str, Tensor]]]:
    """A policy, which all methods train in turn, and what it starts as: making it takes as long as training it. alike: rollouts of the
    same prompts are made once, where a method has no hand in them."""
    more = {"heads": list(heads)} if heads else {}
    policy = transformers(tiny_text.model("gpt2").double(), tiny_text.tokenizer(), max_completion=7, segments="sentence", **more)
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters().values()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    policy.sets.keep("ref")
    for name in ("sample", "encode") if alike else ():
        setattr(policy, name, once(getattr(policy, name)))
    return policy, {name: {key: value.clone() for key, value in table.items()} for name, table in policy.sets.tables().items()}


def heads_of(method: Method) -> list[str]:
    kinds = {need.kind for need in method.needs | method.reads}
    return [name for name in ("value", "q1", "q2", "v1", "v2") if name in kinds]


def of_words(method: Method) -> Any:
    heads = heads_of(method)
    policy, start = built(*heads, alike=not (method.moves or method.behaviors))
    policy.sets.sets.clear()
    policy.sets.load(start)
    return policy


def of_paths() -> GaussianPolicy:
    return GaussianPolicy(gaussian.one_gaussian([0.7, -0.3], [0.5, 1.5]), gaussian.flow_levels(3), kernel=kernels.flow_sde())


def settings(folder: Path) -> dict[str, Any]:
    return {
        "steps": 1, "optimizer": mm.adamw(rate=1e-3, eps=1e-4), "evaluation": {"every": 9, "samples": 1, "prompts": ["abc", "why"]},
        "run": {"folder": str(folder), "name": "run", "trackers": ()},
    }  # fmt: skip


def online_of_words(name: str, folder: Path) -> Any:
    method, batch = method_of(name), {"prompts": 3, "group": 4, "resample": 1, "micro_rows": 6}
    return mm.online(of_words(method), PROMPTS, {"own": varied}, method, batch=batch, **settings(folder))  # type: ignore[arg-type]


def offline_of_words(name: str, folder: Path, **more: Any) -> Any:
    for records in ("scored pairs", "thumbs", "rankings"):
        method = method_of(name)
        try:
            return mm.offline(of_words(method), RECORDS[records], method, batch={"records": 3}, **settings(folder), **more)  # type: ignore[arg-type]
        except UserError as error:
            refused = error
    raise refused


def online_of_paths(name: str, folder: Path) -> Any:
    reward = {"linear": QuadraticReward(torch.tensor([1.0, -0.5], dtype=torch.float64))}
    batch = {"prompts": 3, "group": 4, "updates": 2, "resample": 1}
    return mm.online(of_paths(), ["a", "b", "c"], reward, method_of(name), batch=batch, **settings(folder))  # type: ignore[arg-type]


def of_kind(kind: str) -> list[str]:
    return [name for name in ORACLES if name in METHODS and kind in method_of(name).kinds]


def without_most(family: str, names: list[str]) -> list[str]:
    """All but two thirds of a family: of pairs, which learn from records, and of policy gradients, which refuse most of those."""
    own = [name for name in names if f".{family}." in METHODS[name].__module__]
    return [name for name in names if name not in own or own.index(name) % 3 == 0]


CASES: dict[str, tuple[Callable[[str, Path], Any], list[str]]] = {
    "online, tokens": (online_of_words, without_most("pairs", of_kind("token"))),
    "offline, tokens": (offline_of_words, without_most("policy_gradient", of_kind("token"))),
    "online, denoising": (online_of_paths, of_kind("transition")),
}


@pytest.fixture(scope="module", params=CASES)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The folder of runs ``one/METHOD`` and ``two/METHOD`` of a case, each with the error that refused it instead, if one did."""
    train, names = CASES[request.param]
    folder = tmp_path_factory.mktemp("runs")

    def all_of_them(where: str, writes: bool = True) -> None:
        for name in names:
            try:
                train(name, folder / where / name)
            except UserError as error:
                if writes:
                    (folder / where).mkdir(exist_ok=True)
                    (folder / where / f"{name}.txt").write_text(str(error))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmalign.recipes._run.build", lambda path: path)
        patch.setattr("mmalign.training.journal.Journal.once", lambda *given: None)  # test_runs.py has its preflight
        patch.setattr("mmalign.training.journal.evaluate", lambda *given, **more: Results({}, None))  # test_runs.py evaluates
        all_of_them("one")
        ended = together(2, lambda rank: all_of_them("two", writes=rank == 0), folder / "processes")
    assert not any(code for code, _ in ended), "\n".join(text for _, text in ended)
    return request.param, folder


def log(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def share(one: Any, two: Any, close: dict[str, float] = CLOSE) -> float:
    """How much of the tolerance two numbers, or what else a log holds, are apart; above 1 they are not the same."""
    if not isinstance(one, float) or not isinstance(two, float) or not math.isfinite(one - two):
        return 0.0 if one == two else math.inf
    return abs(one - two) / max(close["rtol"] * max(abs(one), abs(two)), close["atol"])


def alike(one: Any, two: Any, close: dict[str, float] = CLOSE) -> bool:
    return share(one, two, close) <= 1


def losses_apart(one: Path, two: Path) -> list[str]:
    """Steps whose losses differ, of runs that may have been evaluated and saved at other steps."""
    first, second = ([(row["step"], row["loss"]) for row in log(run) if row["phase"] == "train"] for run in (one, two))
    assert [step for step, _ in first] == [step for step, _ in second]
    return [f"step {step}: loss {loss} {other}" for (step, loss), (_, other) in zip(first, second, strict=True) if not alike(loss, other)]


def shares_of_logs(one: Path, two: Path, close: dict[str, float] = CLOSE) -> dict[str, float]:
    """Of every number that the runs ``one/run`` and ``two/run`` log, in words, how much of the tolerance they are apart."""
    told: dict[str, float] = {}
    for before, after in zip(log(one), log(two), strict=True):
        keys = before.keys() | after.keys()
        if abs(before.get("margin", 0.0)) < close["atol"]:  # its own reference: whether rounding is above 0 is no accuracy
            keys -= {"accuracy"}
        if abs(before.get("grad_norm", math.inf)) < close["atol"]:  # a teacher that is the student still: of rounding, too
            keys -= {"signal_zero"}
        for key in sorted(keys):
            first, second = before.get(key), after.get(key)
            told[f"{before['phase']} {before['step']}: {key} {first} {second}"] = share(first, second, close)
    return told


def shares(one: Path, two: Path, close: dict[str, float] = CLOSE) -> dict[str, float]:
    """``shares_of_logs``, and the same of every tensor that the runs save."""
    told = shares_of_logs(one, two, close)
    first, second = (checkpoint.load(max((folder / "run" / "checkpoints").glob("step_*")))[0] for folder in (one, two))
    told |= {f"{group}: in one alone": math.inf for group in first.keys() ^ second.keys()}
    for group in first.keys() & second.keys():
        told |= {f"{group}: {name} in one alone": math.inf for name in first[group].keys() ^ second[group].keys()}
        for name in first[group].keys() & second[group].keys():
            told[f"{group}: {name}"] = share_of_tensors(first[group][name].double(), second[group][name].double(), close)
    return told


def share_of_tensors(one: Tensor, two: Tensor, close: dict[str, float]) -> float:
    apart = torch.where(one == two, 0.0, (one - two).abs() / (close["atol"] + close["rtol"] * two.abs()))
    return float(apart.nan_to_num(math.inf).max()) if apart.numel() else 0.0


def differences(one: Path, two: Path, close: dict[str, float] = CLOSE) -> list[str]:
    """What is not the same of two runs, in words."""
    return [words for words, part in shares(one, two, close).items() if part > 1]


def test_two_processes_take_the_steps_of_one(runs: tuple[str, Path]) -> None:
    case, folder = runs
    refused, odd = 0, {}
    for name in CASES[case][1]:
        one, two = folder / "one" / name, folder / "two" / name
        lines = [file.read_text() if (file := path.with_suffix(".txt")).is_file() else None for path in (one, two)]
        if lines[0] is not None:
            refused += 1
            if lines[0] != lines[1]:
                odd[name] = lines
        elif lines[1] is not None or (apart := differences(one, two, CLOSE_IN_FLOAT32 if heads_of(method_of(name)) else CLOSE)):
            odd[name] = lines[1] or apart
    assert not odd, json.dumps(odd, indent=1)
    assert refused < len(CASES[case][1]) / 2
