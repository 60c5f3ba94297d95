"""Every method on every kind of data, with every kind of policy: it learns, is refused before it starts, or says that it learned nothing.

The rows of this matrix are methods and kinds of policies, a test each; its columns are what is known of a rollout's outputs, or of records.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import mmalign as mm
from mmalign.needs import lacking
from mmalign.records import Pair, Ranking, Thumb
from mmalign.training import journal
from mmalign.training import references as stored
from mmalign.training.evaluations.evaluation import Results
from mmalign.types import Method, Need, UserError
from tests.helpers import small_run, tiny_text
from tests.helpers.flat import transformers
from tests.helpers.once import once
from tests.test_contract import METHODS, ORACLES

HEADS = ("value", "q1", "q2", "v1", "v2", "degree", "dead_end", "reward_mask", "kl_mask")
PROMPTS = {
    "token": ["abc", "why", "one two"],
    "transition": ["a", "b", "c"],
    "bound": ["a 3", "a 5", "a 7"],
    "score": ["abc", "why", "one two"],
}
MADE_ONCE = {"token": ("sample", "encode"), "transition": ("sample",), "bound": ("encode",), "score": ("encode",)}
WORDS = [("the answer", "a nswer", "or not"), ("no", "yes it is", "or not"), ("three", "two", "or not")]
IMAGES = torch.rand(3, 3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


OWN = {"cgpo": {"judges": {}}}  # the judges of its oracles are rewards of a table


def method_of(name: str) -> Method:
    return METHODS[name](**OWN.get(name, ORACLES[name][0][0]))


METHOD = {name: method_of(name) for name in ORACLES if name in METHODS}


FOR_SO_MANY = ("peer_review", "bradley_terry_mixture", "bradley_terry_contrastive")  # whose first oracle is for the five scores of a table

# Policies


def of_words(heads: tuple[str, ...], model: str = "qwen2") -> Any:
    contrasts = {"good": "well", "bad": "badly", "blended": 0.2}
    tokenizer = tiny_text.tokenizer(tiny_text.CHATML)
    policy = transformers(tiny_text.model(model), tokenizer, max_completion=12, segments="sentence", heads=heads, contrasts=contrasts)
    return shaken(policy, 0)  # heads are 0 at first, where some losses have no gradient


def of_images(seed: int = 0) -> Any:
    from mmalign.worlds.digits.base import untrained

    policy = mm.policies.forward(mm.policies.diffusers(untrained(), device="cpu", schedule={"steps": 2}))
    return shaken(policy, seed)  # an untrained one does not hear its prompt


def of_scores(count: int = 2) -> Any:
    return shaken(mm.policies.scorer(of_words(()), scores=list("abcde")[:count]), 0)


def shaken(policy: Any, seed: int) -> Any:
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters().values()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * seed + number)).to(parameter)
    return policy


@cache
def another(kind: str) -> Any:
    """A policy of the same kind around another model: of words of another class, of images with other weights."""
    makes = {"token": lambda: of_words((), "llama"), "transition": small_run.policy, "bound": lambda: of_images(1), "score": of_scores}
    return makes[kind]()


def copied(policy: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.parameters().items()}


@pytest.fixture(scope="module")
def policy_for() -> Callable[[Method, str], Any]:
    """A policy of a kind, with the heads that a method asks for, as it was when it was made. Each is made once."""
    made: dict[Any, Any] = {}

    def fresh(method: Method, kind: str) -> Any:
        kinds = {need.kind for need in method.needs | method.reads} if kind == "token" else set()
        count = 5 if any(method is METHOD[name] for name in FOR_SO_MANY) else 2
        key = (
            kind,
            tuple(name for name in HEADS if name in kinds),
            bool(method.moves or method.behaviors),
            count,
        )  # which rollouts depend on
        if key not in made:
            makes = {
                "token": lambda: of_words(key[1]),
                "transition": small_run.policy,
                "bound": of_images,
                "score": lambda: of_scores(count),
            }
            policy = makes[kind]()
            for name in () if key[2] else MADE_ONCE[kind]:
                setattr(policy, name, once(getattr(policy, name)))
            made[key] = policy, copied(policy)
        policy, start = made[key]
        policy.sets.sets.clear()
        policy.sets.others.clear()
        policy.sets._adopted.clear()
        policy.sets.load({"trained": start, "ref": start})
        return policy

    return fresh


@pytest.fixture(autouse=True)
def steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No page, no evaluations and no checkpoints, which are tested elsewhere."""
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)
    monkeypatch.setattr(journal, "evaluate", lambda policy, plan, **how: Results({}, None))
    monkeypatch.setattr(journal.Journal, "_save", lambda self: None)


