"""Damages the folders of runs, and sees that ``report`` and a resume make do with them or say so in one line: no other error, no hang.

python scripts/fuzz/runs.py                      # 1,500 folders
python scripts/fuzz/runs.py --count 100 --seed 7
python scripts/fuzz/runs.py --only 41 --keep out # one folder again, kept as it was damaged

A folder is made from the seed and its number alone. A run that was resumed must end with the very weights of the run that was left alone.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import io
import json
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import mmalign as mm
from mmalign.report import build
from mmalign.runs import answers, checkpoint
from mmalign.runs.folder import RunFolder
from mmalign.types import UserError
from mmalign.worlds import gaussian
from mmalign.worlds.gaussian import GaussianPolicy, QuadraticReward

STEPS, SLOW = 6, 60.0  # of a run; seconds for one folder, after which its traceback is printed and the script ends
ODD: list[Any] = [
    None, True, False, 0, -1, 2.5, 1e149, -1e149, 1e-320, 1e308, 1e999, 10**30, 10**400, "", "x", "\ud800", "a\nb", "<b>", [], {}, [[]],
    {"use": {}}, [None], {"": None}, "step_000006", "../../x", "\0", [1, "a"], {"step": 1},
]  # fmt: skip
BYTES = [
    b"", b"\0", b"\n\n\n", b"{", b"[]", b"null", b"true", b"1e999", b'"x"', b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 20_000,
    b'{"a":' * 20_000, b"9" * 6_000, b"a: &a [*a]\n", b"a: !!python/object:os.system x\n",
    b"\x89PNG\r\n\x1a\n", b"- {", b"? ? ?", b"\r\n",
]  # fmt: skip


def policy() -> GaussianPolicy:
    """Small, and exact on every machine."""
    return GaussianPolicy(gaussian.one_gaussian([0.7, -0.3], [0.5, 1.5]), gaussian.flow_levels(2), kernel=mm.kernels.flow_sde())


def train(root: Path, *, resume: bool = False) -> Any:
    """The run that is damaged: an evaluation every second step, two checkpoints kept, a judge and a spread."""
    return mm.online(
        policy(),
        ["a", "b"],
        {"linear": QuadraticReward(torch.tensor([1.0, -0.5], dtype=torch.float64))},
        mm.methods.flow_grpo(ratio="per_step", clip=0.2, beta=0.1, kl="paper", std="none"),
        steps=STEPS,
        batch=mm.Batch(prompts=2, group=2, updates=2),
        optimizer=mm.adamw(rate=0.05, ema=0.9),
        evaluation=mm.Evaluation(
            every=2,
            samples=2,
            judges={"gold": QuadraticReward(torch.tensor([0.5, 0.5], dtype=torch.float64))},
            metrics={"spread": lambda outputs, prompts: {"spread_ratio": float(outputs.std())}},
        ),
        run=mm.RunSettings(name="run", folder=str(root), checkpoint_every=2, trackers=()),
        resume=resume,
    )


def made(root: Path) -> Path:
    """A run that is two steps from its end, with pictures and answers beside it."""
    whole = train(root).path
    shutil.rmtree(whole / "checkpoints" / f"step_{STEPS:06d}")
    rng = torch.Generator().manual_seed(0)
    for step in (0, 2, 4, 6):
        run = RunFolder(whole)
        run.write_prompts(["a", "b"], [0, 1])
        run.write_samples(step, torch.rand(2, 2, 3, 8, 8, generator=rng))
        image = {"type": "image", "image": torch.rand(3, 8, 8, generator=rng)}
        messages = [[{"role": "user", "content": [image, {"type": "text", "text": "What?"}]}]]
        answers.write(whole, step, messages, ["a dog and a cat"], [{"mentions": [(2, 5, "dog", True)], "objects": ["dog", "cow"]}])
    run.write_real(torch.rand(2, 2, 3, 8, 8, generator=rng))
    (whole / "broken.jsonl").write_text('{"id": "a", "why": "b"}\n')
    return whole


# ---- damage


def _inside(value: Any, rng: random.Random) -> Any:
    """The same JSON with one value or key of it changed."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        if not isinstance(node, dict | list):
            return
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            walk(node[key])

    walk(value)
    if not places:
        return rng.choice(ODD)
    node, key = rng.choice(places)
    act = rng.randrange(4)
    if act == 0:
        del node[key]
    elif act == 1 and isinstance(node, dict):
        node[rng.choice(["", "x", "step", "_se", "gold", "kl"])] = node.pop(key)
    else:
        node[key] = rng.choice(ODD)
    return value


def _json(path: Path, rng: random.Random) -> None:
    """A value of a file of JSON, or of a line of it, becomes another."""
    lines = [path.read_text("utf-8")] if path.suffix == ".json" else path.read_text("utf-8").splitlines()
    place = rng.randrange(len(lines)) if lines else 0
    if lines:
        lines[place] = json.dumps(_inside(json.loads(lines[place]), rng))
    path.write_text("\n".join(lines) + "\n")


