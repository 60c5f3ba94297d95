"""What references say of rows that come again is computed once: with the same numbers, within a limit, and exactly after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.distributed.team import ALONE
from mmalign.policies.language.scoring import step_tables
from mmalign.policies.twins import visions
from mmalign.records import Pair
from mmalign.runs import checkpoint
from mmalign.selftest.trials import contents, differing
from mmalign.training.kept_references import BESIDE, KeptReferences
from mmalign.training.updates.learner import Learner
from tests.helpers import small_run, tiny_text
from tests.helpers.flat import transformers
from tests.helpers.processes import together

WORDS = ["one", "two", "three", "four", "no", "yes", "why not", "abc"]
RECORDS = [Pair(f"say {number}", word, word[::-1] + "x", id=str(number)) for number, word in enumerate(WORDS)]
STEPS = 12  # three passes of eight records by two


def train(folder: Path, *, records: Any = RECORDS, policy: Any = None, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "steps": STEPS, "optimizer": mm.adamw(rate=1e-2), "evaluation": {"prompts": ["ab"], "every": 99, "samples": 1},
        "run": {"folder": str(folder), "name": "run", "trackers": (), "checkpoint_every": 1, **more.pop("run", {})},
        "batch": {"records": 2, **more.pop("batch", {})}, **more,
    }  # fmt: skip
    policy = policy or transformers(tiny_text.model("gpt2").double(), tiny_text.tokenizer(), max_completion=9)
    return mm.offline(policy, records, mm.methods.dpo(beta=0.5), **settings)


def column(run: Any, name: str) -> list[float]:
    return [row[name] for row in small_run.rows(run.path) if row["phase"] == "train"]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that references were asked about in each step."""
    counts, inside = list[int](), [False]
    remember, whole = Learner.remember, step_tables.log_probs

    def of_step(self: Any, *given: Any) -> None:
        counts.append(0)
        inside[0] = True
        remember(self, *given)
        inside[0] = False

    def of_rows(policy: Any, rollout: Any, *given: Any) -> Any:
        counts[-1:] = [counts[-1] + inside[0] * len(rollout)] if counts else []
        return whole(policy, rollout, *given)

    monkeypatch.setattr(Learner, "remember", of_step)
    monkeypatch.setattr(step_tables, "log_probs", of_rows)
    return counts


def test_three_passes_ask_once_and_learn_the_same(tmp_path: Path, scored: list[int]) -> None:
    once, passes = train(tmp_path / "once"), list(scored)
    assert passes == [4] * 4 + [0] * 8
    assert column(once, "recalled") == [0.0] * 4 + [1.0] * 8
    again = train(tmp_path / "again", batch={"reference_memory": 0})
    assert scored[STEPS:] == [4] * STEPS and "recalled" not in (again.path / "metrics.jsonl").read_text()
    assert column(once, "margin") == pytest.approx(column(again, "margin"), rel=1e-9, abs=1e-12) and column(once, "margin")[-1] > 0.1


def test_a_reference_that_moves_is_asked_each_time(tmp_path: Path, scored: list[int]) -> None:
    run = train(tmp_path, steps=8, references={"ref": {"every": 4}})
    assert scored == [4] * 8 and "recalled" not in (run.path / "metrics.jsonl").read_text()


def test_another_version_of_a_record_is_another_row(tmp_path: Path, scored: list[int]) -> None:
    class Changing:
        """The second record has another answer in each pass, under the same id."""

        def __init__(self) -> None:
            self.broken: dict[str, str] = {}

        def stream(self, *, seed: int, start: int = 0) -> Any:
            for place in range(start, 100):
                changed = RECORDS[1]._replace(first=f"v{place}")
                yield (RECORDS[0] if place % 2 == 0 else changed)._replace(position=place + 1)

    run = train(tmp_path, records=Changing(), steps=3)
    assert scored == [4, 1, 1] and column(run, "recalled") == [0.0, 0.75, 0.75]


