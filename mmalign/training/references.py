"""Named sets of parameters: where they come from (a folder, a run), and how they follow the trained ones before some of the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.runs import weights
from mmalign.training.settings import Reference
from mmalign.types import Method, Move, Need, Policy, UserError

REFERRING = ("refs", "kls", "reverse_kls")  # needs that name a reference
OWN = ("current", "trained", "ema", "best", "optimizer")  # sets that are no references


def references(method: Method, needs: frozenset[Need]) -> list[str]:
    """The names of the references that a method's steps and tables hold."""
    return sorted({need.name or "ref" for need in needs | method.reads if need.kind in REFERRING})


def load(policy: Policy, named: Mapping[str, Reference], *, runs: str | Path) -> None:
    """Makes those sets of parameters that come from disk: from a folder, or from a run of that name in the folder ``runs``.

    Of a run its best parameters, as users get them; of a folder its safetensors: an adapter for peft, or whole weights. Errors:
    UserError for a name that is no reference, a folder without weights, and weights of another model.
    """
    for name, reference in named.items():
        if (place := reference.from_) is None:
            continue
        if name in OWN:
            raise UserError(f"references.{name}: not a reference; takes another name")
        key = f"references.{name}"
        policy.sets.adopt(name, weights.read(weights.existing(place, key, runs=Path(runs)), key))


def plan(method: Method, names: Sequence[str], named: Mapping[str, Reference]) -> list[Move]:
    """The method's own moves, and those of the references that move, which replace them.

    ``previous``, where a method refers to it and does not move it, is a copy of every step's policy. Errors: UserError that names
    the reference.
    """
    moving = {name: reference for name, reference in named.items() if reference.every is not None or reference.shares is not None}
    if own := [name for name in moving if name in OWN]:
        raise UserError(f"references.{own[0]}: not a reference; takes another name")
    moves = [move for move in method.moves if move.name not in moving]
    if "previous" in names and "previous" not in {*moving, *(move.name for move in moves)}:
        moves.append(Move("previous", {"current": 1.0}))
    return moves + [Move(name, dict(asked.shares or {"current": 1.0}), asked.every or 1) for name, asked in moving.items()]


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
            f"method: refers to {missing[0]!r}, which is no set here; takes references.{missing[0]}: {{from: FOLDER}} or {{every: N}}"
        )


def due(moves: Sequence[Move], step: int) -> list[Move]:
    """Those that are made before ``step``, in their order."""
    return [move for move in moves if step % move.every == move.at]


def repeatable(moves: Sequence[Move], step: int) -> bool:
    """Whether the moves before ``step`` come to the same where they are made twice: none reads what one of them makes."""
    made = due(moves, step)
    return not {move.name for move in made} & {name for move in made for name in move.shares} and not any(move.moments for move in made)


def move(policy: Policy, moves: Sequence[Move], step: int) -> dict[str, float]:
    """Makes the moves that are due before ``step``, in their order. Errors: UserError for a set that is not there.

    Returned, for the log: ``moved_error``, how far the trained LoRA is from a mixture that its rank cannot hold, where there is one.
    """
    furthest = 0.0
    for name, shares, *_ in due(moves, step):
        if name != "current" and shares == {"current": 1.0}:
            policy.sets.keep(name)
            continue
        known = {"current", "ref", *policy.sets.tables()}
        if unknown := sorted(shares.keys() - known):
            raise UserError(f"references.{name}.shares: {unknown[0]!r} is no set of parameters here; takes {', '.join(sorted(known))}")
        furthest = max(furthest, policy.sets.mix(name, shares))
    return {"moved_error": furthest} if furthest else {}
