"""Several models as one: their effective weights, mixed by a rule, written as an ordinary model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.arguments.calls import described, made_by, node_of, sayable
from mmalign.commands._own_code import OwnCode, own_code
from mmalign.commands._searching import Found, Objective, log_of, searched
from mmalign.commands.export import WORDS, base_code, base_node, inner, written
from mmalign.merges._parts import BASE, Merge, blocks
from mmalign.merges.settings import Part, Search
from mmalign.policies.adapters import Form, refuse_taken
from mmalign.policies.diffusers import DiffusersPolicy
from mmalign.policies.exports import ingredients
from mmalign.policies.exports.ingredients import Ingredient
from mmalign.runs import weights
from mmalign.runs.folder import read_config, versions
from mmalign.types import Policy, UserError, contents


def merge(
    policy: Policy,
    parts: dict[str, Part],
    rule: Merge,
    *,
    out: Path,
    search: Search | None = None,
    prompt: str = "",
    runs: Path = Path("runs"),
) -> Path:
    """Writes the model that a rule makes of others, as its library loads it, with a card; returns the folder.

    Args:
        policy: around the model that the parts are models of, without ``lora``: its weights are the part ``base``, and what is not merged
            (buffers, text encoders, an autoencoder) is its own. A language model, one that sees, a pipeline, or a reward model.
        parts: name -> what is merged. An adapter counts as ``W + alpha / rank * B A``: ranks and layers may differ.
        rule: how (`mmalign list merges`).
        out: the folder, which appears whole or not at all.
        search: how a rule's ratios are found by rewards; those of the best candidate are taken. What was asked is kept in
            ``OUT.search/`` until the folder is there, so that a search that ends early goes on where it was.
        prompt: of the one call by which what was written is compared with what was meant.
        runs: where the names of runs are looked up.

    Sums are made in float64 and rounded once, to the type of the policy's model. Of several processes it takes one.

    Errors: UserError before anything is loaded twice: a policy with LoRA, a rule that reads a part that is not there, a part of another
    architecture (tensors, shapes), with other words, or an adapter that was trained on another base; a rule without ratios, where it
    is searched.
    """
    refuse_taken(out)
    own, node = inner(policy), base_node(described().get("policy") or node_of(policy))
    if own is None or node is None:
        raise UserError(f"policy: got a {type(policy).__name__}, takes a diffusers pipeline or a language model, or what wraps one")
    if policy.sets.scales:
        raise UserError("policy.lora: got an adapter, and weights are merged into the whole model; takes none, and adapters among parts")
    if odd := [name for name in rule.parts if name not in (BASE, *parts)]:
        raise UserError(f"rule: reads {odd[0]!r}, and there is no such part; takes {', '.join([BASE, *parts])}")
    if BASE in parts:
        raise UserError("parts.base: is the policy's own weights; takes another name")
    if unread := [name for name in parts if name not in rule.parts]:
        raise UserError(f"parts.{unread[0]}: is not in the rule, which reads {', '.join(rule.parts)}; takes those alone")
    if search is not None and (rule.again is None or len(rule.ratios) < 2):
        raise UserError("search: the rule has no two ratios that may change; takes by_block or residue with several blocks, or no search")
    of = blocks(ingredients.parameters_of(policy), len(rule.shares))
    base = ingredients.base_of(policy)
    read = {name: _read(name, part, policy, node, runs) for name, part in parts.items()}
    places = {BASE: "the policy", **{name: _place(part) for name, part in parts.items()}}

    def become(made: Merge) -> None:
        ingredients.blend(policy, base, {BASE: base, **read}, lambda name: made.shares[of[name]])

    found = None
    if search is not None:
        again = rule.again
        assert again is not None
        settings = {
            "rule": [dict(block) for block in rule.shares],
            "base": base.digest,
            "parts": {name: part.digest for name, part in read.items()},
        }
        objective = Objective(policy, search, lambda ratios: become(again(ratios)))
        found = searched(objective, rule.ratios, log=log_of(out), identity=settings)
        rule = again(found.best)
    become(rule)
    code = own_code(node, own.pipe if isinstance(own, DiffusersPolicy) else own.model)
    made_of = [(name, places[name], {BASE: base, **read}[name]) for name in (BASE, *parts) if name in (BASE, *rule.parts)]

    def card(forms: list[Form]) -> str:
        return page(out.name, node, forms, code, how=_in_words(rule), parts=made_of, shares=_shares(rule, of), found=found)

    beside = [*code.files, *([found.log] if found else [])]
    written(policy, out, node, prompt=prompt or _prompt(search), card=card, beside=beside)
    if found is not None:
        found.forget()
    return out


def _read(name: str, part: Part, policy: Policy, node: Mapping[str, Any], runs: Path) -> Ingredient:
    key = f"parts.{name}"
    if part.policy is not None:
        return ingredients.live(inner(part.policy), f"{key}.policy", inner(policy))
    place = weights.existing(str(part.from_), f"{key}.from", runs=runs)
    ingredient = ingredients.stored(place, f"{key}.from", policy)
    if ingredient.pairs and (place / "config.yaml").is_file():
        theirs = base_node(read_config(place).get("policy")) or {}
        for word in ("model", "pipeline"):
            there, here = theirs.get(word), node.get(word)
            if there != here:
                raise UserError(f"{key}.from: its LoRA was trained on {word} {there!r}, and policy.{word} is {here!r}; takes the same base")
    return ingredient


def _place(part: Part) -> str:
    return str(part.from_) if part.policy is None else str((base_node(node_of(part.policy)) or {}).get("model", "a policy"))


def _prompt(search: Search | None) -> str:
    return str(next(iter(contents(search.prompts)), "")) if search is not None else ""


def _in_words(rule: Merge) -> str:
    made = made_by(rule)
    name = described().get("rule", {}).get("use") if made is None else made.name
    return "a rule" if name is None else f"`{name}`"


def _shares(rule: Merge, of: Mapping[str, int]) -> list[dict[str, Any]]:
    """Rows of the card: which layers, and the share of each part."""
    rows = []
    for number, block in enumerate(rule.shares):
        names = [name for name, own in of.items() if own == number]
        layers = "all" if len(rule.shares) == 1 else f"`{names[0]}` to `{names[-1]}`"
        rows.append({"layers": layers, "shares": [(part, f"{share:.6g}") for part, share in block.items()]})
    return rows


def page(
    name: str, node: Mapping[str, Any], forms: Sequence[Form], own: OwnCode, *, how: str, parts: Sequence[tuple[str, str, Ingredient]],
    shares: Sequence[Mapping[str, Any]] = (), found: Found | None = None,
) -> str:  # fmt: skip
    """The card of a model that was made of others: what of, with hashes, and what was searched."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    base = node.get("model", node.get("pipeline"))
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template("merged.md").render(
        name=name, words=WORDS["pipeline" if "pipeline" in node else "model"], base=base if sayable(base) else None, how=how,
        base_code=base_code(node, forms),
        loaders=[{"name": form.name, "code": form.code} for form in forms], own=own, shares=list(shares), found=found,
        parts=[{"name": part, "place": place, "what": one.what, "digest": one.digest} for part, place, one in parts], versions=versions(),
    )  # fmt: skip
