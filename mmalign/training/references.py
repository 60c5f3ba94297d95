"""What a policy is compared with: named sets of parameters, from a folder, a run or the trained ones, and other models.

Sets may follow the trained parameters before some of the steps. Another model never does.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from mmalign.arguments.signatures import nearest
from mmalign.needs import needed
from mmalign.runs import weights
from mmalign.training.settings import Reference
from mmalign.types import Method, Move, Need, Policy, UserError

REFERRING = ("refs", "kls", "reverse_kls", "absolute")  # needs that name a reference
OWN = ("current", "trained", "ema", "best", "behind", "optimizer", "recalled", "replayed")  # sets that are no references


def references(method: Method, needs: frozenset[Need]) -> list[str]:
    """The names of the references that a method's steps and tables hold."""
    return sorted({need.name or "ref" for need in needs | method.reads if need.kind in REFERRING})


def named(method: Method, needs: frozenset[Need]) -> list[str]:
    """Those, and the references that are asked what they say of noised samples, of which no table is kept."""
    return sorted({*references(method, needs), *(need.name for need in needs if need.kind == "score")})


def load(
    policy: Policy, by_name: Mapping[str, Reference], *, runs: str | Path, method: Method | None = None, examples: Sequence[Any] = (),
    drawing: Sequence[str] = (), measured: Sequence[str] = (),
) -> None:  # fmt: skip
    """Makes those references that come from elsewhere: a set's values from a folder, or a run of that name in ``runs``; other models.

    Of a run its best parameters, as users get them; of a folder its safetensors: an adapter for peft, or whole weights. A soup is made
    after the references that it is made of. method: who reads them. examples: prompts that another model has to read as the policy does.
    drawing: names of sets that draw rows. measured: names to which an evaluation
    measures the KL. Errors: UserError for a name that is no reference, a folder without weights, weights of another
    model, soups that are made of each other, and a model that cannot score the same rows, or that nothing asks.
    """
    if odd := [name for name in measured if name not in by_name]:
        raise UserError(f"evaluation.references: got {odd[0]!r}, takes names of references: {', '.join(by_name) or 'there are none'}")
    if method is not None:
        _tell_unread(policy, method, by_name, [*drawing, *measured])
    for name in in_order(by_name):
        key, reference = f"references.{name}", by_name[name]
        if name in OWN and not (reference.from_ is None and reference.policy is None and reference.soup is None):
            raise UserError(f"{key}: not a reference; takes another name")
        if reference.from_ is not None:
            policy.sets.adopt(name, weights.read(weights.existing(reference.from_, key, runs=Path(runs)), key))
        elif reference.policy is not None:
            _refuse_use(policy, method if name not in measured else None, name, by_name)
            policy.refer(name, reference.policy, examples)
        elif reference.soup is not None:
            stored = [_ingredient(policy, name, place, by_name, Path(runs)) for place, _ in reference.parts]
            policy.sets.adopt(name, *stored, shares=[share for _, share in reference.parts])


def in_order(by_name: Mapping[str, Reference]) -> list[str]:
    """Names of references, those that a soup is made of before it. Errors: UserError where soups are made of each other."""
    made_of = {name: [part for part, _ in reference.parts if part in by_name] for name, reference in by_name.items()}
    made_of["ref"] = [part for part in made_of.get("ref", []) if part != "ref"]  # there it is what training began with
    try:
        return [name for name in TopologicalSorter(made_of).static_order() if name in by_name]
    except CycleError as error:
        ring = " of ".join(reversed(error.args[1]))
        raise UserError(f"references.{error.args[1][-1]}.soup: is made of itself ({ring}); takes soups of folders and runs") from error


def _ingredient(policy: Policy, name: str, place: str, by_name: Mapping[str, Reference], runs: Path) -> Any:
    """A set's name, or weights as files hold them. Errors: UserError for another model, and for a set that is not there yet."""
    key = f"references.{name}.soup"
    if place == "ref" and (name == "ref" or "ref" not in by_name):
        return "ref"
    if place not in by_name:
        return weights.read(weights.existing(place, key, runs=runs), key)
    if by_name[place].policy is not None:
        raise UserError(f"{key}: {place} is another model, which cannot be mixed with this one's; takes folders, runs and sets of this one")
    if place not in policy.sets.tables():
        raise UserError(f"{key}: {place} is a set that training makes, and is not there before it; takes one with from or soup")
    return place


def _tell_unread(policy: Policy, method: Method, by_name: Mapping[str, Reference], drawing: Sequence[str]) -> None:
    """Warns of sets that are kept, and that neither the method nor another set reads, nor records: a misspelt name among them."""
    read = named(method, needed(policy, method))
    taken = [*drawing, *(part for move in method.moves for part in (*move.shares, move.name))]
    taken += [part for behavior in method.behaviors for part in behavior.shares]
    taken += [part for reference in by_name.values() for part in reference.renewal or [name for name, _ in reference.parts]]
    for name in by_name:
        if name not in (*read, *taken, *OWN) and by_name[name].policy is None:
            names = f"{', '.join(read) or 'none'}{nearest(name, read)}"
            warnings.warn(f"references.{name}: is kept, and nothing reads it; the method asks for {names}", stacklevel=2)


