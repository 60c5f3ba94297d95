"""A step on 1, 2 and 4 processes of a CPU, by counting: what each computes, and what each hands over to the others.

    python scripts/bench/scaling.py              # a minute on two cores
    python scripts/bench/scaling.py --plan       # the table of SCALING.md: a plan on paper to 64 GPUs
    python scripts/bench/scaling.py --encoders   # what encodes prompts and images, beside the denoiser, in FLOP

Steps of flow_grpo with LoRA on a tiny SD3, the same global batch for any number of processes, under ``replicate``; counted
is from the reward of the second step to that of the third. Work is rows of the denoiser, of the process that has most of them; what is even
divides by the number of processes. Bytes are those of the tensors that a process gives to torch.distributed's collectives; a ring sends
a sum twice, and a gather as often as there are others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from measure import Calls, Table, counted, machine
from shapes import Size, sd3

import mmalign as mm
from mmalign.distributed.forked import fork, wait, words
from mmalign.training.settings import Devices

PROMPTS, GROUP, STEPS = 4, 2, 3
COLLECTIVES = {"all_reduce": 0, "all_gather": 1, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1, "broadcast": 0}
KINDS = {
    "all_reduce": "sums",
    "broadcast": "sums",
    "all_gather": "tables",
    "all_gather_into_tensor": "weights",
    "reduce_scatter_tensor": "sums",
}
Place = Literal["replicate", "fsdp2"]


def counting(total: Counter[str]) -> None:
    """From now on adds up the bytes that this process hands over, by kind. place of a collective's own tensor: ``COLLECTIVES``."""
    import torch.distributed as dist

    def watched(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            place = COLLECTIVES[name]
            tensor = args[place] if len(args) > place else kwargs["input_tensor" if "input_tensor" in kwargs else "input"]
            total[KINDS[name]] += tensor.numel() * tensor.element_size()
            return own(*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, watched(name, getattr(dist, name)))


def steps(place: Place, folder: Path, rank: int) -> None:
    """Two steps in this process, and what the second took, as JSON."""
    total, marks = Counter[str](), list[tuple[Counter[str], int]]()
    counting(total)
    pipe = sd3(Size(2, 2, 8))
    edge = 8 * pipe.vae_scale_factor
    call = {"height": edge, "width": edge, "max_sequence_length": 8}
    policy = mm.policies.diffusers(pipe, lora=mm.Lora(rank=16), call=call, schedule=mm.Schedule(steps=STEPS), device="cpu")
    calls = Calls()

    def bright(outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        marks.append((Counter(total), calls.rows))
        return outputs.flatten(1).mean(1)

    with counted(policy.denoiser, calls):
        mm.online(
            policy, ["a", "b", "c", "d"], {"bright": bright}, mm.methods.flow_grpo(beta=0.04, kl="flow_grpo"), steps=3,
            batch=mm.Batch(prompts=PROMPTS, group=GROUP), evaluation=mm.Evaluation(every=1000, samples=4, prompts=["a", "b", "c", "d"]),
            devices=Devices(place=place), run=mm.RunSettings(name="scaling", folder=str(folder / "runs"), trackers=(), dead_steps=None),
        )  # fmt: skip
    (first, before), (second, after) = marks[2], marks[3]  # reward to reward: the second step's update and the third's rollout
    body = {"rows": after - before, **{kind: second[kind] - first[kind] for kind in set(KINDS.values())}}
    (folder / f"{rank}.json").write_text(json.dumps(body), encoding="utf-8")


def together(count: int, place: Place) -> list[dict[str, int]]:
    """What each of so many processes counted. Errors: SystemExit where one of them fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        codes = wait(fork(count, lambda rank: steps(place, folder, rank), folder / "words", timeout=200.0, quiet=True))
        if any(codes):
            raise SystemExit("\n".join(words(folder / "words", count)))
        return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(count)]


def measured() -> None:
    """Prints the table of what is counted."""
    print(machine())
    table = Table(
        f"A step of {PROMPTS * GROUP} images, {STEPS} denoising steps, on several processes", "place", "processes",
        "rows of the denoiser, busiest process", "evenly divided", "KiB of gradients", "KiB of tables and words", "KiB of weights",
    )  # fmt: skip
    for place in ("replicate",):  # under fsdp2 torch sends by ways that ``counting`` does not see
        alone = 0
        for count in (1, 2, 4):
            each = together(count, place)  # type: ignore[arg-type]
            rows = max(one["rows"] for one in each)
            alone = alone or rows
            kib = [f"{max(one[kind] for one in each) / 1024:.1f}" for kind in ("sums", "tables", "weights")]
            table.row(place, count, rows, f"{alone / count / rows:.0%}", *kib)


# The plan on paper

FLOPS, SHARE = 989e12, 0.4  # of an H100 SXM in dense bf16, by its data sheet; the part that a large transformer reaches is a guess
MEMORY, ROOM = 80e9, 0.9  # bytes, and the part of them that is used
INSIDE, OUTSIDE, NODE = 450e9, 50e9, 8  # bytes a second to the cards of a node (NVLink 4), and between nodes (400 Gb/s a card)
READ = 3.35e12  # bytes a second of its memory


class Work(NamedTuple):
    """Of a step: parameters, those that are trained, FLOP of a row, rows, bytes that a row keeps for the backward pass, blocks, passes over
    the weights for a row, tokens that a row is drawn by, one at a time, and whether weights stay while it is drawn (``gathered``)."""

    name: str
    parameters: float
    trained: float
    row: float
    rows: int
    kept: float
    blocks: int
    passes: int
    drawn: int = 0
    stay: bool = False


def image() -> Work:
    """SD3.5-L: 8.1 G parameters at 1,024 px (4,096 tokens of the image and 333 of words), 10 steps, 9 of them trained, with guidance and a
    reference; 2 FLOP for a parameter and token, and attention's; with LoRA a backward pass is as much again, checkpointing once more."""
    tokens, width, layers, parameters = 4096 + 333, 2432, 38, 8.1e9
    forward = 2 * (2 * parameters * tokens + 4 * layers * tokens**2 * width)  # both branches of guidance
    passes = 10 + 9 + 9 * 3  # rollout; reference; update
    lora = layers * 8 * 2 * 32 * width
    return Work("SD3.5-L, LoRA 32, 1,024 px", parameters, lora, forward * passes, 48 * 24, 2 * 2 * tokens * width * layers, layers, passes)


def words_and_images(drawn_by: str, *, stay: bool = False, drawn: int = 512) -> Work:
    """7.6 G parameters, all trained: prompts with an image of 1,000 tokens that a group of 8 shares, answers of 512, a reference, and
    checkpointing; drawing an answer reads all weights for each token, 64 rows of a card at a time. drawn: 0 for a server that draws."""
    prompt, answer, group, parameters, width, layers = 1000, 512, 8, 7.6e9, 3584, 28
    forward = 2 * parameters * (prompt / group + answer) + 4 * layers * answer * (prompt + answer / 2) * width
    passes = 1 + 1 + 4  # the rollout's arithmetic; reference; forwards twice, backwards for weights and inputs
    row, kept = forward * passes, 2 * 1512 * width * layers
    name = f"a 7 B vision-language model, full, drawn by {drawn_by}"
    return Work(name, parameters, parameters, row, 4096, kept, layers, 4, drawn, stay)


def line(work: Work, cards: int) -> tuple[str, ...]:
    """A row of the plan: replicated where weights, gradients and states fit on a card, in shards where they do not."""
    own = 2 * work.parameters + work.trained * (4 + 4 + 8)  # bf16; and in float32 a copy, its gradient, AdamW's two means
    cut = own + work.kept > ROOM * MEMORY
    held = own / cards if cut else own
    micro = min(int((ROOM * MEMORY - held) // work.kept), work.rows // cards)
    if micro < 1:
        return work.name, str(cards), "does not fit", *["-"] * 7, f"{held / 1e9:.0f}"
    arithmetic, (drawn, passes) = work.row * work.rows / cards / (FLOPS * SHARE), passes_of(work, cards, micro)
    drawing = drawn * 2 * work.parameters / READ
    others, wire = (cards - 1) / cards, INSIDE if cards <= NODE else OUTSIDE
    sums, gather = 2 * 4 * work.trained * others / wire, 2 * work.parameters * others / wire if cut else 0.0
    while_drawn = min(drawn, 1.0) if work.stay else drawn
    gathers = gather * (while_drawn + passes)
    waits = passes * waited_for(gather, arithmetic / passes, work.blocks)
    waits += while_drawn * waited_for(gather, drawing / drawn, work.blocks) if drawn else 0.0
    step = arithmetic + drawing + sums + waits
    times = (f"{arithmetic + drawing:,.1f}", f"{sums:.2f}", f"{gathers:.1f}", f"{waits:.1f}", f"{step:,.1f}")
    of_it = f"{(arithmetic + drawing) / step:.0%}"
    return work.name, str(cards), "fsdp2" if cut else "replicate", str(micro), *times, of_it, f"{(held + micro * work.kept) / 1e9:.0f}"


def passes_of(work: Work, cards: int, micro: int) -> tuple[float, float]:
    """Passes of a card over all weights: to draw tokens, 64 rows at a time, and besides."""
    rows = work.rows / cards
    return work.drawn * rows / 64, work.passes * rows / micro


def waited_for(gather: float, computes: float, blocks: int) -> float:
    """Seconds of a pass that wait for weights: for the first block, and for what a block takes longer to gather than one to compute."""
    return gather / blocks + max(0.0, gather - computes) * (blocks - 1) / blocks


def plan() -> None:
    """Prints the plan: seconds of a step on 1 to 64 cards, from parameters, tokens and bandwidths."""
    table = Table(
        "A plan on paper", "model", "cards", "place", "micro_rows", "computes, s", "sums gradients, s", "gathers weights, s",
        "waits for them, s", "a step, s", "of it compute", "GB a card",
    )  # fmt: skip
    in_shards = [
        words_and_images("its shards"),
        words_and_images("its shards, gathered: rollout", stay=True),
        words_and_images("a server", drawn=0),
    ]
    for work in (image(), *in_shards):
        for cards in (1, 8, 16, 32, 64):
            table.row(*line(work, cards))


def encoders() -> None:
    """Prints FLOP of SD3.5-M's parts at 1,024 px, counted on tensors without numbers, and the share of what encodes in two kinds of steps.

    With LoRA: backwards as much again as forwards. flow_grpo: a prompt for 24 images, each 10 denoising steps of which 9 are trained, with
    guidance and a reference. Diffusion-DPO: a prompt for 2 images, one level of noise.
    """
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import T5Config, T5EncoderModel

    def tera(act: Callable[[], Any]) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            act()
        return float(counter.get_total_flops()) / 1e12

    with torch.device("meta"):
        text = T5EncoderModel(T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"))
        denoiser = SD3Transformer2DModel(
            sample_size=128, num_layers=24, num_attention_heads=24, caption_projection_dim=1536, out_channels=16, pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
        )  # fmt: skip
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512), up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False,
        )  # fmt: skip
        latent, words = torch.zeros(1, 16, 128, 128), torch.zeros(1, 333, 4096)
        prompt = tera(lambda: text(input_ids=torch.zeros(1, 256, dtype=torch.long)))
        call = tera(lambda: denoiser(latent, words, torch.zeros(1, 2048), torch.zeros(1)))
        image = tera(lambda: vae.encode(torch.zeros(1, 3, 1024, 1024)))
    flow, dpo = 24 * 2 * (10 + 9 + 9 * 2) * call, 2 * 3 * call
    table = Table("Encoders", "T5-XXL, a prompt", "VAE, an image", "SD3.5-M, a call", "of flow_grpo's step", "of Diffusion-DPO's pair")
    shares = prompt / (flow + prompt), (prompt + 2 * image) / (dpo + prompt + 2 * image)
    table.row(*(f"{tera:.1f}e12" for tera in (prompt, image, call)), *(f"{share:.2%}" for share in shares))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", action="store_true", help="the plan on paper, and nothing is run")
    parser.add_argument("--encoders", action="store_true", help="what encodes beside the denoiser, counted, and nothing is run")
    torch.set_num_threads(1)
    asked = parser.parse_args()
    acts = [act for act, wanted in ((plan, asked.plan), (encoders, asked.encoders)) if wanted] or [measured]
    for act in acts:
        act()
