"""Another language model as a reference: the same token ids, scored by a model of another width and depth.

Its rows are the policy's own: prompts as the policy's tokenizer and template write them, completions as they were sampled or given. So
both have to read alike, which is tried on the tokenizers and on prompts, and not by their names. Probabilities are over the words that
the policy may say (``loading.never_said``), at its temperature; an id beyond the smaller of two heads has no word, and is said by neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch

from mmalign.distributed.shards import digest
from mmalign.policies.language.drawing.drawing import Drawing
from mmalign.policies.language.models.fitting import Fit, Running, made_up
from mmalign.policies.language.prompts.budget import Room
from mmalign.policies.language.prompts.chat import Chat
from mmalign.policies.language.scoring.heads import MASKS
from mmalign.policies.language.scoring.scorer import Scorer
from mmalign.policies.parameters import Other, ParameterSets, frozen
from mmalign.types import UserError

TALK = ({"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "What is 2 + 2?"})
"""A conversation that two templates have to write alike."""
TRIED = 16  # prompts of a run, at most


class Reader(Protocol):
    """What of a policy of language models takes part."""

    model: Any
    chat: Chat
    room: Room
    temperature: float
    fit: Fit
    rounding: float
    scorer: Scorer
    drawing: Drawing
    sets: ParameterSets
    stored: int

    def using(self, name: str) -> AbstractContextManager[None]: ...


class Runs(Protocol):
    """A policy that says how the model that is in place is run."""

    @property
    def fit(self) -> Running:
        """The fast ways of computing that hold for it."""

    def using(self, name: str) -> AbstractContextManager[None]:
        """What a name stands for in place while the block lasts."""


@contextmanager
def running(policy: Runs, name: str) -> Iterator[Running]:
    """What a name stands for in place, and how to run it."""
    with policy.using(name):
        yield policy.fit


def refer(policy: Reader, name: str, other: Any, examples: Sequence[Any]) -> None:
    """Makes ``name`` stand for the other policy's model. Errors: UserError, in one line, for what differs of how both read."""
    key = f"references.{name}.policy"
    if not isinstance(other, type(policy)):
        raise UserError(f"{key}: got a {type(other).__name__}, takes one that transformers makes, as the policy is")
    if other.stored:
        raise UserError(f"{key}.memory.storage: got 'nf4', takes a reference that keeps its weights as they are")
    if odd := sorted(MASKS & policy.scorer.heads.keys()):
        raise UserError(f"{key}: another model, and the head {odd[0]} reads the hidden states of this one's own; takes no such head")
    _refuse_settings(key, policy, other)
    _refuse_words(key, policy, other)
    _refuse_prompts(key, policy.chat, other.chat, examples)
    _refuse_context(key, policy.room, other.room)
    frozen(key, policy.sets, other.sets)
    others = {label: lent.parts for label, lent in policy.sets.others.items() if label != name}
    parts = {**others, name: {"model": other.model, "fit": other.fit, "rounding": other.rounding}}
    cut = {**{label: lent.shards for label, lent in policy.sets.others.items()}, name: other.sets.shards}
    widths = {label: width_of(part["model"], part["fit"]) for label, part in parts.items()}
    own = width_of(policy.model, policy.fit)
    least = min(own, *widths.values())
    never = _within(policy.scorer, least, own)
    policy.scorer, policy.drawing = replace(policy.scorer, never=never), policy.drawing._replace(never=never)
    for label, part in parts.items():
        there = policy.sets.workplaces.get(label, part["fit"].device)
        never = _within(policy.scorer, least, widths[label]).to(there)
        scorer = replace(policy.scorer, fit=part["fit"], device=there, layers=(), never=never)
        policy.sets.lend(
            label, policy, Other({**part, "scorer": scorer}, digest({"model": part["model"]}), (part["model"],), cut.get(label))
        )


def width_of(model: Any, fit: Fit) -> int:
    """How many logits a model has for each token."""
    with torch.no_grad():
        return int(fit.head(fit.states(made_up(model, ()))[:1, 0]).shape[-1])


def _within(scorer: Scorer, least: int, width: int) -> torch.Tensor:
    """The ids of a head of that width that are never said: the policy's own, and those from ``least`` on."""
    never = [] if scorer.never is None else [number for number in scorer.never.tolist() if number < least]
    return torch.tensor([*never, *range(least, width)], dtype=torch.int64, device=scorer.device)