class Cell(NamedTuple):
    """How a run ended; whether its parameters moved; why it was refused."""

    status: str
    moved: bool
    why: str = ""


def cell(run: Callable[..., Any], policy: Any, folder: Path, **given: Any) -> Cell:
    before, why = copied(policy), ""
    own = {"steps": 1, "optimizer": mm.adamw(rate=1e-3), "run": {"folder": str(folder), "name": "run", "trackers": ()}}
    try:
        status = str(run(policy, **own, **given).summary["status"])
    except UserError as error:
        status, why = "refused", str(error)
        assert "\n" not in why and not (folder / "run").exists()
    moved = any(float((now - before[key]).abs().max()) > 1e-5 for key, now in copied(policy).items())  # Adam makes 3e-6 of rounding (3e-11)
    return Cell(status, moved, why)


def refuse_silence(method: Method, cells: dict[str, Cell], *, quiet: set[str]) -> None:
    """quiet: columns under which a run may find out after it began that there was nothing to learn."""
    itself = any(move.name == "current" for move in method.moves)  # then it moves without having learned
    for data, (status, moved, _) in cells.items():
        assert status in ("finished", "refused") or (status == "learned nothing" and data in quiet), (data, cells)
        assert moved == (status == "finished") or itself, (data, cells)


# References that do not start as the policy


ANOTHER, STORED = "another model", "a stored reference"


def from_elsewhere(method: Method, policy: Any, kind: str, folder: Path) -> dict[str, dict[str, Any]]:
    """All references of a method as other models; and as weights on disk, by the name of a folder beside the run's."""
    names = stored.references(method, method.needs) or ["ref"]
    folder.mkdir()
    others = {key: value + 0.05 for key, value in copied(policy).items() if key.partition(".")[0] not in HEADS}
    save_file(others, str(folder / "model.safetensors"))
    return {ANOTHER: {name: {"policy": another(kind)} for name in names}, STORED: {name: {"from": folder.name} for name in names}}


def under_references(
    run: Callable[..., Any], policy: Callable[[], Any], name: str, kind: str, folder: Path, **given: Any
) -> dict[str, Cell]:
    cells = {}
    for data, references in from_elsewhere(METHOD[name], policy(), kind, folder / "before").items():
        cells[data] = cell(run, policy(), folder, **given, method=method_of(name), references=references)
        shutil.rmtree(folder / "run", ignore_errors=True)
    return cells


def refuse_or_learn(method: Method, policy: Any, cells: dict[str, Cell], *, plain: str) -> None:
    """With a stored reference a method ends as without; another model is refused where it cannot be what the method asks for."""
    assert cells[STORED].status == cells[plain].status, cells
    status, _, why = cells[ANOTHER]
    names, moved = stored.references(method, method.needs), {name for move in method.moves for name in (move.name, *move.shares)}
    drawn = {name for behavior in method.behaviors for name in behavior.shares}
    if cells[plain].status == "refused":
        assert status == "refused", cells
    elif not names and policy.kind == "token":  # of transitions, the KL in the log is one to ref
        assert why == "references.ref.policy: the method asks nothing of 'ref'; takes a name of a method with references"
    elif moved & set(names):
        assert "the method renews" in why, cells
    elif drawn & set(names):
        assert "another model only scores here" in why, cells
    elif method.needs & {Need("reward_mask"), Need("kl_mask")}:
        assert "reads the hidden states of this one's own" in why, cells
    elif policy.kind == "transition":
        assert "takes sets of its own parameters alone" in why, cells
    else:
        assert status == "finished", cells


