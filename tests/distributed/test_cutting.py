"""How a model is cut: before it is loaded, in which type its blocks run, and what is refused."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # these three here, so that no forked process has to import them again
import torch.distributed.fsdp
import torch.distributed.tensor
from torch import Tensor, nn

import mmalign as mm
from mmalign.distributed import meshes, shards
from mmalign.distributed.team import joined
from mmalign.policies.parameters import ParameterSets
from mmalign.policies.settings import Lora
from mmalign.policies.twins import pipelines
from mmalign.runs import checkpoint
from mmalign.training.settings import Devices
from mmalign.training.updates import allocator
from mmalign.types import UserError
from tests.distributed.test_every_method import CLOSE_IN_FLOAT32, PROMPTS, differences, method_of, settings, varied
from tests.helpers import tiny_text
from tests.helpers.flat import transformers
from tests.helpers.processes import together

CUT = Devices(place="fsdp2")
MIXED = Devices(place="fsdp2", mixed_precision="bfloat16")
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 4, "vocab_size": 64}


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)


def bright(outputs: Tensor, prompts: list[str]) -> Tensor:
    return outputs.double().flatten(1).mean(1)


# Mixed precision


class Stack(nn.Module):
    """Blocks, and a head outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(2))
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


def batches(rank: int) -> list[Tensor]:
    return [torch.randn(5, 8, generator=torch.Generator().manual_seed(10 * rank + number)) for number in range(4)]


def by_hand(model: Stack) -> dict[str, Tensor]:
    """Gradients of two processes' four passes each, of blocks in bfloat16, added up in float32."""
    sums = {name: torch.zeros_like(p) for name, p in model.blocks.named_parameters()}
    for rank in range(2):
        own = {name: torch.zeros_like(p) for name, p in sums.items()}
        for x in batches(rank):
            low = copy.deepcopy(model)
            for block in low.blocks.bfloat16():
                x = block(x.bfloat16()).float()
            low.head(x).square().sum().backward()
            for name, p in low.blocks.named_parameters():
                own[name] += p.grad  # type: ignore[arg-type]
        sums = {name: total + own[name] for name, total in sums.items()}
    return sums