def _yaml(path: Path, rng: random.Random) -> None:
    import yaml

    path.write_text(yaml.safe_dump(json.loads(json.dumps(_inside(yaml.safe_load(path.read_text()), rng)))))


def _cut(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data) + 1)])


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 20])):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(bytes(data))


def _lines(path: Path, rng: random.Random) -> None:
    lines = path.read_bytes().split(b"\n")
    act, place = rng.randrange(3), rng.randrange(len(lines))
    if act == 0:
        del lines[place]
    else:
        lines = lines + lines[:place] if act == 1 else rng.sample(lines, len(lines))
    path.write_bytes(b"\n".join(lines))


def _replace(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.choice(BYTES))


def _folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _circle(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _gone(path: Path, rng: random.Random) -> None:
    path.unlink()


def _parent_gone(path: Path, rng: random.Random) -> None:
    shutil.rmtree(path.parent)


def _other(path: Path, rng: random.Random) -> None:
    """A file that nobody wrote, beside it."""
    names = [
        "step_٣.png",
        "step_²",
        "step_000004",
        ".step_000004.9.tmp",
        "step_-1.jsonl",
        "step_99999999999999999999.png",
        "x" * 200,
        "\udcff",
        ".x.1.tmp",
    ]
    other = path.parent / rng.choice(names)
    if not other.exists():
        other.write_bytes(rng.choice(BYTES)) if rng.random() < 0.7 else other.mkdir()


DAMAGE: list[Callable[[Path, random.Random], None]] = [
    _json, _json, _json, _yaml, _cut, _cut, _flip, _lines, _replace, _folder, _circle, _gone, _parent_gone, _other,
]  # fmt: skip


def damaged(folder: Path, rng: random.Random) -> list[str]:
    """Damages one to three files of a run; returns how."""
    how = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
        path, act = rng.choice(files), rng.choice(DAMAGE)
        if (act is _yaml) != (path.suffix == ".yaml") and act in (_yaml, _json):
            act = {".yaml": _yaml, ".json": _json, ".jsonl": _json}.get(path.suffix, _flip)
        if act is _parent_gone and path.parent == folder:
            act = _gone
        with contextlib.suppress(ValueError, RecursionError):  # what was damaged before may be no JSON
            act(path, rng)
            how.append(f"{act.__name__} {path.relative_to(folder)}")
    return how


# ---- what is asked of it


def outcome(act: Callable[[], str]) -> str:
    """``ok``, ``refused: ...`` in one line, or the traceback of anything else."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return act()
    except UserError as error:
        return f"refused: {error}" if "\n" not in str(error) else f"FOREIGN: several lines: {error}"
    except Exception:  # which is what is looked for
        return f"FOREIGN: {traceback.format_exc()}"


def weights(run: Path) -> dict[str, torch.Tensor]:
    """What the run trained, from its last checkpoint."""
    tensors, _ = checkpoint.load(run / "checkpoints" / f"step_{STEPS:06d}")
    return tensors["trained"]


def tried(whole: Path, expected: dict[str, torch.Tensor], seed: int, number: int, root: Path) -> tuple[list[str], list[str]]:
    """How one copy of a run was damaged, and what came of it."""
    rng = random.Random(f"{seed}:{number}")
    copy = root / "run"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    how = damaged(copy, rng)

    def resumed() -> str:
        run = train(root, resume=True)
        same = all(torch.equal(value, expected[name]) for name, value in weights(run.path).items())
        places = [run.path, *(run.path / name for name in ("samples", "answers", "answers/images"))]
        strays = [
            *(run.path / "checkpoints").glob(".*.tmp"),
            *(path for place in places for path in place.glob(".*.tmp") if path.is_file()),
        ]
        return "ok" if same and not strays else f"FOREIGN: other weights, or strays: {strays}"

    return how, [outcome(lambda: "ok" if build(copy).is_file() else "FOREIGN: no page"), outcome(resumed)]


def main(arguments: Sequence[str] | None = None) -> int:
    """How many folders went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one folder, by its number")
    parser.add_argument("--keep", type=Path, help="where to keep that folder")
    options = parser.parse_args(arguments)
    seen, wrong = collections.Counter[str](), 0
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        with contextlib.redirect_stdout(io.StringIO()):
            expected = weights(train(base / "straight").path)
            whole = made(base / "whole")
        for number in range(options.count) if options.only is None else [options.only]:
            faulthandler.dump_traceback_later(SLOW, exit=True, file=sys.__stderr__ or 2)
            how, outcomes = tried(whole, expected, options.seed, number, base / "tried")
            faulthandler.cancel_dump_traceback_later()
            for name, came in zip(("report", "resume"), outcomes, strict=True):
                seen[f"{name} {came.split(':')[0]}"] += 1
                if came.startswith("FOREIGN"):
                    wrong += 1
                    print(f"{number}: {name} after {'; '.join(how)}\n{came}")
                elif options.only is not None:
                    print(f"{name} after {'; '.join(how)}: {came}")
            if options.keep is not None:
                shutil.copytree(base / "tried" / "run", options.keep)
    print(", ".join(f"{count} {name}" for name, count in sorted(seen.items())), f"; {wrong} wrong", sep="")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main()))
