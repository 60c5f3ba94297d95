"""Runs of several processes: what they share, what one of them writes, and how they end together."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.data.pairs import Listed
from mmalign.distributed.team import PeerError, Processes, joined
from mmalign.policies.settings import Schedule
from mmalign.records import Pair, RefusedRow, Unread, read
from mmalign.types import UserError
from tests.distributed.test_every_method import differences, log, losses_apart
from tests.helpers import tiny_text
from tests.helpers.flat import transformers
from tests.helpers.processes import impatient, marked_end, together, until_ended
from tests.helpers.small_run import LINEAR, online, policy
from tests.recipes.test_offline import offline
from tests.recipes.test_offline import policy as of_digits


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)


def settings(**more: Any) -> dict[str, Any]:
    return {
        "method": mm.methods.flow_grpo(clip=0.2, beta=0.1, std="batch"), "steps": 4, "batch": {"prompts": 5, "group": 4, "updates": 2},
        "prompts": list("abcdefg"), "evaluation": {"every": 2, "samples": 4, "prompts": ["a", "b", "c"]}, **more,
    }  # fmt: skip


def alone_and_together(train: Any, folder: Path, count: int) -> list[str]:
    train(folder / "one")
    ended = together(count, lambda rank: train(folder / "many"), folder / "processes")
    assert [code for code, _ in ended] == [0] * count, "\n".join(text for _, text in ended)
    return differences(folder / "one", folder / "many")


@pytest.mark.parametrize("count", [2, 4])
def test_evaluations_parts_that_do_not_divide_and_moving_averages(count: int, tmp_path: Path) -> None:
    assert not alone_and_together(lambda folder: online(folder, **settings()), tmp_path, count)


def test_combined_rewards_and_running_statistics_see_all_rows(tmp_path: Path) -> None:
    rewards = {"x": lambda outputs, prompts: outputs[:, 0], "y": lambda outputs, prompts: outputs[:, 1] * 3}
    combine = lambda: mm.combinations.weighted_sum(  # noqa: E731
        weights={"x": 1.0, "y": 0.5}, transforms={"x": mm.combinations.z_score(over="running"), "y": mm.combinations.z_score(over="batch")}
    )
    assert not alone_and_together(lambda folder: online(folder, **settings(rewards=rewards, combine=combine())), tmp_path, 2)


def test_groups_that_say_nothing_are_sampled_again_for_all(tmp_path: Path) -> None:
    def seldom(outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return (outputs[:, 0] > 1.6).double()

    method = mm.methods.dapo()
    assert not alone_and_together(lambda folder: online(folder, **settings(rewards={"seldom": seldom}, method=method)), tmp_path, 2)
    assert any(row.get("signal_zero", 0) > 0 for row in log(tmp_path / "one"))


def test_given_images_and_their_noise(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    pairs = [Pair(f"a {number % 3}", *torch.rand(2, 1, 8, 8, generator=rng), 1.0, f"pair {number}") for number in range(12)]
    kind = mm.policies.forward(mm.policies.diffusers(of_digits().of.pipe, device="cpu", schedule=Schedule(steps=2)))
    before = {name: parameter.detach().clone() for name, parameter in kind.parameters().items()}

    def train(folder: Path) -> None:
        with torch.no_grad():
            for name, parameter in kind.parameters().items():
                parameter.copy_(before[name])
        offline(folder, pairs, policy=kind, steps=2, batch={"records": 5, "micro_rows": 4}, evaluation={"every": 9, "samples": 1})

    train(tmp_path / "one")
    ended = together(2, lambda rank: train(tmp_path / "many"), tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], ended
    for one, many in zip(log(tmp_path / "one"), log(tmp_path / "many"), strict=True):  # float32: sums of 64 numbers in parts of other sizes
        assert one.keys() == many.keys()
        assert all(one[key] == pytest.approx(many[key], rel=2e-3, abs=2e-4) for key in one if isinstance(one[key], float)), (one, many)


def test_a_resumed_run_may_have_another_number_of_processes(tmp_path: Path) -> None:
    more = settings(run={"checkpoint_every": 2})
    online(tmp_path / "one", **more)
    for count, steps in ((4, 2), (1, 3), (2, 4)):
        act = lambda rank, steps=steps: online(tmp_path / "many", **{**more, "steps": steps}, resume=steps > 2)  # noqa: E731
        if count == 1:
            act(0)
        else:
            assert [code for code, _ in together(count, act, tmp_path / f"processes {steps}")] == [0] * count
    assert not losses_apart(tmp_path / "one", tmp_path / "many")


def test_a_process_that_fails_stops_the_others_with_its_words(tmp_path: Path) -> None:
    def train(rank: int) -> None:
        def broken(outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            if rank == 1 and calls.append(1) is None and len(calls) > 3:  # type: ignore[func-returns-value]
                raise ZeroDivisionError("no such luck")
            return outputs @ LINEAR

        calls: list[int] = []
        online(tmp_path, **settings(rewards={"broken": broken}, run={"checkpoint_every": 99}))

    (code, words), (other, own) = together(2, train, tmp_path / "processes")
    assert code == other == 2
    assert words.startswith("process 1: ") and "reward broken: raised ZeroDivisionError: no such luck" in words and "process" not in own
    assert len(list((tmp_path / "run" / "checkpoints").glob("step_*"))) == 1  # what was whole by then is saved, by the main process


def test_a_process_that_dies_is_noticed(tmp_path: Path) -> None:
    def train(rank: int) -> None:
        def deadly(outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return outputs @ LINEAR

        online(tmp_path, **settings(rewards={"deadly": deadly}))

    (code, words), (killed, _) = together(2, train, tmp_path / "processes")
    assert killed == -signal.SIGKILL and code == 2
    assert words.startswith("processes: process 0 of 2 hears nothing of process 1 any more")


def test_a_process_that_stalls_is_not_waited_for_without_end(tmp_path: Path) -> None:
    def train(rank: int) -> None:
        team = joined()
        if rank == 1:
            until_ended(tmp_path, 0)
            return
        with marked_end(tmp_path, rank):
            impatient(team, 1.0)
            online(tmp_path, **settings())

    (code, words), _ = together(2, train, tmp_path / "processes")
    assert code == 2 and "process 0 of 2 hears nothing of process 1 any more" in words


@pytest.mark.parametrize("how", ["dies", "stalls"])
@pytest.mark.parametrize("which", [0, 1])
def test_of_several_the_one_that_does_not_come_is_named(how: str, which: int, tmp_path: Path) -> None:
    def train(rank: int) -> None:
        first, second = {0, 1, 2} - {which}
        team = joined()
        assert isinstance(team, Processes)
        assert team.tell(rank) == [0, 1, 2]
        if rank == which:
            until_there(team, first, second)
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            until_ended(tmp_path, first, second)
            return
        with marked_end(tmp_path, rank):
            team._board.set(f"mmalign/{rank}", str(team._messages + 1))
            with suppress(RuntimeError):  # where they say it is gone with process 0
                until_there(team, first, second)  # else one that is slow has not come, too
            impatient(team, 1.0)
            team.tell("next")

    said = together(3, train, tmp_path / "processes")
    words = [text for rank, (_, text) in enumerate(said) if rank != which]
    assert f" of 3 hears nothing of process {which} any more" in words[0], said  # the main process's, whose line it is, where it is there
    assert any(f" of 3 hears nothing of process {name} any more" in words[1] for name in {which, 0}), said  # which may have left meanwhile


def until_there(team: Processes, *others: int) -> None:
    """Returns once these have said that they have come to the next message."""
    while any(int(team._board.get(f"mmalign/{other}")) <= team._messages for other in others):
        time.sleep(0.01)


def test_a_signal_to_one_of_them_ends_all_after_the_same_step(tmp_path: Path) -> None:
    def train(rank: int) -> None:
        def reward(outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            calls.append(1)
            if rank == 1 and len(calls) == 3:  # one evaluation, then the second step
                signal.raise_signal(signal.SIGTERM)
            return outputs @ LINEAR

        calls: list[int] = []
        run = online(tmp_path, **settings(rewards={"own": reward}, evaluation={"every": 9, "samples": 2}))
        assert run.summary["status"] == "interrupted" and run.summary["steps"] == 2

    ended = together(2, train, tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], ended
    assert [row["step"] for row in log(tmp_path) if row["phase"] == "train"] == [1, 2]


def refused(act: Any, folder: Path, count: int = 2) -> list[str]:
    ended = together(count, act, folder / "processes")
    assert [code for code, _ in ended] == [2] * count, ended
    return [text for _, text in ended]


def test_more_processes_than_prompts_or_records(tmp_path: Path) -> None:
    words = refused(lambda rank: online(tmp_path, **settings(batch={"prompts": 1})), tmp_path)
    assert all("batch.prompts: got 1 for 2 processes; takes 2 or more, or fewer processes" in each for each in words)
    assert not (tmp_path / "run").exists()


def test_processes_that_were_given_different_things(tmp_path: Path) -> None:
    words = refused(lambda rank: online(tmp_path, **settings(prompts=list("abcdef")[rank:])), tmp_path)
    assert all(each.startswith("config.prompts: process 1 has another than process 0; takes the same") for each in words)
    words = refused(lambda rank: online(tmp_path, **settings(batch={"prompts": 5, "micro_rows": 4 + rank})), tmp_path / "again")
    assert all(each.startswith("config.batch.micro_rows: process 1 has another than process 0") for each in words)


def test_a_folder_that_exists_is_refused_by_all(tmp_path: Path) -> None:
    online(tmp_path, **settings(steps=1))
    words = refused(lambda rank: online(tmp_path, **settings()), tmp_path)
    assert "exists: resume it" in words[0] and words[1].startswith("process 0: ") and "exists: resume it" in words[1]


def test_parameters_start_from_the_main_process_s(tmp_path: Path) -> None:
    def train(rank: int) -> None:
        own = policy()
        with torch.no_grad():
            own.parameters()["shift"].fill_(0.1 * rank)
        online(tmp_path / "many", **settings(policy=own))

    online(tmp_path / "one", **settings())
    assert together(2, train, tmp_path / "processes") == [(0, ""), (0, "")]
    assert not differences(tmp_path / "one", tmp_path / "many")


def test_a_record_that_one_of_them_cannot_use_is_put_aside_by_all(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    pairs = [Pair(f"a {number % 3}", *torch.rand(2, 1, 8, 8, generator=rng), 1.0, f"pair {number}") for number in range(12)]

    def train(folder: Path) -> None:
        kind = of_digits()
        encode = kind.encode

        def choosy(prompts: Any, outputs: Any, group: torch.Tensor, rng: torch.Generator, *, part: slice = slice(None)) -> Any:
            for row in range(len(prompts))[part]:
                if float(outputs[row].max()) > 0.9999:
                    raise RefusedRow(row, "too bright")
            return encode(prompts, outputs, group, rng, part=part)

        kind.encode = choosy
        offline(folder, pairs, policy=kind, steps=2, batch={"records": 4, "micro_rows": 4}, evaluation={"every": 9, "samples": 1})

    bright = max(range(12), key=lambda number: float(pairs[number].second.max()))
    pairs[bright].second.fill_(1.0)
    train(tmp_path / "one")
    assert [code for code, _ in together(2, lambda rank: train(tmp_path / "many"), tmp_path / "processes")] == [0, 0]
    names = [(tmp_path / name / "run" / "broken.jsonl").read_text() for name in ("one", "many")]
    assert names[0] == names[1] and f"pair {bright}" in names[0]


def test_alone_there_is_nobody_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    joined.cache_clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "7")
    with pytest.raises(UserError, match="RANK: got '7', takes a number below WORLD_SIZE"):
        joined()
    assert issubclass(PeerError, UserError)
    joined.cache_clear()


def test_a_process_encodes_its_own_prompts_and_the_one_they_may_be_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    words, encoded = transformers(tiny_text.model("qwen2").double(), tiny_text.tokenizer(), max_completion=7), list[int]()
    prompts = ["abc", "why", "one two", "x ", "yes", "no"]
    whole = words.sample(prompts, 2, torch.Generator().manual_seed(0))
    read = type(words.room).prompt
    monkeypatch.setattr(type(words.room), "prompt", lambda room, source, number: encoded.append(number) or read(room, source, number))
    for part, needed in ((slice(0, 2), [0, 1, 2]), (slice(2, 4), [2, 3, 4]), (slice(4, 6), [4, 5, 0]), (slice(0, 6), [0, 1, 2, 3, 4, 5])):
        encoded.clear()
        own = words.sample(list(prompts), 2, torch.Generator().manual_seed(0), part=part)
        rows = slice(part.start * 2, part.stop * 2)
        assert encoded == needed
        assert (
            own.outputs == whole.outputs[rows] and own.prompts == whole.prompts[rows] and own.group.tolist() == whole.group[rows].tolist()
        )
        behind = [own.held.sources[place] for place in own.held.following[own.held.which].tolist()]
        assert behind == [whole.held.sources[place] for place in whole.held.following[whole.held.which[rows]].tolist()]


def test_a_process_encodes_its_own_records_and_the_one_they_may_be_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that are there twice, or are worded otherwise and come to the same tokens, are compared with what differs from them."""
    words, encoded = (
        transformers(tiny_text.model("qwen2").double(), tiny_text.tokenizer(), max_prompt=7, max_completion=9, truncate="left"),
        list[str](),
    )
    asked = ["abc", "why", "one two", "so one two", "abc", "yes"]
    prompts, outputs = [prompt for prompt in asked for _ in range(2)], ["no", "yes", "x y", "no"] * 3
    group, rng = torch.arange(6).repeat_interleave(2), torch.Generator()
    whole = words.encode(prompts, outputs, group, rng)
    others = {"abc": "why", "why": "one two", "one two": "yes", "so one two": "yes", "yes": "abc"}
    assert [whole.held.sources[place] for place in whole.held.following[whole.held.which].tolist()] == [
        others[prompt] for prompt in prompts
    ]
    read = type(words.chat).row
    monkeypatch.setattr(type(words.chat), "row", lambda chat, source, output: encoded.append(source) or read(chat, source, output))
    for part, more in ((slice(0, 4), ["one two"]), (slice(4, 8), ["yes"]), (slice(8, 12), ["why", "abc"])):
        encoded.clear()
        own = words.encode(prompts, outputs, group, rng, part=part)
        assert sorted(encoded) == sorted([*prompts[part], *more])
        assert own.prompts == whole.prompts[part] and own.outputs == outputs[part] and own.group.tolist() == group[part].tolist()
        behind = [own.held.sources[place] for place in own.held.following[own.held.which].tolist()]
        assert behind == [others[prompt] for prompt in prompts[part]]
        for row, place in enumerate(range(12)[part]):
            assert own.held.encoded[own.held.which[row]].ids == whole.held.encoded[whole.held.which[place]].ids


