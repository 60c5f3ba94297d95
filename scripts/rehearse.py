"""Rehearses configs, each in a process of its own, and prints a table.

python scripts/rehearse.py                                 # all under configs/
python scripts/rehearse.py wan* digits/*                   # some; nothing is downloaded
python scripts/rehearse.py --methods sd35_medium wan21_1b  # every method for generators on a twin of each of these models
python scripts/rehearse.py --methods sd35_medium wan21_1b --results runs/rehearsed.jsonl --page configs/REHEARSED.md

What stands in the results already is not rehearsed again, so that a sweep that was cut off goes on; the page is made of them. Exit code: 0
where everything that was asked for went through every phase.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import mmalign as mm
from mmalign.commands._rehearsal_config import rehearsal_config
from mmalign.commands.rehearse import Phase, rehearse
from mmalign.config import load
from mmalign.distributed.forked import fork, wait, words
from mmalign.files import write_text
from mmalign.rooms import index

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
BASES = {
    "denoising": ("flow_grpo",),
    "denoising_preference": ("dpo",),
    "distillation": ("flow_grpo", "batch.updates=1", "policy.schedule.guidance=1.0", "policy.schedule.steps=4"),
    "forward_process": ("diffusion_nft",),
    "reward_gradient": ("flow_grpo", "batch.updates=1", "policy.schedule.steps=10"),
}
"""Room of methods -> whose config they are put into, and what is changed there."""

ALL_NOISY = "policy.schedule.random={use: everything}"
NEEDS = {
    "refl": ("policy.schedule.steps=40",),  # its steps are those of 40
    "b2_diffurl": ("policy.schedule.branches={use: fork, children: 2}", ALL_NOISY),
    "flash_grpo": ("policy.schedule.branches={use: one_step}",),
    "step_aware_po": ("policy.schedule.branches={use: candidates, children: 2}", ALL_NOISY, "method.gap=0"),
    "tempflow_grpo": ("policy.schedule.branches={use: at_each_step, children: 2}",),
    **dict.fromkeys(("dmd2", "tdm", "tdm_r1"), ("policy.schedule.kernel={use: ode}",)),
}
"""What a method has to be told beside."""

TEACHERS = {"sd35_medium": "stabilityai/stable-diffusion-3.5-large", "wan21_1b": "Wan-AI/Wan2.1-T2V-14B-Diffusers"}
"""Model -> another one of its latents."""


def told(model: str, room: str, name: str) -> tuple[str, ...]:
    """What the config of a model's room has to say for a method: a reward's name, rewards with a gradient, a teacher."""
    base, *changes = BASES[room]
    node = load(f"{model}/{base}", changes)
    if name == "gardo":
        return (f"method.diversity={next(iter(node['rewards']))}",)
    if room == "reward_gradient":
        return (f"rewards={json.dumps(_rewards(model))}", *NEEDS.get(name, ()))
    if name in ("diffusion_opd", "opd"):
        inner = node["policy"].get("of", node["policy"])
        of = {key: value for key, value in inner.items() if key != "lora"} | {"pipeline": TEACHERS[model]}
        teacher = {**node["policy"], "of": of} if inner is not node["policy"] else of
        return (f"references={json.dumps({'teacher': {'policy': teacher}})}",)
    if name in ("seppo", "subject_rpo"):
        own = {"use": "against_own", "call": {"num_inference_steps": 2}, "of": node["records"]}
        return (f"records={json.dumps(own if name == 'seppo' else own | {'rewards': _rewards(model)})}",)
    return NEEDS.get(name, ())


def _rewards(model: str) -> Any:
    """Those of a model's online config whose gradient can be had."""
    return load(f"{model}/diffusion_nft")["rewards"]


def _of_generators(name: str) -> bool:
    """Whether a method takes what a generator of images or videos is seen as."""
    return bool(getattr(mm.methods, name)().kinds & {"transition", "bound"})


PAGE = """\
Each method was put into a config of the model (`BASES` of the script says which, and what is changed there), and went through
`mmalign rehearse`: a tiny twin of the pipeline with random weights on a CPU, stand-ins for rewards that need weights, two updates with
preflight, evaluations, checkpoints, a report, a resume that is equal bit for bit, an export that is loaded again. It shows that the parts
fit together, and nothing about memory, speed or what is learnt. `ran`, with seconds of a processor, or the phase that ended it and why."""