def _refuse_use(policy: Policy, method: Method | None, name: str, by_name: Mapping[str, Reference]) -> None:
    """Errors: UserError where another model would be unused, or used as the parameters that it does not have."""
    key, another = f"references.{name}.policy", "is another model, whose parameters these are not"
    for of, shares in ((of, reference.renewal or {}) for of, reference in by_name.items()):
        if name in shares:
            raise UserError(f"references.{of}.shares: {name} {another}; takes shares of sets of the trained one")
    if method is None:
        return
    names = named(method, needed(policy, method))
    if name not in names:
        raise UserError(f"{key}: the method asks nothing of {name!r}; takes a name of {', '.join(names) or 'a method with references'}")
    for move in method.moves:
        if name == move.name or name in move.shares:
            raise UserError(f"{key}: the method renews {move.name!r} from {', '.join(move.shares)}; {name} {another}")
    for behavior in method.behaviors:
        if name in behavior.shares:
            raise UserError(f"{key}: the method's {behavior.name} draws rows from {name}, and another model only scores here")


def digests_of(policy: Policy) -> dict[str, str]:
    """The references that are other models, and what the weights of each are told apart by."""
    return {name: digest for name, digest in policy.sets.foreign.items() if digest}


def refuse_others(policy: Policy, digests: Mapping[str, str]) -> None:
    """Errors: UserError where the models that references are have not the weights of those ``digests``."""
    others = digests_of(policy)
    for name in {**digests, **others}:
        before, now = digests.get(name, "none"), others.get(name, "none")
        if before != now:
            raise UserError(
                f"references.{name}.policy: its weights are others than those that this run began with (digest {now}, was {before}); "
                "takes those, or the run another name"
            )


def plan(method: Method, names: Sequence[str], by_name: Mapping[str, Reference]) -> list[Move]:
    """The method's own moves, and those of the references that move, which replace them.

    ``previous``, where a method refers to it and does not move it, is a copy of every step's policy. Errors: UserError that names
    the reference.
    """
    moving = {name: reference for name, reference in by_name.items() if reference.every is not None or reference.renewal is not None}
    if own := [name for name in moving if name in OWN]:
        raise UserError(f"references.{own[0]}: not a reference; takes another name")
    moves = [move for move in method.moves if move.name not in moving]
    others = {name for name, reference in by_name.items() if reference.policy is not None}
    if "previous" in names and "previous" not in {*moving, *others, *(move.name for move in moves)}:
        moves.append(Move("previous", {"current": 1.0}))
    return moves + [Move(name, dict(reference.renewal or {"current": 1.0}), reference.every or 1) for name, reference in moving.items()]


def prepare(policy: Policy, names: Sequence[str], moves: Sequence[Move]) -> None:
    """Makes the sets that moves take from and make, as copies of the current parameters, where they are not there yet.

    Errors: UserError for a reference that nothing makes.
    """
    there, moved = {"current", "ref", *policy.sets.tables(), *policy.sets.foreign}, {move.name for move in moves}
    for name in dict.fromkeys(name for move in moves for name in move.shares):
        if name in moved - there:
            policy.sets.keep(name)
    if missing := [name for name in names if name not in there | moved]:
        raise UserError(
            f"method: refers to {missing[0]!r}, which is no set here; takes references.{missing[0]}: {{from: FOLDER}} or {{every: N}}, or "
            "another model: {policy: ...}"
        )


def fixed(names: Sequence[str], moves: Sequence[Move]) -> list[str]:
    """Those of the references that are what they began as, to the end of the run."""
    return [name for name in names if name not in (*OWN, "previous", *(move.name for move in moves))]


def due(moves: Sequence[Move], step: int) -> list[Move]:
    """Those that are made before ``step``, in their order."""
    return [move for move in moves if step % move.every == move.at]


def repeatable(moves: Sequence[Move], step: int) -> bool:
    """Whether the moves before ``step`` come to the same where they are made twice: none reads what one of them makes."""
    now = due(moves, step)
    return not {move.name for move in now} & {name for move in now for name in move.shares} and not any(move.moments for move in now)


def move(policy: Policy, moves: Sequence[Move], step: int) -> dict[str, float]:
    """Makes the moves that are due before ``step``, in their order. Errors: UserError for a set that is not there.

    Returned, for the log: ``moved_error``, how far the trained LoRA is from a mixture that its rank cannot hold, where there is one.
    """
    furthest = 0.0
    for move in due(moves, step):
        name, shares = move.name, move.shares
        if move.decay is not None:
            policy.sets.follow(name, decay=move.decay(step))
            continue
        if name != "current" and shares == {"current": 1.0}:
            policy.sets.keep(name)
            continue
        known = {"current", "ref", *policy.sets.tables()}
        if unknown := sorted(shares.keys() - known):
            raise UserError(f"references.{name}.shares: {unknown[0]!r} is no set of parameters here; takes {', '.join(sorted(known))}")
        furthest = max(furthest, policy.sets.mix(name, shares))
    return {"moved_error": furthest} if furthest else {}
