"""The memory of a language model's run, in bytes by part, see ``footprint``: prompts shared or not, completions, their logits in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.policies.adapters import add_lora, in_four_bits
from mmalign.policies.inspecting.footprint import SAMPLE, UPDATE, Measured, Part, Rows, backward_pass
from mmalign.policies.inspecting.ledger import Fake, size_of
from mmalign.policies.inspecting.weightless import language
from mmalign.policies.language.models import storage, tensors
from mmalign.policies.language.models.loading import checkpoint_layers
from mmalign.policies.language.models.logits import LOG_PROBS, Matrix, numbers_of
from mmalign.policies.language.models.members import making
from mmalign.policies.pipelines.calls.calling import one_line, quiet
from mmalign.policies.settings import Lora, TextMemory, Train, type_of
from mmalign.types import UserError

PROMPT = 512
"""Tokens of a prompt where the config says no most."""


@dataclass(frozen=True)
class Language:
    """The keywords of ``policies.transformers``, which loads nothing here."""

    model: Any
    lora: Lora | None
    train: Train | None
    memory: TextMemory
    prompt: int
    completion: int
    dtype: str | None

    @quiet()
    def measure(self, rows: Rows, *, kind: str | None = None) -> Measured:
        """Its parts. Errors: UserError where its shape is not known, and where it does not run without numbers."""
        model, fake = language(self.model, dtype=type_of(self.dtype)), Fake()
        model.eval().requires_grad_(False)
        if self.train is not None:
            making(self.train)(model)
        elif self.lora is not None:
            add_lora(model, self.lora)
        else:
            model.requires_grad_(True)
        layers = checkpoint_layers(model) if self.memory.gradient_checkpointing else []
        if rows.together > 1:
            for layer, style in tensors.layers_of(model, rows.together).values():
                tensors.divide(layer, style, 0, rows.together, None)
        fake.weights(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        lora = [p for name, p in model.named_parameters() if "lora_" in name]
        held = size_of([*model.parameters(), *model.buffers()]) - size_of(lora)
        largest = 0  # of the weights that are made again from 4 bits
        for layer in storage.layers_of(model).values() if self.memory.storage is not None else ():
            held -= size_of([layer.weight]) - in_four_bits(layer)
            largest = max(largest, size_of([layer.weight]))
        parts = [Part(f"weights: {type(model).__name__} ({str(model.dtype).removeprefix('torch.')})", held)]
        parts += [Part("LoRA", size_of(lora))] if lora else []
        parts += [Part("a layer's weights made again from 4 bits", largest, (SAMPLE, UPDATE))] if largest else []
        try:
            parts += [*self._sampling(model, fake, rows), *self._update(model, fake, rows, trained, layers)]
        except UserError:
            raise
        except Exception as error:  # whatever a class of transformers raises where it gets no numbers
            raise UserError(f"policy.model: {type(model).__name__} does not run without weights: {one_line(error)}") from error
        return Measured(parts, trained, False, fake)

    def _sampling(self, model: Any, fake: Fake, rows: Rows) -> list[Part]:
        """Keys and values of the rows that are drawn at once, and what running their prompts takes."""
        at_once = min(self.memory.rows_at_once, rows.rows)
        prompts = -(-at_once // rows.group)
        with fake, torch.no_grad():
            ids = torch.zeros((prompts, self.prompt), dtype=torch.int64)
            before = fake.ledger.live
            fake.ledger.peak = before
            output = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, return_dict=True)
            work, tables = fake.ledger.peak - before, [t for layer in output.past_key_values.layers for t in (layer.keys, layer.values)]
            token = size_of(tables) // (prompts * self.prompt)
        cache = at_once * (self.prompt + self.completion) * token
        logits = at_once * int(model.get_input_embeddings().weight.shape[0]) * 4 * 4  # float32, sorted, summed, drawn from
        return [
            Part(f"keys and values of {at_once} rows of {self.prompt} + {self.completion} tokens", cache, (SAMPLE,)),
            Part("working memory of sampling", max(work - size_of(tables), logits), (SAMPLE,)),
        ]

    def _update(self, model: Any, fake: Fake, rows: Rows, trained: list[nn.Parameter], layers: list[nn.Module]) -> list[Part]:
        micro = min(rows.micro_rows, rows.rows)
        for layer in layers:
            layer.training = True
        shared = self.memory.shared_prefixes and not layers
        head = Matrix(model.get_output_embeddings())
        at_once = max(1, self.memory.logits_at_once // int(head.layer.weight.shape[0]))

        def forward() -> Tensor:
            hidden = (self._shared(model, micro, rows.group) if shared else self._plain(model, micro)).flatten(0, 1)
            tokens = torch.zeros(len(hidden), dtype=torch.int64)
            others = {name: (head, torch.zeros_like(hidden)) for name in rows.references} if rows.numbers else {}
            tables = numbers_of(head, hidden, tokens, numbers=rows.numbers, at_once=at_once, others=others)
            return torch.stack([tables[LOG_PROBS], *(tables[need] for need in sorted(rows.numbers))])

        one = backward_pass(fake, forward, trained)
        how = "prompts shared" if shared else "each with its prompt"
        name = f"activations kept for the backward pass: {micro} rows of {self.prompt} + {self.completion} tokens, {how}"
        return [Part(name, one.saved, (UPDATE,)), Part("working memory of a backward pass", one.peak - one.saved, (UPDATE,))]

    def _plain(self, model: Any, micro: int) -> Tensor:
        ids = torch.zeros((micro, self.prompt + self.completion), dtype=torch.int64)
        places = torch.arange(ids.shape[1]).expand_as(ids)
        states: Tensor = model.base_model(
            input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=places, use_cache=False, return_dict=True
        ).last_hidden_state
        at = places[:, -self.completion - 1 : -1]
        return states.gather(1, at.unsqueeze(-1).expand(-1, -1, states.shape[-1]))

    def _shared(self, model: Any, micro: int, group: int) -> Tensor:
        """As ``prefixes.run`` has it of rows in groups of one size."""
        from mmalign.policies.language.models import caches

        prompts = -(-micro // group)
        which = torch.arange(prompts).repeat_interleave(-(-micro // prompts))
        ids = torch.zeros((prompts, self.prompt), dtype=torch.int64)
        inputs = {"attention_mask": torch.ones_like(ids), "position_ids": torch.arange(self.prompt).expand_as(ids)}
        cache = caches.filled(model.base_model, {"input_ids": ids, **inputs})
        cache.crop(-1)
        tokens = torch.zeros((len(which), self.completion), dtype=torch.int64)
        mask = torch.ones((len(which), self.prompt - 1 + self.completion), dtype=torch.int64)
        places = torch.arange(self.prompt - 1, self.prompt - 1 + self.completion).expand_as(tokens)
        states: Tensor = model.base_model(
            input_ids=tokens, attention_mask=mask, position_ids=places, use_cache=True, return_dict=True,
            past_key_values=caches.go_on(cache, which, equal=True),
        ).last_hidden_state  # fmt: skip
        return states


def transformers(  # the keywords of the policy of that name
    model: Any, tokenizer: Any = None, *, lora: Lora | None = None, train: Train | None = None, memory: TextMemory = TextMemory(),  # noqa: B008
    max_prompt: int | None = None, max_completion: int = 256, dtype: Any = None, **others: Any,
) -> Language:  # fmt: skip
    """What ``policies.transformers`` is asked for, with nothing loaded."""
    model = model[0] if isinstance(model, tuple) else model
    return Language(model, lora, train, memory, max_prompt or PROMPT, max_completion, dtype)
