"""Named sets of parameters: where they come from (a folder, a run), and how they follow the trained ones before some of the steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.runs import checkpoint
from mmalign.types import Method, Move, Need, Policy, UserError

REFERRING = ("refs", "kls", "reverse_kls")  # needs that name a reference
OWN = ("current", "trained", "ema", "best", "optimizer")  # sets that are no references


def references(method: Method, needs: frozenset[Need]) -> list[str]:
    """The names of the references that a method's steps and tables hold."""
    return sorted({need.name or "ref" for need in needs | method.reads if need.kind in REFERRING})


def load(policy: Policy, stored: Mapping[str, str | Path], *, runs: str | Path) -> None:
    """Makes sets of parameters from disk: name -> a folder, or the name of a run in the folder ``runs``.

    Of a run its best parameters, as users get them; of a folder its safetensors: an adapter for peft, or whole weights. Errors:
    UserError for a name that is no reference, a folder without weights, and weights of another model.
    """
    for name, place in stored.items():
        if name in OWN:
            raise UserError(f"references.{name}: not a reference; takes another name")
        folder = next((path for path in (Path(place), Path(runs) / place) if path.is_dir()), None)
        if folder is None:
            raise UserError(f"references.{name}: no folder {place}, and no run of that name in {runs}; takes a folder or a run")
        weights, scale = _weights(name, folder)
        policy.sets.adopt(name, weights, scale=scale)


def _weights(name: str, folder: Path) -> tuple[dict[str, Tensor], float | None]:
    """What a folder holds, and alpha / rank where that is an adapter of peft's."""
    from safetensors.torch import load_file

    newest = folder if (folder / "state.json").is_file() else checkpoint.newest(folder / "checkpoints")[0]
    if newest is not None:
        tensors, _ = checkpoint.load(newest)
        return tensors[next(best for best in ("best", "ema", "trained") if best in tensors)], None
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"references.{name}: {folder} holds neither a checkpoint nor safetensors; takes a run, an adapter or a model")
    config = folder / "adapter_config.json"
    adapter: dict[str, Any] = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    scale = adapter["lora_alpha"] / adapter["r"] if adapter else None
    return {key: value for file in files for key, value in load_file(file).items()}, scale


def plan(method: Method, names: Sequence[str], asked: Mapping[str, Any]) -> list[Move]:
    """The method's own moves, and those of ``asked``: name -> ``N`` or ``{every: N, SET: share, ...}``, which replace them.

    ``previous``, where a method refers to it and does not move it, is a copy of every step's policy. Errors: UserError that names
    the reference.
    """
    moves = [move for move in method.moves if move.name not in asked]
    if "previous" in names and "previous" not in {*asked, *(move.name for move in moves)}:
        moves.append(Move("previous", {"current": 1.0}))
    return moves + [_asked(name, said) for name, said in asked.items()]


def _asked(name: str, said: Any) -> Move:
    words: dict[str, Any] = dict(said) if isinstance(said, Mapping) else {"every": said}
    every, shares = words.pop("every", 1), words or {"current": 1.0}
    if name in OWN:
        raise UserError(f"refresh.{name}: not a reference; takes another name")
    if not isinstance(every, int) or every < 1 or abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise UserError(f"refresh.{name}: got {said}, takes a number of steps, or {{every: N, SET: share}} with shares that add up to 1")
    return Move(name, {part: float(share) for part, share in shares.items()}, every)


def prepare(policy: Policy, names: Sequence[str], moves: Sequence[Move]) -> None:
    """Makes the sets that moves take from and make, as copies of the current parameters, where they are not there yet.

    Errors: UserError for a reference that nothing makes.
    """
    known, made = {"current", "ref", *policy.sets.tables()}, {move.name for move in moves}
    for name in dict.fromkeys(name for move in moves for name in move.shares):
        if name in made - known:
            policy.sets.keep(name)
    if missing := [name for name in names if name not in known | made]:
        raise UserError(
            f"method: refers to {missing[0]!r}, which is no set of parameters here; takes references: {{{missing[0]}: FOLDER}} or a refresh"
        )


def due(moves: Sequence[Move], step: int) -> list[Move]:
    """Those that are made before ``step``, in their order."""
    return [move for move in moves if step % move.every == move.at]


@torch.no_grad()
def move(policy: Policy, moves: Sequence[Move], step: int) -> None:
    """Makes the moves that are due before ``step``, in their order. Errors: UserError for a set that is not there."""
    for name, shares, *_ in due(moves, step):
        if name != "current" and shares == {"current": 1.0}:
            policy.sets.keep(name)
            continue
        tables = policy.sets.tables()
        known = {"current": tables["trained"], **tables}
        if unknown := sorted(shares.keys() - known.keys()):
            raise UserError(f"refresh.{name}: {unknown[0]!r} is no set of parameters here; takes {', '.join(sorted(known))}")
        parts = [(known[part], share) for part, share in shares.items()]
        mixed = {key: sum(share * table[key] for table, share in parts) for key in tables["trained"]}
        policy.sets.load({"trained" if name == "current" else name: mixed})  # type: ignore[dict-item]
