"""Any causal or vision-language model of transformers as a policy: its tokenizer or processor, its chat template, its own head.

No per-model code. Prompts are strings or conversations, and for a model that sees hold images and videos by reference
(``{"type": "image", "path": ...}``); rows with several of them and with none stand side by side.

A step is a token of a completion, its end-of-text token included. Log-probabilities are those of the model's distribution at
``temperature``, over its vocabulary without pad, bos, unk and the placeholders of media, which no completion says: the distribution that
is sampled and trained. ``top_p`` and ``top_k`` are not in them, and neither is whatever differs in an engine that samples; ``old`` is what
this policy itself says of the sampled tokens before the first update, and how far the sampler's own are from that is logged.
Dropout is off, in sampling and in training: what is scored twice has to be scored the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.arguments.ranges import Count, Fraction, Natural, Positive, Proportion
from mmalign.devices import default_device
from mmalign.distributed.shards import leaves
from mmalign.media import Limits
from mmalign.needs import DEGREE, kinds, named
from mmalign.policies.language.drawing.drawing import Drawer, Drawing, Drawn
from mmalign.policies.language.drawing.engine import Engine
from mmalign.policies.language.drawing.hidden_media import hidden_media
from mmalign.policies.language.drawing.turns import introduced, refuse_turns, spoken, tools_of
from mmalign.policies.language.models import loading, storage, tensors
from mmalign.policies.language.models.fitting import ROUNDING, fit, made_up
from mmalign.policies.language.models.loading import (
    checkpoint_layers,
    context_of,
    load,
    never_said,
    parted,
    reader_of,
    refuse_numbers,
    stops_of,
)
from mmalign.policies.language.models.logits import COMPARED, DISTRIBUTION
from mmalign.policies.language.models.members import sets_of
from mmalign.policies.language.prompts import reading
from mmalign.policies.language.prompts.ablation import Ablation
from mmalign.policies.language.prompts.agreement import FirstRow
from mmalign.policies.language.prompts.budget import Room, Truncate
from mmalign.policies.language.prompts.chat import Chat
from mmalign.policies.language.prompts.encoded_prompts import Prompt
from mmalign.policies.language.prompts.reading import Segments
from mmalign.policies.language.prompts.vision import Vision, inputs_of
from mmalign.policies.language.scoring import reference_models, replayed, step_tables
from mmalign.policies.language.scoring.blending import blended
from mmalign.policies.language.scoring.completions import Completions
from mmalign.policies.language.scoring.contrasts import Others, others, sequences
from mmalign.policies.language.scoring.given_rows import given
from mmalign.policies.language.scoring.heads import HEADS, HeadName, add_heads, degrees
from mmalign.policies.language.scoring.scorer import Scorer
from mmalign.policies.language.scoring.step_tables import cells_of, steps_behind, steps_of
from mmalign.policies.settings import Dtype, EngineSettings, Lora, TextMemory, Train, Turns, type_of
from mmalign.samplers.assignment import assignment, drawn_by
from mmalign.samplers.masking import Masking
from mmalign.types import EVERY, Adapter, Behavior, Need, Rollout, Steps, UserError

__all__ = ["TransformersPolicy", "transformers"]

CALL = ("temperature", "top_p", "top_k", "max_completion", "hidden_media")
GIVES = frozenset({"old", "refs", *DISTRIBUTION, *COMPARED, "contrast", "changed", "phrase", "segment", "behaviors", "recall", "masking",
                   "traced", "activation", "replay"})  # fmt: skip
ADAPTER = Adapter("token", GIVES, gives_with={"heads": HEADS}, call=lambda _: CALL, learns_from="texts", sees=loading.foresees)


def transformers(  # one keyword for each thing that a user may set
    model: Any,
    tokenizer: Any = None,
    *,
    lora: Lora | None = None, train: Train | None = None, start: str | None = None,
    memory: TextMemory = TextMemory(), engine: EngineSettings | None = None, media: Limits = Limits(),  # noqa: B008 (records are frozen)
    max_prompt: Count | None = None, max_completion: Count = 256, temperature: Positive = 1.0, top_p: Fraction = 1.0, top_k: Natural = 0,
    template: bool | None = None, system: str | None = None, truncate: Truncate | None = None,
    contrasts: dict[str, str | Proportion] | None = None, ablation: Ablation = Ablation(),  # noqa: B008
    segments: Segments = "sentence", thoughts: list[str] | None = None, heads: Sequence[HeadName] = (), turns: Turns | None = None,
    dtype: Dtype | None = None, device: str | None = None, trust_remote_code: bool = False,
) -> TransformersPolicy:  # fmt: skip
    """A policy around an ``AutoModelForCausalLM`` or an ``AutoModelForImageTextToText``.

    Args:
        model, tokenizer: objects, both as a tuple under ``model``, or the hub id or folder of both. A vision-language model's
            ``tokenizer`` is its processor. A GGUF file holds both: ``x.gguf``, ``{gguf: FILE}``, ``ORGANISATION/NAME/FILE.gguf``.
        lora: rank, alpha, targets; None trains all of the model.
        train: in place of lora, what of each member is trained: ``{vision: freeze, projector: full, language: {rank: 16}}``.
        start: a run, or whole weights on disk, that the trained parameters start as, where they are no LoRA (``lora: {from: ...}``).
        max_prompt, max_completion: tokens. A prompt may have as many as the context has room for, by default.
        temperature: of the distribution that is sampled, scored and trained. system: the system turn of prompts that have none.
        top_p, top_k: cut off the unlikely in sampling alone; the log-probabilities are those of the whole distribution.
        template: whether prompts go through the chat template (a string is then the user's turn); by default, if there is one, which
            a processor has to have.
        truncate: the end of too long prompts that is cut off, ``left`` or ``right``; too long completions then lose their end. What
            is cut is counted and said; an image that a cut would go through is left out whole. None: they are refused.
        contrasts: name -> system turn, under which the same completions are scored too, or a prompt in other words (``contrasts.py``);
            ``blended``: a share of the policy's own likeliest tokens in what it reads, 0.2 by default.
        ablation: how the contrast ``ablated`` replaces images (``how``, ``share``, ``seed``).
        segments: what the fact ``segment`` numbers: ``sentence``, ``clause`` (by punctuation), ``turn`` (of the assistant's), the
            ``constituents`` of a parse, or a function of your own, text -> its segments as ``(start, end)`` in characters.
        thoughts: two texts, ``[<think>, </think>]``: what a completion says from one to the other counts for no method.
        heads: linear ones on hidden states, trained with the rest: ``value``, ``q1``, ``v2``, ``degree``, ... (``heads.py``).
        media: limits of images and videos (``pixels``, ``bytes``, ``frames``, ``animated``, ``urls``).
        turns: several of them in a rollout, an environment's replies between them (``environment``, ``limit``, ``max_turn``, ``seconds``);
            outputs are then the turns that follow a prompt.
        engine: a server that samples (vLLM's): ``url``, ``model``, ``folder``, ``update``.
        memory: what makes it fit, and run faster. dtype: of the whole model; as it is by default. LoRA is float32 in any.
        device: a GPU if there is one. trust_remote_code: run code that comes with the model.

    Errors: UserError for a model that cannot be loaded, or has no tokenizer with what is asked for, and for LoRA beside members.
    """
    if lora is not None and train is not None:
        raise UserError("policy.train: got lora too, takes one of them (train: {language: {rank: 16}} is LoRA in the language model)")
    model, tokenizer = loading.handed_over(model, tokenizer)
    if isinstance(model, (str, Mapping)):
        model, tokenizer = load(model, tokenizer, dtype=dtype, template=template, trust_remote_code=trust_remote_code)
    elif (kind := type_of(dtype)) is not None:
        model.to(kind)
    tokenizer = reader_of(model.config, tokenizer, key="policy.tokenizer", template=template, trust_remote_code=trust_remote_code)
    target = default_device() if device is None else torch.device(device)
    words, processor = parted(tokenizer)
    never = never_said(model, words, processor)
    vision = None if processor is None else Vision(processor, model, frames=frozenset(never), limits=media)
    chat = Chat(words, template=template, system=system, stops=stops_of(model), never=never, vision=vision, tools=tools_of(turns))
    room = Room(chat, context_of(model), max_prompt, max_completion, truncate)
    return TransformersPolicy(
        model, chat, room, lora=lora, train=train, start=start, memory=memory, engine=engine, temperature=temperature, top_p=top_p,
        top_k=top_k, contrasts=contrasts or {}, ablation=ablation, segments=segments, thoughts=thoughts, heads=heads, turns=turns,
        device=target,
    )  # fmt: skip


class TransformersPolicy:
    """See ``transformers``."""

    kind, learns_from, spreads = ADAPTER.kind, ADAPTER.learns_from, "tensor"
    compute_together, kept, revived = tensors.compute_together, replayed.kept, replayed.revived
    log_probs, remember, remembered, digests = step_tables.log_probs, step_tables.remember, step_tables.remembered, step_tables.digests

    def __init__(  # one keyword for each thing that a user may set
        self, model: Any, chat: Chat, room: Room, *, lora: Lora | None, train: Train | None, start: str | None, memory: TextMemory,
        engine: EngineSettings | None, temperature: float, top_p: float, top_k: int, contrasts: Mapping[str, Any], ablation: Ablation,
        segments: Segments, thoughts: Sequence[str] | None, heads: Sequence[str], turns: Turns | None, device: torch.device,
    ):  # fmt: skip
        refuse_numbers(temperature, top_p, top_k)
        refuse_turns(turns, engine, sees=chat.vision is not None)
        self.thoughts = reading.pair_of_marks(thoughts)
        self.model, self.chat, self.room, self.agree, self.temperature = model, chat, room, FirstRow(chat), temperature
        self.contrasts, self.ablation, self.segments, self.rows_at_once = dict(contrasts), ablation, segments, memory.rows_at_once
        model.eval()
        self.sets = sets_of(model, memory, lora=lora, train=train, start=start, device=device)
        self.stored = 0 if memory.storage is None else storage.stored(model, lora=self.sets.lora, engine=engine)
        self.engine = None if engine is None else Engine(engine, chat, model, lora=self.sets.lora)
        self.heads, self.gives, self.together = add_heads(self.sets, model, heads), ADAPTER.gives | set(heads), 1
        example = made_up(model, chat.never, [] if chat.vision is None else chat.vision.example())
        self.fit = fitted = fit(model, shared=memory.shared_prefixes, trained=leaves(self)[:4], example=example)
        self.rounding = ROUNDING.get(next(model.parameters()).dtype, 1e-4)
        for line in fitted.remarks:
            warnings.warn(line, stacklevel=3)
        vocabulary = int(model.get_input_embeddings().weight.shape[0])
        layers = checkpoint_layers(model) if memory.gradient_checkpointing else []
        stops, never = (torch.tensor(ids, dtype=torch.int64, device=device) for ids in (chat.stops, chat.never))
        self.scorer = Scorer(fitted, temperature, max(1, memory.logits_at_once // vocabulary), self.heads, device, never, layers)
        self.drawing = Drawing(temperature, top_p, top_k, never, stops, room.max_completion)
        self._sampled: tuple[list[Any], dict[int, Prompt]] = ([], {})
        self.drawer, self.turns = Drawer(model, fitted, memory.rows_at_once, self.using), introduced(turns, self)

    # Parameters

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def tolerance(self) -> float:
        """Nats that a log-probability may differ by when it is scored again, in the type that blocks run in."""
        return max(self.rounding, ROUNDING.get(self.sets.runs_in, 0.0))

    @property
    def cut(self) -> dict[str, int]:
        """How many prompts, completions, images and videos were cut or left out."""
        return self.room.cut

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""
        return self.sets.trained

    def using(self, name: str) -> AbstractContextManager[None]:
        """A named parameter set, or another model, in place of the current one: ``ref``, ``ema``, ``previous``, ..."""
        return self.sets.using(name)

    def refer(self, name: str, other: Any, examples: Sequence[Any] = ()) -> None:
        """Makes a name stand for another language model, see ``reference_models``."""
        reference_models.refer(self, name, other, examples)

    # Rollout

    @torch.no_grad()
    def sample(
        self, prompts: list[Any], group_size: int, rng: torch.Generator, *, step: int = 0, behaviors: Sequence[Behavior] = (),
        part: slice = EVERY, masking: Masking | None = None,
    ) -> Rollout:  # fmt: skip
        """``group_size`` completions of each prompt, strings or conversations; rows of a prompt stand side by side.

        ``rng`` draws one uniform number for each row and token, so that a row does not depend on ``rows_at_once``. A mixture of
        ``behaviors`` is one of distributions, token by token. Errors: UserError for behaviors and masking where a server draws.
        ``metrics``: ``length`` (tokens), ``cut`` (the part of rows without an end), and how far the
        sampler's log-probabilities are from those of ``old`` (``engine_difference``, nats, mean and largest).
        """
        who = assignment(group_size, behaviors)
        uniform = torch.rand((len(prompts), len(who), self.room.max_completion), generator=rng, dtype=torch.float64)[part].flatten(0, 1)
        own = list(range(len(prompts))[part])
        needed = own if len(own) == len(prompts) else [*own, (own[-1] + 1) % len(prompts)]  # that its last rows may be compared behind
        if prompts is not self._sampled[0]:  # the same list again: another part of one rollout
            self._sampled = prompts, {}
        known = self._sampled[1]
        known.update({number: self.room.prompt(prompts[number], number) for number in needed if number not in known})
        encoded, sources = [known[number] for number in needed], [prompts[number] for number in needed]
        self.agree(prompts[0])
        which, who = torch.arange(len(own)).repeat_interleave(len(who)), who.repeat(len(own))

        def draw(asked: Sequence[Prompt], of: Tensor, rows: Tensor, numbers: Tensor) -> Drawn:
            if self.engine is not None:
                seeds = (uniform[::group_size, 0] * 2**31).long().tolist()
                return self.engine.draw(asked[: len(own)], prompts[part], of, seeds, self.drawing)
            extras, drawing = inputs_of(self.chat.vision, asked), self.drawing._replace(most=numbers.shape[1], masking=masking)
            return self.drawer.by_behaviors([prompt.ids for prompt in asked], of, numbers, drawing, who[rows], behaviors, extras)

        if self.engine is not None:
            if behaviors or masking is not None:
                what = f"method's {behaviors[0].name} draws rows too" if behaviors else "method masks words"
                raise UserError(f"policy.engine: the {what}, which a server cannot; takes no engine")
            self.engine.refresh(self.model)
        drawn, real, outputs, counted, shown = spoken(self.turns, self.chat, encoded, sources, which, uniform, draw)
        group, real = torch.tensor(own)[which], reading.said(real, drawn.tokens, drawn.lengths, self.thoughts, self.chat.words)
        rollout = self.table(encoded, which, drawn.tokens, drawn.lengths, real, sources=sources, outputs=outputs, group=group)
        allowed = drawn.allowed if drawn.allowed.shape[-1] else None
        rollout.held = replace(rollout.held, cut=drawn.cut, allowed=allowed, shown=shown)
        rollout.log_probs, rollout.drawn = self.log_probs(rollout, self.rows_at_once), drawn_by(who, behaviors)
        differences = (drawn.log_probs - rollout.log_probs)[real & (who == 0).unsqueeze(1)].abs()
        for behavior in (behavior for behavior in behaviors if behavior.greedy):
            rollout.mask &= ~rollout.drawn[behavior.name].unsqueeze(1)
        rollout.metrics.update(length=float(real.sum(1).double().mean()), cut=float(drawn.cut.double().mean()), **counted)
        if not bool(differences.isnan().any()):
            rollout.metrics.update(engine_difference=float(differences.mean()), engine_difference_max=float(differences.max()))
        return rollout

    @torch.no_grad()
    def encode(self, prompts: list[Any], outputs: Any, group: Tensor, rng: torch.Generator, *, part: slice = EVERY) -> Rollout:
        """Given completions, strings or the turns that follow, as a rollout. ``log_probs`` are NaN: nobody sampled these rows.

        Errors: RefusedRow for an empty completion, one with an id that is never said, media that cannot be read, and for prompts and
        completions that are too long, unless ``truncate`` says what to cut.
        """
        rows, encoded, sources, which, following = given(
            prompts, outputs, part, lambda prompt, output: self.room.row(self.chat.row(prompt, output), prompt)
        )
        self.agree(prompts[part][0], outputs[part][0])
        width = max(len(row.completion) for row in rows)
        tokens, mask = torch.zeros((len(rows), width), dtype=torch.int64), torch.zeros((len(rows), width), dtype=torch.bool)
        for place, row in enumerate(rows):
            tokens[place, : len(row.completion)] = torch.tensor(row.completion)
            mask[place, : len(row.trained)] = torch.tensor(row.trained)
        lengths = torch.tensor([len(row.completion) for row in rows])
        mask = reading.said(mask, tokens, lengths, self.thoughts, self.chat.words)
        rollout = self.table(encoded, which, tokens, lengths, mask, sources=sources, outputs=list(outputs[part]), group=group[part])
        rollout.held = replace(rollout.held, following=following, shown=tuple(row.shown for row in rows))
        return rollout

    def table(
        self, encoded: Sequence[Prompt], which: Tensor, tokens: Tensor, lengths: Tensor, mask: Tensor, *,
        sources: Sequence[Any] | None = None, outputs: list[Any] | None = None, group: Tensor | None = None,
    ) -> Rollout:  # fmt: skip
        """A rollout from token ids, which is what ``sample`` and ``encode`` come to.

        encoded: P prompts, as ``chat.prompt`` reads them. which: ``[B]`` the prompt of each row. tokens: ``[B, T]`` completions, filled up
        with anything. lengths: ``[B]`` tokens of each. mask: ``[B, T]`` tokens that count. group: ``[B]``, by default rows of one prompt.
        sources: what each of the P was made of, its text by default.
        """
        sources = [self.chat.text(prompt.ids) for prompt in encoded] if sources is None else sources
        if outputs is None:
            outputs = [self.chat.text(line[:length]) for line, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        return Rollout(
            prompts=[sources[place] for place in which.tolist()],
            outputs=outputs,
            log_probs=torch.full(tokens.shape, torch.nan, dtype=torch.float64),
            mask=mask,
            group=which.clone() if group is None else group,
            spans=partial(reading.written, tokens, lengths, self.chat.text),
            held=Completions.of_rows(self.chat.vision, encoded, sources, which, tokens, lengths),
        )

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Place -> why, of prompts that tokenizer, template or processor refuse, or that are too long."""
        return self.room.refusals(prompts)

    @torch.no_grad()
    def generate(self, prompts: list[Any], seeds: list[int], **call: Any) -> list[Any]:
        """Completions as a user gets them, one seed for each prompt.

        call: ``temperature``, ``top_p``, ``top_k``, ``max_completion``; ``hidden_media``, the share of the images' and videos' tokens that
        the model cannot attend to while it answers (``hidden_media.py``).
        """
        return self.traced(prompts, seeds, **call).outputs  # type: ignore[no-any-return]

    @torch.no_grad()
    def traced(self, prompts: list[Any], seeds: list[int], **call: Any) -> Rollout:
        """What ``generate`` gives, as rows that can be scored, behind all of their media; ``held.cut``: those that came to no end."""
        if odd := sorted(call.keys() - {*CALL}):
            raise UserError(f"call.{odd[0]}: takes {', '.join(CALL)}")
        share = float(call.pop("hidden_media", 0.0))
        drawing = self.drawing._replace(**{{"max_completion": "most"}.get(key, key): value for key, value in call.items()})
        encoded = [self.room.prompt(prompt, number) for number, prompt in enumerate(prompts)]
        rngs = (torch.Generator().manual_seed(seed) for seed in seeds)
        uniform = torch.stack([torch.rand(drawing.most, generator=rng, dtype=torch.float64) for rng in rngs])

        def draw(asked: Sequence[Prompt], of: Tensor, rows: Tensor, numbers: Tensor) -> Drawn:
            vision, own = self.chat.vision, [seeds[row] for row in rows.tolist()]
            hidden = [] if vision is None or not share else hidden_media(asked, share, own, vision.placeholders)
            manner, ids = drawing._replace(most=numbers.shape[1]), [prompt.ids for prompt in asked]
            return self.drawer(ids, of, numbers, manner, extras=inputs_of(vision, asked), hidden=hidden)

        drawn, real, outputs, _, shown = spoken(self.turns, self.chat, encoded, prompts, which := torch.arange(len(prompts)), uniform, draw)
        rollout = self.table(encoded, which, drawn.tokens, drawn.lengths, real, sources=prompts, outputs=outputs)
        return replace(rollout, held=replace(rollout.held, cut=drawn.cut, shown=shown))

    # Scores

    def steps(self, rollout: Rollout, rows: Tensor, columns: Tensor | None = None, needs: frozenset[Need] = frozenset()) -> Steps:
        """The table of some rows, and of some tokens (all, by default), with gradient.

        ``needs`` of ``refs``, ``kls``, ``reverse_kls`` and ``rank`` (of references given to ``remember``; all but the first over the whole
        vocabulary), ``entropy``, ``collision``, ``topk_entropy``, ``topk_mass``, ``activation``, the heads, ``contrast:NAME``
        (``contrasts.others``), ``changed`` (by marks or words), ``phrase`` (by words, of pairs) and ``segment`` fill those tables.
        """
        columns = torch.arange(rollout.mask.shape[1]) if columns is None else columns
        steps = steps_of(self, rollout, rows, columns, needs)
        facts = reading.facts(rollout, rows, kinds(needs), self.segments, self.chat.text)
        facts = {name: table[:, columns].double() for name, table in facts.items()}
        contrasts = {name: self._contrast(rollout, rows, columns, name) for name in named("contrast", needs)}
        return replace(steps, facts={**facts, **steps.facts}, contrasts=contrasts)

    def scored(
        self, rollout: Rollout, rows: Tensor, cells: Tensor, *, numbers: frozenset[Need] = frozenset(), references: Sequence[str] = (),
        behind: Others | None = None,
    ) -> dict[Need, Tensor]:  # fmt: skip
        """Tables of some rows, ``[R, T]``; behind other prompts, where they are given."""
        of, using = sequences(rollout.held, rows, behind), partial(reference_models.running, self)
        tables = self.scorer(of, cells, numbers=numbers - {DEGREE}, references=references, using=using)
        if DEGREE in numbers:
            tables[DEGREE] = degrees(self.scorer, of, rollout.mask[rows], rollout.held.refs["ref"][rows])
        return tables

    def _contrast(self, rollout: Rollout, rows: Tensor, columns: Tensor, name: str) -> Steps:
        """The same completions under another condition: behind other prompts, or read ``blended``."""
        if name == "blended":
            share, cells = float(self.contrasts.get("blended", 0.2)), cells_of(rollout, rows, columns)
            log_probs = blended(self.scorer, self.model.get_input_embeddings(), sequences(rollout.held, rows), cells, share=share)
            return Steps(log_probs=log_probs[:, columns], mask=rollout.mask[rows][:, columns], kind=ADAPTER.kind)
        of = rows, rollout.group[rows]
        behind = others(rollout.held, name, rows=of, systems=self.contrasts, ablation=self.ablation, room=self.room)
        return steps_behind(self, rollout, rows, columns, behind)