def _refuse_settings(key: str, policy: Reader, other: Reader) -> None:
    own, theirs = policy.chat, other.chat
    for word, here, there in (
        ("temperature", policy.temperature, other.temperature),
        ("template", own.template, theirs.template),
        ("system", own.system, own.system if theirs.system is None else theirs.system),  # its prompts are the policy's, with their system
    ):
        if here != there:
            raise UserError(f"{key}.{word}: got {there!r}, and policy.{word} is {here!r}; takes the same, as it scores the same rows")


def refuse_other_words(key: str, here: Mapping[str, int], there: Mapping[str, int], *, takes: str) -> None:
    """Errors: UserError, by the config's ``key``, where a word has another id in the other of two vocabularies."""
    odd = sorted((word for word in here.keys() | there.keys() if here.get(word) != there.get(word)), key=lambda word: (len(word), word))
    if odd:
        ids = f"{odd[0]!r} has the id {there.get(odd[0], 'none')} there and {here.get(odd[0], 'none')} here"
        raise UserError(f"{key}: its tokenizer has other ids: {ids} ({len(odd)} such); {takes}")


def _refuse_words(key: str, policy: Reader, other: Reader) -> None:
    """Errors: UserError where an id means another word, or has no logit."""
    here, there = policy.chat.tokenizer.get_vocab(), other.chat.tokenizer.get_vocab()
    refuse_other_words(f"{key}.model", here, there, takes="takes a model with the policy's vocabulary")
    words = 1 + max(number for number in here.values() if number not in policy.chat.never)
    words, width = min(words, width_of(policy.model, policy.fit)), width_of(other.model, other.fit)
    if width < words:
        raise UserError(f"{key}.model: it has {width} logits, and the policy {words} words; takes a model with one for each")


def _refuse_prompts(key: str, own: Chat, other: Chat, examples: Sequence[Any]) -> None:
    """Errors: UserError where some prompt has other ids, or other pixels, there than here."""
    if own.vision is not None and other.vision is None:
        raise UserError(f"{key}.model: reads words alone, and the policy sees; takes a model that sees")
    if own.vision is not None and other.vision is not None:
        one, two = ([{"ids": ids, **inputs} for ids, inputs in vision.example()] for vision in (own.vision, other.vision))
        if len(one) != len(two) or not all(_alike(here, there) for here, there in zip(one, two, strict=True)):
            raise UserError(f"{key}.model: its processor makes other inputs of a picture; takes a model with the policy's processor")
    for prompt in [*([list(TALK)] if own.template else []), *list(examples)[:TRIED]]:
        ids = _ids(own, prompt)
        if ids is None:
            continue
        others = _ids(other, own.turns(prompt) if own.template else prompt)
        if others != ids:
            writes = "refuses it" if others is None else f"writes {_apart(other, others, ids)}"
            raise UserError(
                f"{key}.model: of the prompt {_short(prompt)} its chat template {writes} where the policy's writes "
                f"{_apart(own, ids, others or [])}; takes a model with the policy's template"
            )


def _alike(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    """Up to the rounding of another type."""
    if one.keys() != two.keys() or any(one[name].shape != two[name].shape for name in one):
        return False
    return all(torch.allclose(one[name].double(), two[name].double(), rtol=0.01, atol=0.01) for name in one)


def _ids(chat: Chat, prompt: Any) -> list[int] | None:
    """A prompt's ids; None where it is refused."""
    try:
        return list(chat.prompt(prompt).ids)
    except UserError:
        return None


def _apart(chat: Chat, ids: Sequence[int], others: Sequence[int]) -> str:
    """The first words that differ from another version's."""
    at = next((place for place, (one, two) in enumerate(zip(ids, others, strict=False)) if one != two), min(len(ids), len(others)))
    return repr(str(chat.tokenizer.decode(list(ids[at : at + 8])))) if at < len(ids) else "nothing more"


def _short(prompt: Any) -> str:
    text = repr(prompt if isinstance(prompt, str) else prompt[-1].get("content"))
    return text if len(text) <= 40 else f"{text[:37]}..."


def _refuse_context(key: str, own: Room, other: Room) -> None:
    if other.context is None:
        return
    prompt = own.max_prompt
    if prompt is None and own.context is not None:
        prompt = own.context - own.max_completion
    if prompt is None or prompt + own.max_completion > other.context:
        rows = "as long as they like" if prompt is None else f"up to {prompt + own.max_completion} tokens long"
        raise UserError(
            f"{key}.model: reads {other.context} tokens, and rows may be {rows}; takes policy.max_prompt and policy.max_completion "
            "that fit together"
        )