class Files(Listed):
    """Pairs of pictures that are decoded when they are wanted, as those of files are; which ones is written into a file of each process."""

    def __init__(self, pairs: list[Pair], folder: Path):
        super().__init__([pair._replace(first=self.unread(pair, "first"), second=self.unread(pair, "second")) for pair in pairs])
        self.folder = folder

    def unread(self, pair: Pair, side: str) -> Unread:
        def decode(source: str) -> Any:
            with (self.folder / f"{os.environ.get('RANK', 'one')}.txt").open("a") as file:
                file.write(f"{source}\n")
            if source == "pair 5, second":
                raise UserError("cut off")
            return getattr(pair, side)

        return Unread(f"{pair.id}, {side}", pair.id, decode)

    def undecoded(self, *, seed: int, start: int = 0) -> Any:
        return super().stream(seed=seed, start=start)

    def stream(self, *, seed: int, start: int = 0) -> Any:
        return map(read, super().stream(seed=seed, start=start))


def test_a_process_opens_the_pictures_of_its_own_records_alone(tmp_path: Path) -> None:
    """Those of one that cannot be used are named by all, whoever had it."""
    rng = torch.Generator().manual_seed(0)
    pairs = [Pair(f"a {number % 3}", *torch.rand(2, 1, 8, 8, generator=rng), 1.0, f"pair {number}") for number in range(12)]

    def train(folder: Path) -> None:
        settings: Any = {"steps": 2, "batch": {"records": 4, "micro_rows": 4}}
        offline(folder, Files(pairs, tmp_path), policy=of_digits(), evaluation={"every": 9, "samples": 1, "prompts": ["a 1"]}, **settings)

    assert not alone_and_together(train, tmp_path, 2)
    alone, *both = ((tmp_path / f"{name}.txt").read_text().splitlines() for name in ("one", "0", "1"))
    assert len(alone) == 2 * 4 * 2 + 2 and alone.count("pair 5, second") == 1  # two of each record, and those of the one that is put aside
    assert sorted(both[0] + both[1]) == sorted(alone) and {len(both[0]), len(both[1])} == {8, 10}
    assert "cut off" in (tmp_path / "many" / "run" / "broken.jsonl").read_text()