@dataclass(frozen=True)
class Asked:
    """A config with changes; of a sweep over methods also the model and the method, whose cell of the page it is."""

    words: tuple[str, ...]
    model: str = ""
    method: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of one. failed: the phase that ended it, empty where all went through. line: what was said last. seconds: of processor."""

    words: tuple[str, ...]
    failed: str
    line: str
    seconds: float


def methods() -> list[tuple[str, str]]:
    """Room and name of every method of the rooms of ``BASES`` that takes what generators make."""
    return [(room, name) for room in BASES for name in sorted(filter(_of_generators, index(f"mmalign.methods.{room}")))]


def with_methods(models: Sequence[str]) -> list[Asked]:
    """Each of them on every model."""
    asked = list[Asked]()
    for model, (room, name) in itertools.product(models, methods()):
        base, *changes = BASES[room]
        asked.append(Asked((f"{model}/{base}", *changes, f"method={{use: {name}}}", *told(model, room, name)), model, f"{room}/{name}"))
    return asked


def rehearsed(asked: Asked) -> Outcome:
    """In a forked process, which has the libraries that this one has imported."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said.json"

        def act(_: int) -> None:
            began, phases = time.process_time(), list[Phase]()
            rehearse(load(asked.words[0], asked.words[1:]), say=phases.append)
            last = phases[-1]
            line = last.what if last.failed else f"every phase of {len(phases)}"
            write_text(said, json.dumps([last.name if last.failed else "", line, time.process_time() - began]))

        (code,) = wait(fork(1, act, Path(folder), quiet=True))
        if said.is_file():
            return Outcome(asked.words, *json.loads(said.read_text(encoding="utf-8")))
        lines = words(Path(folder), 1)[0].strip().splitlines()
    return Outcome(asked.words, "load", lines[-1] if lines else f"ended with {code} and said nothing", float("nan"))


def page(asked: Sequence[Asked], outcomes: Sequence[Outcome]) -> str:
    """Methods by models, in Markdown; a method that was not rehearsed says so."""
    models, methods = list(dict.fromkeys(one.model for one in asked)), list(dict.fromkeys(one.method for one in asked))
    had = {outcome.words: outcome for outcome in outcomes}
    cells = {(one.method, one.model): _cell(had.get(one.words)) for one in asked}
    rows = [[f"`{method}`", *(cells[method, model] for model in models)] for method in methods]
    header = ["method", *(f"`{model}`" for model in models)]
    went = sum(cell.startswith("ran") for cell in cells.values())
    return "\n".join(
        [
            "# Methods on twins of generators",
            "",
            f"Made by `python scripts/rehearse.py --methods {' '.join(models)} --results FILE --page configs/REHEARSED.md`.",
            "",
            PAGE,
            "",
            f"{went} of {len(cells)} ran.",
            "",
            *(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]),
            "",
        ]
    )


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return "not rehearsed"
    if outcome.failed:
        return f"{outcome.failed}: {outcome.line}".replace("|", "\\|")
    return f"ran, {outcome.seconds:.0f} s"


def _known(results: Path | None) -> list[Outcome]:
    lines = results.read_text(encoding="utf-8").splitlines() if results is not None and results.is_file() else []
    rows = [json.loads(line) for line in lines]
    return [Outcome(**row | {"words": tuple(row["words"])}) for row in rows]


def _asked(arguments: argparse.Namespace) -> list[Asked]:
    if arguments.methods:
        return with_methods(arguments.names)
    names = [str(path.relative_to(CONFIGS).with_suffix("")) for path in sorted(CONFIGS.rglob("*.yaml"))]
    return [Asked((name,)) for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in arguments.names or ["*"])]


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="patterns of configs; with --methods models, which are folders of configs")
    parser.add_argument("--methods", action="store_true", help="every method for generators on each model")
    parser.add_argument("--results", type=Path, help="a file that keeps every outcome")
    parser.add_argument("--page", type=Path, help="with --methods: a page of all outcomes")
    arguments = parser.parse_args()
    if arguments.page and not arguments.methods:
        parser.error("--page: takes --methods, whose table it is")
    if arguments.methods and not arguments.names:
        parser.error("--methods: takes the models, which are folders of configs")
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    asked, outcomes = _asked(arguments), _known(arguments.results)
    for model in {one.model: one for one in asked if one.model}:
        rehearsal_config(load(f"{model}/flow_grpo"))  # imports what forked processes would import, each for itself
    for one in asked:
        if any(outcome.words == one.words for outcome in outcomes):
            continue
        outcome = rehearsed(one)
        outcomes.append(outcome)
        if arguments.results:
            arguments.results.parent.mkdir(parents=True, exist_ok=True)
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
        failed = f"failed at {outcome.failed}: " if outcome.failed else ""
        print(f"{' '.join(one.words)[:200]:<28}{outcome.seconds:6.1f} s  {failed}{outcome.line}", flush=True)
    if arguments.page:
        write_text(arguments.page, page(asked, outcomes))
    wanted = {one.words for one in asked}
    went = sum(outcome.words in wanted and not outcome.failed for outcome in outcomes)
    print(f"{went} of {len(asked)} rehearsed")
    return int(went < len(asked) or not asked)


if __name__ == "__main__":
    sys.exit(main())