def test_blocks_run_in_bfloat16_and_their_gradients_are_summed_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Stack()
    expected = by_hand(model)

    def act(rank: int) -> None:
        sets = ParameterSets(model)
        cut = shards.Shards(sets, MIXED, joined())
        for x in batches(rank):
            model(x).square().sum().backward()
        cut.add_gradients()
        for name, p in sets.trained.items():
            if (own := name.removeprefix("blocks.")) != name:
                assert p.dtype == torch.float32 and p.grad is not None
                assert torch.equal(meshes.whole(p.grad), expected[own]), name
        model(batches(rank)[0]).sum().backward()
        cut.forget()
        cut.add_gradients()
        assert not cut.sums and all(leaf.grad is None for leaf in cut.leaves.values())

    ended = together(2, act, tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended


def test_a_run_of_mixed_precision_keeps_what_is_trained_as_it_was(tmp_path: Path) -> None:
    """Of a language model, whose rows are scored as they were sampled but for bfloat16's rounding, and of a pipeline with LoRA."""

    def train(rank: int) -> None:
        model, tokenizer = tiny_text.model("gpt2"), tiny_text.tokenizer()
        policy, rewards = transformers(model, tokenizer, max_completion=7), {"own": varied}
        given: dict[str, Any] = {"devices": MIXED, "batch": {"prompts": 3, "group": 4, "micro_rows": 3}}
        mm.online(policy, PROMPTS, rewards, method_of("grpo"), **given, **settings(tmp_path / "words"))  # type: ignore[arg-type]
        assert policy.tolerance == 0.15
        pipe = pipelines.twin("StableDiffusion3Pipeline")
        images = mm.policies.diffusers(pipe, device="cpu", schedule={"steps": 3}, lora=Lora(rank=2))
        method = mm.methods.flow_grpo(clip=0.2)
        mm.online(images, PROMPTS, {"bright": bright}, method, **given, **settings(tmp_path / "images"))

    ended = together(2, train, tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], "\n".join(text for _, text in ended)
    for kind in ("words", "images"):
        tensors, _ = checkpoint.load(tmp_path / kind / "run" / "checkpoints" / "step_000001")
        assert {value.dtype for value in tensors["trained"].values()} == {torch.float32}
        (row,) = [json.loads(line) for line in (tmp_path / kind / "run" / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
        assert row["grad_norm"] > 0 and row["skipped"] == 0


def test_what_is_no_setting_of_shards_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mixed_precision: got 'bfloat16' with place: replicate, which has no shards; takes place: fsdp2"):
        Devices(mixed_precision="bfloat16")
    with pytest.raises(UserError, match="offload: got True with place: replicate"):
        Devices(offload=True)

    def act(rank: int) -> None:
        with pytest.raises(UserError, match=r"devices\.offload: got true, and the model is on the CPU already; takes false"):
            shards.Shards(ParameterSets(Stack()), Devices(place="fsdp2", offload=True), joined())
        pipe = pipelines.twin("StableDiffusion3Pipeline")
        stored = mm.policies.diffusers(pipe, device="cpu", lora=Lora(rank=2), memory={"storage": "float8"})
        with pytest.raises(UserError, match="JointTransformerBlock keeps weights in float8_e4m3fn; takes it without policy"):
            shards.sharded(stored, MIXED, joined())

    ended = together(2, act, tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended


# Before it is loaded


def anonymous() -> int:
    """Bytes of this process's memory that are in no file."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def saved(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(folder)
    tiny_text.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_a_process_never_holds_more_of_a_model_than_its_part_and_a_block(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    block = size // SIZES["num_hidden_layers"]

    def act(rank: int) -> None:
        most: list[int] = []
        allocator.give_back()

        def counted(*given: Any, of: Any = shards.Shards._cut) -> None:
            of(*given)
            most.append(anonymous())

        with pytest.MonkeyPatch.context() as patch, shards.cutting(CUT, joined()):
            patch.setattr(shards.Shards, "_cut", counted)
            transformers(tiny_text.model("llama"), tiny_text.tokenizer(), max_completion=7)  # all that is imported and made once
            before = anonymous()
            most.clear()
            policy = transformers(str(folder), max_completion=7)
            most.append(anonymous())
        assert all(meshes.is_cut(policy.sets.sets["ref"][name]) for name in policy.sets.shards.leaves)
        parts = 2 * size // 2  # of what is trained, and of its copy
        (tmp_path / f"{rank}.json").write_text(json.dumps([max(most) - before, parts + 2 * block, size + size]))

    ended = together(2, act, tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], ended
    for rank in range(2):
        held, allowed, whole = json.loads((tmp_path / f"{rank}.json").read_text())
        assert held < allowed < whole, (held, allowed, whole)


@pytest.mark.parametrize("kind", ["words", "images"])
def test_a_run_that_was_cut_early_is_that_of_one_that_was_cut_late(kind: str, tmp_path: Path) -> None:
    """With a reference that is another model, and its own shards."""
    folders = [tmp_path / "model", tmp_path / "other"]
    for number, folder in enumerate(folders):
        if kind == "words":
            tiny_text.model("gpt2", seed=number).save_pretrained(folder)
            tiny_text.tokenizer().save_pretrained(folder)
        else:
            torch.manual_seed(number)
            pipelines.twin("StableDiffusion3Pipeline").save_pretrained(folder)

    def train(name: str, rank: int) -> None:
        devices = CUT if name == "early" else Devices()
        with shards.cutting(devices, joined()):
            if kind == "words":
                policy, other = (transformers(str(folder), max_completion=7) for folder in folders)
            else:
                policy, other = (mm.policies.diffusers(str(folder), device="cpu", schedule={"steps": 3}) for folder in folders)
        assert (policy.sets.shards is not None) == (other.sets.shards is not None) == (name == "early")
        rewards: dict[str, Any] = (
            {"own": varied} if kind == "words" else {"own": lambda outputs, prompts: outputs.double().flatten(1).mean(1)}
        )
        method = mm.methods.grpo(beta=0.1) if kind == "words" else mm.methods.flow_grpo(clip=0.2, beta=0.1)
        given: dict[str, Any] = {**settings(tmp_path / name), "references": {"ref": mm.Reference(policy=other)}, "devices": CUT}
        mm.online(policy, PROMPTS, rewards, method, batch={"prompts": 3, "group": 4, "micro_rows": 3}, **given)

    for name in ("late", "early"):
        ended = together(2, partial(train, name), tmp_path / "processes")
        assert [code for code, _ in ended] == [0, 0], "\n".join(text for _, text in ended)
    assert not differences(tmp_path / "late", tmp_path / "early", CLOSE_IN_FLOAT32)
