"""A model in shards (FSDP2) takes the steps that a whole one takes, whatever each process has to run."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # these three here, so that no forked process has to import them again
import torch.distributed.fsdp
import torch.distributed.tensor
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files
from torch.distributed.fsdp._fully_shard import _fsdp_param_group as param_group
from transformers import GPT2LMHeadModel

import mmalign as mm
from mmalign.distributed import meshes, shards
from mmalign.distributed.team import joined
from mmalign.policies.parameters import ParameterSets
from mmalign.policies.settings import Lora, Schedule
from mmalign.policies.twins import pipelines
from mmalign.runs import checkpoint
from mmalign.training.settings import Devices
from mmalign.types import Method, UserError
from tests.distributed.test_every_method import (
    CLOSE,
    CLOSE_IN_FLOAT32,
    PROMPTS,
    differences,
    heads_of,
    losses_apart,
    method_of,
    of_paths,
    offline_of_words,
    settings,
    varied,
)
from tests.helpers import tiny_text
from tests.helpers.flat import transformers
from tests.helpers.processes import together

SHARDS = {"place": "fsdp2"}
Train = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)


def of_words(method: Method, *, unused: bool = False, wide: bool = False, **more: Any) -> Any:
    model = tiny_text.model("gpt2_wide" if wide else "gpt2").double()
    if unused:
        model.transformer.h[0].unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    policy = transformers(model, tiny_text.tokenizer(), max_completion=7, heads=heads_of(method), **more)
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters().values()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    policy.sets.keep("ref")
    return policy


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """All that makes a policy is imported here, and not in every forked process."""
    of_words(method_of("grpo"), lora=Lora(rank=2))
    pipelines.twin("StableDiffusion3Pipeline")


def words(folder: Path, *, method: str = "grpo", lora: Lora | None = None, unused: bool = False, wide: bool = False, **more: Any) -> Any:
    """Steps of a language model, with a moving average; rows of a process end at lengths of their own."""
    chosen = method_of(method)
    policy = of_words(chosen, unused=unused, wide=wide, **({} if lora is None else {"lora": lora}))
    given = {**settings(folder), "steps": 2, "optimizer": mm.adamw(rate=1e-3, eps=1e-4, ema=0.9), **more}
    batch = {"prompts": 3, "group": 4, "resample": 1, "micro_rows": 3, "updates": 2}
    return mm.online(policy, [*PROMPTS, "x yz"], {"own": varied}, chosen, batch=batch, **given)  # type: ignore[arg-type]


def images(folder: Path, *, lora: Lora | None = None, **more: Any) -> Any:
    memory: dict[str, Any] = {} if lora is None else {"gradient_checkpointing": True, "storage": "float8"}
    policy = mm.policies.diffusers(
        pipelines.twin("StableDiffusion3Pipeline"), device="cpu", schedule=Schedule(steps=3, guidance=2.0), lora=lora, memory=memory
    )
    given: dict[str, Any] = {**settings(folder), "evaluation": {"every": 9, "samples": 1, "prompts": ["a cat", "a dog", "a fish"]}, **more}
    batch = {"prompts": 3, "group": 4, "micro_rows": 3}
    reward = {"bright": lambda outputs, prompts: outputs.double().flatten(1).mean(1)}
    method = mm.methods.flow_grpo(clip=0.2, beta=0.1)
    return mm.online(policy, ["a cat", "a dog", "a bird"], reward, method, batch=batch, **given)  # type: ignore[arg-type]


def in_shards(train: Train, folder: Path, *, gathered: str = "block", **more: Any) -> list[str]:
    """What differs between a run of two processes that hold the whole model and one of two that hold their parts."""
    for name, devices in (("whole", {}), ("cut", {"devices": {**SHARDS, "gathered": gathered}})):
        ended = together(2, lambda rank: train(folder / name, **devices, **more), folder / "processes")  # noqa: B023 (done at once)
        assert [code for code, _ in ended] == [0, 0], "\n".join(text for _, text in ended)
    in_float32 = train is images or more.get("lora") or more.get("method") == "ppo"  # whose critic is a head
    return differences(folder / "whole", folder / "cut", CLOSE_IN_FLOAT32 if in_float32 else CLOSE)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"lora": Lora(rank=2, targets="all-linear")},
        {"method": "nash_md", "gathered": "rollout"},
        {"method": "online_dpo", "references": {"ref": {"every": 1, "shares": {"ref": 0.4, "current": 0.6}}}},
        {"method": "ppo", "optimizer": mm.sgd(rate=1e-3, momentum=0.9)},
        {"optimizer": mm.adafactor(rate=1e-3, beta1=0.9, eps=(1e-12, 1e-3))},
        {"lora": Lora(rank=2, targets="all-linear"), "optimizer": mm.muon(rate=1e-3, max_norm=math.inf)},
    ],
    ids=["full", "lora", "drawn from a mixture", "a reference that moves", "a critic, sgd", "adafactor", "muon"],
)
def test_texts(more: dict[str, Any], tmp_path: Path) -> None:
    assert not in_shards(words, tmp_path, **more)


def test_records(tmp_path: Path) -> None:
    assert not in_shards(lambda folder, **more: offline_of_words("dpo", folder, **more), tmp_path)


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_images(lora: Lora | None, tmp_path: Path) -> None:
    assert not in_shards(images, tmp_path, lora=lora, gathered="rollout" if lora else "block")


def test_each_process_holds_its_part_and_helps_where_others_run_more(tmp_path: Path) -> None:
    def train(rank: int) -> None:
        helped: list[int] = []
        learners: list[Any] = []

        class Counted(shards.Shards):
            def __init__(self, *given: Any):
                super().__init__(*given)
                learners.append(self)

            def help(self, number: int, which: int) -> None:
                helped.append(number)
                super().help(number, which)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shards, "Shards", Counted)
            with warnings.catch_warnings(record=True) as noted:
                warnings.simplefilter("always")
                words(tmp_path / "many", devices=SHARDS, steps=1, unused=True)
        (line,) = [str(each.message) for each in noted if "no gradient" in str(each.message)]
        assert "1 of 29 trained tensors have no gradient on these rows, such as transformer.h.0.unused" in line
        (cut,) = learners
        local = sum(p.to_local().numel() for block in cut.blocks for p in block.parameters())
        assert local * 2 == pytest.approx(sum(p.numel() for block in cut.blocks for p in block.parameters()), rel=0.05)
        for name, table in cut.sets.sets.items():
            assert all(meshes.is_cut(value) for key, value in table.items() if key in cut.leaves), name
        (tmp_path / f"{rank}.txt").write_text(str(len(helped)))

    ended = together(2, train, tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], ended
    assert sum(int((tmp_path / f"{rank}.txt").read_text()) for rank in range(2)) > 0


def test_what_follows_is_gathered_while_a_block_is_computed(tmp_path: Path) -> None:
    """Where all run the same; nothing is gathered for nobody, but once where a model runs its blocks in another order than its list has."""
    config = tiny_text.config("gpt2")
    config.n_layer = 4
    model = GPT2LMHeadModel(config).double().eval()
    ids = torch.tensor([[3, 5, 7, 9]])

    def act(rank: int) -> None:
        whole, sets = copy.deepcopy(model), ParameterSets(model)
        cut = sets.shards = shards.Shards(sets, Devices(place="fsdp2"), joined())
        ahead, parameters = list[bool](), dict(whole.named_parameters())

        def noted(block: Any, group: Any, early: bool, *given: Any, of: Callable[..., Any] = param_group.foreach_all_gather) -> Any:
            ahead.append(early)
            return of(block, group, early, *given)

        def same() -> list[bool]:
            """Whether it computes what a whole model does; of each gather, whether it began ahead."""
            ahead.clear()
            for each in (whole, model):
                each.zero_grad()
            logits = [each(input_ids=ids, use_cache=False).logits for each in (whole, model)]
            torch.testing.assert_close(logits[1], logits[0], **CLOSE)
            for each in logits:
                each.square().sum().backward()
            for name, leaf in cut.leaves.items():
                torch.testing.assert_close(leaf.grad, parameters[name].grad, **CLOSE)
                leaf.grad = None
            return list(ahead)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(param_group, "foreach_all_gather", noted)
            assert same() == [False, True, True, True] * 2
            with torch.no_grad():
                for _ in range(1 + 2 * rank):  # one process runs twice more, and the other helps
                    model(input_ids=ids[:, : 2 + rank], use_cache=False)
            joined().tell("through")
            logits = whole(input_ids=ids, use_cache=False).logits
            with torch.no_grad(), cut.held():
                ahead.clear()
                for _ in range(3):
                    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, logits, **CLOSE)
                assert len(ahead) == 4  # what was gathered stays
                for block in cut.blocks if rank else ():
                    block.reshard()
                if rank:  # one gathers again what the other holds
                    model(input_ids=ids, use_cache=False)
                joined().tell("through")
                torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, logits, **CLOSE)
            joined().tell("together again")
            assert all(meshes.is_cut(p) for block in cut.blocks for p in block.parameters())
            for each in (whole, model):
                each.transformer.h = nn.ModuleList(reversed(each.transformer.h))
            assert len(same()) == 8 + 6
            assert same() == [False] * 8

    ended = together(2, act, tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], "\n".join(text for _, text in ended)


def test_a_run_may_go_on_in_shards_of_others_and_whole_again(tmp_path: Path) -> None:
    """Nobody writes or reads more than what it holds, whoever wrote it."""
    read: dict[int, int] = {}

    def counted(stored: checkpoint.Stored, rows: slice | None = None, *, of: Callable[..., Tensor] = checkpoint.Stored.read) -> Tensor:
        value = of(stored, rows)
        read[id(stored)] = value.nbytes
        return value

    def act(rank: int, steps: int) -> None:
        kept: list[int] = []

        def noted(*given: Any, of: Callable[..., Path] = checkpoint.save, **more: Any) -> Path:
            held = [value for table in more["tensors"].values() for value in table.values()]
            cut = [value.to_local().nbytes for value in held if meshes.is_cut(value)]
            kept[:] = [sum(cut), sum(value.nbytes for value in held if not meshes.is_cut(value))]
            return of(*given, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint.Stored, "read", counted)
            patch.setattr(checkpoint, "save", noted)
            words(tmp_path, **{**where("many"), "steps": steps}, resume=True, devices=SHARDS)
        (tmp_path / f"{rank}.{steps}.json").write_text(json.dumps([*kept, sum(read.values())]))

    more = {
        "optimizer": mm.adamw(rate=1e-3, eps=1e-4, ema=0.9), "evaluation": {"every": 9, "samples": 1, "prompts": ["abc", "why", "x"]},
        "run": {"folder": "", "name": "run", "trackers": (), "checkpoint_every": 1},
    }  # fmt: skip
    where = lambda name: {**more, "run": {**more["run"], "folder": str(tmp_path / name)}}  # noqa: E731
    words(tmp_path, **{**where("one"), "steps": 4})
    words(tmp_path, **{**where("many"), "steps": 1})
    for count, steps in ((3, 2), (2, 3)):
        ended = together(count, lambda rank: act(rank, steps), tmp_path / "processes")  # noqa: B023 (done at once)
        assert [code for code, _ in ended] == [0] * count, ended
        folder = tmp_path / "many" / "run" / "checkpoints" / f"step_{steps:06d}"
        for rank in range(count):
            cut, whole, loaded = json.loads((tmp_path / f"{rank}.{steps}.json").read_text())
            assert cut and loaded == cut + whole
            files = [file for file in folder.glob("*.safetensors") if (file.suffixes[0] == f".{rank}") == (rank > 0)]
            written = [value.nbytes for file in files if rank or len(file.suffixes) == 1 for value in load_file(file).values()]
            assert sum(written) == cut + (0 if rank else whole)
    words(tmp_path, **{**where("many"), "steps": 4}, resume=True)
    assert not losses_apart(tmp_path / "one", tmp_path / "many")
    one, many = (checkpoint.load(tmp_path / name / "run" / "checkpoints" / "step_000004")[0] for name in ("one", "many"))
    for group, table in one.items():
        for name, value in table.items():
            torch.testing.assert_close(many[group][name], value, **CLOSE, msg=f"{group} {name}")


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed: pip install 'mmalign[eight_bit]'")
def test_states_in_8_bits_are_of_whole_matrices(tmp_path: Path) -> None:
    """Whoever holds their codes: as many processes as they are, in shards or not, round them in the same blocks."""
    more = {"wide": True, "optimizer": mm.adamw_8bit(rate=1e-3, eps=1e-4), "run": {"name": "run", "trackers": (), "checkpoint_every": 1}}

    def act(name: str, steps: int, **devices: Any) -> None:
        run = {"run": {**more["run"], "folder": str(tmp_path / name)}, "resume": steps > 1 and name == "many"}  # type: ignore[dict-item]
        with torch.compiler.set_stance("force_eager"):  # compiling takes minutes
            words(tmp_path / name, **{**more, **run, "steps": steps}, **devices)

    act("one", 3)
    act("many", 1)
    ended = together(3, lambda rank: act("many", 2, devices=SHARDS), tmp_path / "processes")
    assert [code for code, _ in ended] == [0] * 3, ended
    folder = tmp_path / "many" / "run" / "checkpoints" / "step_000002"
    name = "exp_avg.codes/transformer.h.0.attn.c_attn.weight"  # 64 x 192: of three processes 22, 22 and 20 rows
    parts = [load_file(file)[name] for file in (folder / "optimizer.safetensors", *sorted(folder.glob("optimizer.[12].safetensors")))]
    assert [(len(part), part.dtype) for part in parts] == [(22, torch.uint8), (22, torch.uint8), (20, torch.uint8)]
    act("many", 3)
    assert not losses_apart(tmp_path / "one", tmp_path / "many")
    one, many = (checkpoint.load(tmp_path / name / "run" / "checkpoints" / "step_000003")[0] for name in ("one", "many"))
    for key, value in one["trained"].items():
        torch.testing.assert_close(many["trained"][key], value, **CLOSE_IN_FLOAT32)
    apart = {key: (many["optimizer"][key].int() - value.int()).abs().max() for key, value in one["optimizer"].items() if ".codes" in key}
    assert len(apart) == 20 and max(apart.values()) <= 1  # what rounding moves across the middle of two codes


def test_a_process_that_dies_while_a_block_is_gathered_is_named(tmp_path: Path) -> None:
    def train(rank: int) -> None:
        def before(cut: shards.Shards, number: int, step: int, *_: Any, of: Callable[..., None] = shards.Shards._before) -> None:
            of(cut, number, step)
            if rank == 1 and cut.sets.in_place == "ref":
                os.kill(os.getpid(), signal.SIGKILL)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shards.Shards, "_before", before)
            words(tmp_path / "many", devices=SHARDS)

    ended = together(2, train, tmp_path / "processes")
    assert [code for code, _ in ended] == [2, -signal.SIGKILL]
    assert "processes: process 0 of 2 hears nothing of process 1 any more" in ended[0][1]


def test_a_checkpoint_of_shards_is_all_of_it_or_none(tmp_path: Path) -> None:
    """As this and torch's own tool put it together; and a process without room on its disk is heard by all."""
    table, short = torch.arange(15.0).view(5, 3), torch.ones(1)  # of two processes, one has nothing of the short one

    def act(rank: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        team = joined()
        mesh = init_device_mesh("cpu", (2,))
        cut = {name: distribute_tensor(value, mesh, [Shard(0)]) for name, value in (("table", table), ("short", short))}
        save = lambda step: checkpoint.save(tmp_path / "kept", step, tensors={"trained": cut}, state={}, team=team)  # noqa: E731
        save(1)
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1:
                patch.setattr(checkpoint, "_write_tensors", lambda *given: (_ for _ in ()).throw(OSError(28, "no room", "there")))
            with pytest.raises(OSError, match="no room"):
                save(2)

    ended = together(2, act, tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], ended
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["step_000001"]
    (path,) = (tmp_path / "kept").iterdir()
    tensors, _ = checkpoint.load(path)
    assert torch.equal(tensors["trained"]["table"], table) and torch.equal(tensors["trained"]["short"], short)
    assert len(load_file(path / "trained.1.safetensors")["table"]) == 2
    consolidate_safetensors_files(str(path), str(tmp_path), fqn_to_index_mapping={"table": 1, "short": 1})
    (made,) = tmp_path.glob("*.safetensors")
    assert torch.equal(load_file(made)["table"], table)
    (path / "trained.1.safetensors").unlink()
    with pytest.raises(UserError, match=r"trained\.1\.safetensors cannot be read"):
        checkpoint.load(path)


def test_policies_that_are_cut_may_be_trained_again_in_turn(tmp_path: Path) -> None:
    def train(devices: dict[str, str]) -> None:
        method, where = method_of("grpo"), tmp_path / devices.get("place", "whole")
        one, other = of_words(method), of_words(method, lora=Lora(rank=2))
        for name, policy in (("first", one), ("other", other), ("second", one)):
            given = {**settings(where / name), "devices": devices}
            mm.online(policy, PROMPTS, {"own": varied}, method, batch={"prompts": 3, "group": 4, "micro_rows": 3}, **given)  # type: ignore[arg-type]

    for devices in ({}, SHARDS):
        ended = together(2, lambda rank: train(devices), tmp_path / "processes")  # noqa: B023 (done at once)
        assert [code for code, _ in ended] == [0, 0], ended
    assert not differences(tmp_path / "whole" / "second", tmp_path / "fsdp2" / "second")


def test_what_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"devices\.place: got fsdp2 in one process; takes several processes: mmalign train"):
        words(tmp_path, devices=SHARDS)
    with pytest.raises(UserError, match="place: got 'fsdp'"):
        words(tmp_path, devices={"place": "fsdp"})

    def paths(rank: int) -> None:
        reward = {"x": lambda outputs, prompts: outputs[:, 0]}
        mm.online(of_paths(), ["a", "b"], reward, method_of("flow_grpo"), devices=SHARDS, **settings(tmp_path))  # type: ignore[arg-type]

    ended = together(2, paths, tmp_path / "processes")
    assert [code for code, _ in ended] == [2, 2] and "ParameterDict repeats no block that could be cut; takes replicate" in ended[0][1]


def test_blocks_are_the_entries_of_the_outermost_lists() -> None:
    block = lambda: nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]))  # noqa: E731
    model = nn.ModuleDict({"deep": nn.Sequential(nn.ModuleList([block(), block(), nn.Tanh()])), "head": nn.Linear(2, 2)})
    assert [[type(part) for part in row] for row in shards.lists_of(model)] == [[nn.Sequential, nn.Sequential]]
    assert torch.equal(meshes.whole(torch.ones(2)), torch.ones(2))