def test_rows_are_told_apart_by_all_that_is_scored() -> None:
    policy = transformers(tiny_text.model(), tiny_text.tokenizer(), max_completion=9)

    def digest(prompt: str = "ab", output: str = "cd", beside: str = "x") -> bytes:
        rng = torch.Generator().manual_seed(0)
        first, _ = policy.digests(policy.encode([prompt, "y"], [output, beside], torch.arange(2), rng))
        return bytes(first)

    assert digest() == digest(beside="longer") and len(digest()) == 16  # wherever the row stands
    assert len({digest(), digest("abc", "d"), digest("a", "bcd"), digest(output="ce"), digest(output="cdd")}) == 5
    rollout = policy.encode(["ab"], ["cd"], torch.arange(1), torch.Generator())
    before = policy.digests(rollout)
    rollout.mask[0, 0] = False  # a token that does not count is no other token
    assert policy.digests(rollout) != before


def test_pictures_tell_rows_apart() -> None:
    policy = transformers(*visions.twin("Qwen2VLForConditionalGeneration"), max_completion=6, device="cpu")

    def digest(level: float) -> list[bytes]:
        picture = {"type": "image", "image": torch.full((3, 32, 32), level)}
        rollout = policy.encode([[{"role": "user", "content": [picture]}]], ["a"], torch.arange(1), torch.Generator())
        return list(policy.digests(rollout))

    assert digest(0.2) == digest(0.2) != digest(0.8)


def test_there_is_a_limit(tmp_path: Path, scored: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mmalign.training.kept_references.MIB", 5 * (BESIDE + 8 * 5))  # five rows of five tokens, or a few more short ones
    run = train(tmp_path, batch={"reference_memory": 1})
    kept = 16 - scored[-4:].count(4) * 4 - sum(count for count in scored[-4:] if count < 4)
    assert 5 <= kept < 8 and scored[4:8] != [4] * 4 and sum(scored[4:8]) == sum(scored[8:]) == 16 - kept
    assert capsys.readouterr().out.count(f"batch.reference_memory: is full with {kept} rows") == 1 and run.summary["steps"] == STEPS


@pytest.mark.parametrize("memory", [256, 0])
def test_a_resume_is_exact(tmp_path: Path, memory: int) -> None:
    how: dict[str, Any] = {
        "batch": {"reference_memory": memory, "records": 3},  # of eight: rows are asked about beside others than at their next time
        "evaluation": {"prompts": ["ab"], "every": 2, "samples": 1},
    }
    whole = train(tmp_path / "whole", steps=6, **how)
    train(tmp_path / "parts", steps=4, **how)
    parts = train(tmp_path / "parts", steps=6, resume=True, **how)
    assert [name for name in differing(parts.path, contents(whole.path)) if name != "config.yaml"] == []
    tensors, _ = checkpoint.load(whole.path / "checkpoints" / "step_000006")
    assert ("recalled" in tensors) == (memory > 0) and "recalled" not in checkpoint.parameter_sets(tensors)
    if memory:
        assert tensors["recalled"]["values"].shape == (1, int(tensors["recalled"]["live"].sum())) and len(tensors["recalled"]["live"]) == 16


def test_a_resume_with_less_memory_keeps_less(tmp_path: Path, scored: list[int]) -> None:
    train(tmp_path, steps=5)
    train(tmp_path, steps=6, resume=True, batch={"reference_memory": 0})
    assert scored[-1] == 4


def test_processes_know_what_the_others_computed(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone")
    shared = tmp_path / "shared"
    assert [code for code, _ in together(2, lambda rank: train(shared) and None, tmp_path / "words")] == [0, 0]
    rows = [row for row in small_run.rows(shared / "run") if row["phase"] == "train"]
    assert [row["recalled"] for row in rows] == [0.0] * 4 + [1.0] * 8
    assert [row["margin"] for row in rows] == pytest.approx(column(alone, "margin"), rel=1e-9, abs=1e-12)


def test_policies_that_draw_noise_for_a_row_are_asked_each_time() -> None:
    policy = mm.policies.forward(mm.policies.diffusers(mm.worlds.digits(), device="cpu"))
    assert KeptReferences(policy, ["ref"], ALONE).fixed == ()
