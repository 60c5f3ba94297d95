"""How far a server of rollouts is from the policy that is trained: the ids of prompts, and the log-probability of each sampled token.

    vllm serve Qwen/Qwen2.5-0.5B-Instruct --logprobs-mode processed_logprobs
    python scripts/engine_parity.py http://127.0.0.1:8000/v1=Qwen/Qwen2.5-0.5B-Instruct --tokens

A row for each server and prompt: the model's family, tokens of the prompt and of what was sampled, whether both read the same ids, and
mean and largest |server - policy| in nats. It ends with 1 where ids differ, or a mean is above ``--most``. Kernels and types alone make
some hundredths of a nat in bf16 (recalled, not measured: no server of vLLM's was run here); a temperature, a template or weights that
differ make tenths and more. A server's model is asked as it was started: nothing is handed over.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import mmalign as mm
from mmalign.policies.language.drawing.engine import Engine
from mmalign.policies.settings import EngineSettings
from mmalign.types import UserError

PROMPTS = ("What is 17 + 25?", "Write one sentence about rain, and one about the sea.", "Zähle bis fünf. 数到五。")
HEAD = ("family", "prompt", "ids", "prompt tokens", "sampled", "mean", "largest")


class Line(NamedTuple):
    """A prompt at a server: its numbers (NaN where the ids differ), why not, and ``[token, theirs, ours]`` of what was sampled."""

    family: str
    prompt: str
    same: bool
    length: int
    sampled: int
    mean: float
    largest: float
    why: str = ""
    tokens: tuple[tuple[str, float, float], ...] = ()


@torch.no_grad()
def compared(policy: Any, settings: EngineSettings, prompts: Sequence[Any], *, rows: int = 4, seed: int = 0) -> Iterator[Line]:
    """Lines for a policy and a server, rows sampled for each prompt. prompts: strings or conversations."""
    engine, family = Engine(settings, policy.chat, policy.model, lora=True), str(policy.model.config.model_type)
    which = torch.zeros(rows, dtype=torch.int64)
    for number, source in enumerate(prompts):
        prompt, name = policy.room.prompt(source, number), f"{number}: {mm.conversations.known_by(source)[:24]}"
        try:
            drawn = engine.draw([prompt], [source], which, [seed + number], policy.drawing)
        except UserError as error:
            if "read a prompt" not in str(error):
                raise
            yield Line(family, name, False, len(prompt), 0, float("nan"), float("nan"), str(error))
            continue
        real = torch.arange(drawn.tokens.shape[1]) < drawn.lengths.unsqueeze(1)
        rollout = policy.table([prompt], which, drawn.tokens, drawn.lengths, real)
        ours = policy.steps(rollout, torch.arange(rows)).log_probs.cpu()
        apart = (drawn.log_probs - ours)[real].abs()
        words = [policy.chat.words([token]) for token in drawn.tokens[real].tolist()]
        tokens = tuple(zip(words, drawn.log_probs[real].tolist(), ours[real].tolist(), strict=True))
        yield Line(family, name, True, len(prompt), int(real.sum()), float(apart.mean()), float(apart.max()), "", tokens)


def table(lines: Sequence[Line]) -> str:
    """A table in Markdown, and below it why ids differ."""
    cells = []
    for line in lines:
        name, ids = line.prompt.replace("|", "/").replace("\n", " "), "same" if line.same else "DIFFER"
        cells.append((line.family, name, ids, str(line.length), str(line.sampled), f"{line.mean:.2g}", f"{line.largest:.2g}"))
    rows = [HEAD, tuple("---" for _ in HEAD), *cells]
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows] + [f"\n{line.why}" for line in lines if line.why])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+", metavar="URL=MODEL", help="a server, and the folder or hub id of the model that it serves")
    parser.add_argument("--served", help="the model's name at the server; MODEL by default")
    parser.add_argument("--prompts", type=Path, help="JSON lines: a string or a conversation each")
    parser.add_argument("--rows", type=int, default=4, help="completions of each prompt")
    parser.add_argument("--max-completion", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--dtype", default=None, help="of the policy; as it was saved by default")
    parser.add_argument("--tokens", action="store_true", help="every sampled token with both log-probabilities")
    parser.add_argument("--most", type=float, default=0.1, help="the largest mean difference in nats that is no failure")
    given = parser.parse_args(arguments)
    prompts = PROMPTS if given.prompts is None else [json.loads(line) for line in given.prompts.read_text(encoding="utf-8").splitlines()]
    lines: list[Line] = []
    for pair in given.pairs:
        url, _, model = pair.partition("=")
        if not model:
            parser.error(f"got {pair!r}, takes URL=MODEL")
        try:
            policy = mm.policies.transformers(
                model, lora=mm.Lora(rank=1), max_completion=given.max_completion, temperature=given.temperature, dtype=given.dtype
            )
            lines += compared(policy, EngineSettings(url=url, model=given.served or model), prompts, rows=given.rows)
        except UserError as error:
            parser.error(str(error))
    print(table(lines))
    for line in lines if given.tokens else ():
        print(f"\n{line.family} {line.prompt}")
        print("\n".join(f"  {word!r:12} {theirs:9.4f} {ours:9.4f} {theirs - ours:+.1e}" for word, theirs, ours in line.tokens))
    return int(any(not line.same or not line.mean <= given.most for line in lines))


if __name__ == "__main__":
    sys.exit(main())