# What is known of a rollout


def varied(outputs: Any, prompts: list[str]) -> Any:
    return outputs.sum(1) if isinstance(outputs, Tensor) else [float(len(set(output)) + len(output) / 7) for output in outputs]


def constant(outputs: Any, prompts: list[str]) -> list[float]:
    return [1.0 for _ in outputs]


def unknown(outputs: Any, prompts: list[str]) -> list[None]:
    return [None for _ in outputs]


def later_wins(outputs: Any, prompts: list[str], group: Tensor) -> Tensor:
    rows = torch.arange(len(outputs))
    return 0.5 + 0.4 * torch.sign(rows[:, None] - rows[None])


def nobody_wins(outputs: Any, prompts: list[str], group: Tensor) -> Tensor:
    return torch.full((len(outputs), len(outputs)), 0.5)


ONLINE: dict[str, dict[str, Any]] = {
    "scores": {"rewards": {"own": varied}},
    "scores that are alike": {"rewards": {"own": constant}},
    "no scores": {"rewards": {"own": unknown}, "batch": {"missing": "drop"}},
    "groups of one": {"rewards": {"own": varied}, "batch": {"group": 1}},
    "an oracle": {"rewards": {"own": constant}, "oracle": later_wins},
    "an oracle that ties": {"rewards": {"own": constant}, "oracle": nobody_wins},
    "a reference that follows": {"rewards": {"own": varied}, "references": {"ref": {"every": 1}}},
}
ELSEWHERE = (
    "and the method compares answers with those behind prompts whose images are taken away",
    "this method reads rewards",
)  # pictures in prompts, scores of parts


# whose teacher is the student itself here, and says so: tests/methods/forward_process/test_optima.py, and
# tests/methods/policy_gradient/test_token_optima.py; the first step of this policy is a point, of which nothing is to be learned:
# tests/methods/distillation/test_gaussian.py
OF_A_TEACHER = ("diffusion_opd", "opd", "tdm", "tdm_r1")


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in METHOD if name not in OF_A_TEACHER for kind in sorted(METHOD[name].kinds - {"bound", "score"})],
)
def test_an_online_run(name: str, kind: str, policy_for: Callable[[Method, str], Any], tmp_path: Path) -> None:
    cells, method = {}, METHOD[name]
    beside = {"hardness": varied} if name == "gardo" else {}  # what its first oracle takes for diversity
    for number, (data, known) in enumerate(ONLINE.items()):
        known = {**known, "rewards": {**known["rewards"], **beside}}
        batch, policy = {"prompts": 2, "group": 4, "resample": 0, **known.get("batch", {})}, policy_for(method, kind)
        given = {**known, "prompts": PROMPTS[kind], "method": method_of(name), "batch": batch}
        cells[data] = cell(mm.online, policy, tmp_path / str(number), **given)
    given = {"rewards": {"own": varied, **beside}, "prompts": PROMPTS[kind], "batch": {"prompts": 2, "group": 4}}
    cells |= under_references(mm.online, lambda: policy_for(method, kind), name, kind, tmp_path, **given)
    quiet = {"scores that are alike", "no scores", "an oracle", "an oracle that ties"} | (
        {"groups of one"} if method.unit == "group" else set()
    )
    refuse_silence(method, cells, quiet=quiet)  # of a list, whose signal is the rows' levels
    refuse_or_learn(method, policy_for(method, kind), cells, plain="scores")
    for data in ("scores", "a reference that follows"):
        why = cells[data].why
        if lacks := lacking(method, policy.gives):
            assert why.startswith(f"method: needs {', '.join(lacks)}; this policy gives ")
        else:
            assert cells[data].status == "finished" or (kind == "token" and any(words in why for words in ELSEWHERE)), cells


