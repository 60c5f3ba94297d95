"""Trained reward models as others load them: transformers' sequence classification, LoRA added in, with the tokenizer.

Heads that are not linear stand beside the language model, in ``head.safetensors``, and the page has the lines of torch that make scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmalign.files import appearing
from mmalign.policies.adapters import Form, refuse_taken
from mmalign.policies.exports.language import beside_weights, whole_model
from mmalign.policies.language.drawing.handover import merged
from mmalign.policies.language.models.fitting import ROUNDING
from mmalign.policies.language.scoring.contrasts import sequences
from mmalign.policies.scorers.heads._head import Plain
from mmalign.policies.scorers.heads.linear import Linear
from mmalign.policies.scorers.readers import LastToken
from mmalign.policies.scorers.scorer import ScorerPolicy
from mmalign.types import UserError

HOME, HEAD = "AutoModelForSequenceClassification", "head.safetensors"


@torch.no_grad()
def save(
    policy: ScorerPolicy, folder: Path, *, prompt: Any, card: Callable[[list[Form]], str] | None = None, beside: Sequence[Path] = ()
) -> list[Form]:
    """Writes the reward model as it is now to ``folder``, which appears whole or not at all; its ``logits`` are the scores, in their order.

    prompt, card, beside: as of ``exports.language.save``. A row has to end as it does here, with the end-of-text token of the model's chat
    template; what rows are filled up with is another token, where the tokenizer has one, since transformers reads the last that is no
    filling.

    Errors: UserError where something is at ``folder``, for a class of which transformers has no sequence classification, and where what was
    written does not score as the live model.
    """
    refuse_taken(folder)
    with appearing(folder) as place:
        if isinstance(policy.head, Plain) and type(policy.reader) is LastToken:
            form = _beside(policy, place)
            _compare_parts(policy, form.load(place, None), load_file(place / HEAD), prompt)
            beside_weights(place, form, beside, card)
            return [form]
        classifier = _classifier(policy)
        classifier.save_pretrained(str(place))
        kind = type(classifier)
        del classifier  # before it is there a second time
        tokenizer = policy.of.chat.tokenizer if policy.of.chat.vision is None else policy.of.chat.vision.processor
        tokenizer.save_pretrained(str(place))
        code = (f"from transformers import {HOME}", f"model = {HOME}.from_pretrained(folder)")
        form = Form("full", code, {"model": policy.of.model}, lambda home, fresh: kind.from_pretrained(str(home)))
        _compare(policy, form.load(place, None), prompt)
        beside_weights(place, form, beside, card)
    return [form]


def _beside(policy: ScorerPolicy, place: Path) -> Form:
    """The language model, its tokenizer, and the head's tensors beside them."""
    form, chat, head = whole_model(policy.of, place), policy.of.chat, policy.head
    assert isinstance(head, Plain)
    (chat.tokenizer if chat.vision is None else chat.vision.processor).save_pretrained(str(place))
    save_file({name: value.detach().cpu().contiguous() for name, value in policy.head.state_dict().items()}, place / HEAD)
    code = (
        "import torch",
        "from safetensors.torch import load_file",
        *form.code,
        f'head = load_file(f"{{folder}}/{HEAD}")',
        "",
        "",
        f"def score(input_ids):  # of one row, up to the end of its answer: {', '.join(policy.scores)}",
        "    x = model.base_model(input_ids=input_ids).last_hidden_state[:, -1].float()",
        *(f"    {line}" for line in head.code()),
        "    return scores",
    )
    return form._replace(code=code)


def _compare_parts(policy: ScorerPolicy, fresh: Any, tensors: Mapping[str, Tensor], prompt: Any) -> None:
    """Errors: UserError where the model and the head, loaded again, do not score as the live ones."""
    ids, here = _row(policy, prompt)
    head = deepcopy(policy.head)
    head.load_state_dict(dict(tensors))
    states = fresh.to(policy.of.device).eval().base_model(input_ids=ids).last_hidden_state[:, -1].float()
    _refuse_apart(policy, head(states, {}).double().cpu(), here)


def _classifier(policy: ScorerPolicy) -> Any:
    """The model of transformers with the same backbone, and the head as its own."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSES

    model, words = policy.of.model, policy.of.chat.tokenizer
    if type(model.config) not in CLASSES or not isinstance(policy.head, Linear):
        of = f"{type(model).__name__} with a head {type(policy.head).__name__}"
        raise UserError(
            f"export: transformers has no sequence classification of {of}; takes the run itself as a reward, {{use: trained, run: FOLDER}}"
        )
    config = deepcopy(model.config)
    config.id2label, config.label2id = dict(enumerate(policy.scores)), {name: number for number, name in enumerate(policy.scores)}
    fillings = [words.pad_token_id, words.unk_token_id, words.bos_token_id]
    config.pad_token_id = next((token for token in fillings if token is not None and token not in policy.of.chat.stops), None)
    classifier = CLASSES[type(config)](config).to(model.dtype)
    weights, wanted = merged(model), classifier.state_dict()
    own = {name: weights.get(name, policy.head.weight) for name in wanted}
    heads = [name for name in wanted if name not in weights]
    if len(heads) != 1 or any(own[name].shape != wanted[name].shape for name in wanted):
        odd = next((name for name in wanted if own[name].shape != wanted[name].shape), ", ".join(heads))
        raise UserError(f"export: {type(classifier).__name__} is made otherwise than {type(model).__name__} with a head: {odd}")
    classifier.load_state_dict(own)
    return classifier.eval()


def _compare(policy: ScorerPolicy, fresh: Any, prompt: Any) -> None:
    """Errors: UserError where the loaded model's scores are not the live one's."""
    ids, here = _row(policy, prompt)
    _refuse_apart(policy, fresh.to(policy.of.device).eval()(input_ids=ids).logits.double().cpu(), here)


def _row(policy: ScorerPolicy, prompt: Any) -> tuple[Tensor, Tensor]:
    """Of a row whose answer is over at once its ids ``[1, T]``, and the live model's scores of it."""
    row, ends = torch.zeros(1, dtype=torch.int64), torch.tensor([[policy.of.chat.stops[0]]])
    rollout = policy.of.table([policy.of.chat.prompt(prompt)], row, ends, torch.ones_like(row), torch.ones_like(ends).bool())
    rows = sequences(rollout.held, row)
    ids = torch.cat([rows.prompts[0], rows.tokens[0]])[None].to(policy.of.device)
    return ids, policy.of_rows(rollout, row)


def _refuse_apart(policy: ScorerPolicy, there: Tensor, here: Tensor) -> None:
    difference, allowed = float((there - here).abs().max()), ROUNDING.get(policy.of.model.dtype, 1e-4)
    if not difference <= allowed:
        raise UserError(f"export: the model, loaded again, scores {difference:.2g} apart from the live one, more than {allowed:g}")