def test_scores_that_are_missing_are_refused_by_default(policy_for: Callable[[Method, str], Any], tmp_path: Path) -> None:
    method = method_of("grpo")
    ended = cell(mm.online, policy_for(method, "token"), tmp_path, rewards={"own": unknown}, prompts=PROMPTS["token"], method=method)
    assert ended.status == "refused" and "scores are NaN" in ended.why


# Records


def records(prompts: list[str], outputs: Any) -> dict[str, list[Any]]:
    """Of three outputs to each prompt."""
    rows = list(zip(range(3), prompts, outputs, strict=True))
    return {
        "pairs": [Pair(prompt, a, b) for _, prompt, (a, b, _c) in rows],
        "scored pairs": [Pair(prompt, a, b, scores=(0.9 - n / 5, -0.3 + n / 3)) for n, prompt, (a, b, _c) in rows],
        "pairs scored alike": [Pair(prompt, a, b, scores=(0.0, 0.0)) for _, prompt, (a, b, _c) in rows],
        "ties": [Pair(prompt, a, b, strength=0.5) for _, prompt, (a, b, _c) in rows],
        "labels": [Thumb(prompt, three[n % 2], label=float(n % 2)) for n, prompt, three in rows],
        "lists": [Ranking(prompt, tuple(three), scores=(0.7, 0.2 + n / 9, -0.4)) for n, prompt, three in rows],
        "lists of one": [Ranking(prompt, (three[0],), scores=(0.7 - n / 3,)) for n, prompt, three in rows],
    }


OFFLINE = {kind: records(PROMPTS[kind], outputs) for kind, outputs in (("token", WORDS), ("bound", IMAGES), ("score", WORDS))}
OFFLINE["token"]["a reference that follows"] = OFFLINE["token"]["scored pairs"]
for data in ("pairs scored alike", "ties", "lists of one"):  # a pipeline is slow, and what they say does not depend on it
    del OFFLINE["bound"][data]
NEED_SCORES = ("mm_dpo", "modpo", "raft", "a_lol", "rebel", "reinforce", "reward_weighted_regression", "gpg", "score_regression")
NOT_OF_RECORDS = (  # why a method learns from no records at all
    "Steps.old: got None, an importance ratio takes the log-probabilities at sampling time",
    "and nothing is sampled here; takes the recipe online",
    "got none, gdpo takes every reward by itself",
    "contrast: got 'bad', this policy takes 'mismatched' or 'ablated'",
    *ELSEWHERE,
)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in METHOD if name not in OF_A_TEACHER for kind in sorted(METHOD[name].kinds - {"transition"})]
)
def test_an_offline_run(name: str, kind: str, policy_for: Callable[[Method, str], Any], tmp_path: Path) -> None:
    cells, method = {}, METHOD[name]
    columns = OFFLINE[kind]
    for number, (data, rows) in enumerate(columns.items()):
        references, policy = {"ref": {"every": 1}} if data == "a reference that follows" else None, policy_for(method, kind)
        given = {"records": rows, "method": method_of(name), "batch": {"records": 3}, "references": references}
        given |= {"evaluation": {"records": rows[:2]}} if kind == "score" else {}
        cells[data] = cell(mm.offline, policy, tmp_path / str(number), **given)
    if kind == "token":  # a pipeline is slow
        given = {"records": columns["scored pairs"], "batch": {"records": 3}}
        cells |= under_references(mm.offline, lambda: policy_for(method, kind), name, kind, tmp_path, **given)
        refuse_or_learn(method, policy_for(method, kind), cells, plain="scored pairs")
    refuse_silence(method, cells, quiet={"pairs scored alike", "ties"})  # of which a method may make what it likes
    if not any(status == "finished" for status, *_ in cells.values()):
        assert any(words in cells["scored pairs"].why for words in NOT_OF_RECORDS), cells
    if name in NEED_SCORES:
        assert "rows say nothing that this method learns from: they have no scores" in cells["pairs"].why
        assert cells["scored pairs"].status == "finished" or name == "rebel"  # whose ratio is to the policy that sampled
