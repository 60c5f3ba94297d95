"""A model that writes images as tokens of a codebook (Janus, Emu3) as a policy whose outputs are images.

A step is a code of the image, in the order in which the model writes them; every method for tokens trains it, with every reward of
images. Images are decoded, and given ones encoded, by the model's own codebook, which is never trained. Log-probabilities are over the
codes alone, at ``temperature``, with ``guidance`` as the model's own ``generate`` has it (``u + scale (c - u)`` on logits, c behind the
prompt and u behind none): the distribution that is sampled is scored and trained, unless ``trained`` says otherwise. ``top_p`` and
``top_k`` are not in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmalign.arguments.ranges import Count, Fraction, Natural, NotNegative, Positive, Proportion
from mmalign.conversations import has_media
from mmalign.needs import named
from mmalign.policies.language.codes.drawing import Images, draw, draw_forced
from mmalign.policies.language.codes.families import layout_of
from mmalign.policies.language.codes.forcing import lesson_of, noised
from mmalign.policies.language.codes.guided import GuidedFit
from mmalign.policies.language.codes.pixels import Pixels
from mmalign.policies.language.drawing.drawing import CURRENT, Drawing, Voice
from mmalign.policies.language.models.loading import refuse_numbers
from mmalign.policies.language.models.logits import COMPARED, DISTRIBUTION, LOG_PROBS
from mmalign.policies.language.models.prefixes import Sequences
from mmalign.policies.language.prompts.encoded_prompts import Prompt
from mmalign.policies.language.scoring import reference_models, step_tables
from mmalign.policies.language.scoring.completions import Completions
from mmalign.policies.language.scoring.contrasts import Others, others, sequences
from mmalign.policies.language.scoring.scorer import Scorer
from mmalign.policies.language.scoring.step_tables import cells_of, steps_behind, steps_of
from mmalign.policies.transformers import TransformersPolicy
from mmalign.records import RefusedRow
from mmalign.samplers.assignment import assignment, drawn_by
from mmalign.types import EVERY, Adapter, Behavior, Need, Rollout, Steps, UserError

__all__ = ["ImageTokensPolicy", "image_tokens"]

LOSSY = 0.05  # root-mean-square of pixels: 26 dB
CALL = ("temperature", "top_p", "top_k", "guidance")
ADAPTER = Adapter(
    "token",
    frozenset({"old", "refs", *DISTRIBUTION, *COMPARED, "contrast", "behaviors", "recall", "traced"}),
    call=lambda arguments: CALL,
    learns_from="images",
)


def image_tokens(  # one keyword for each thing that a user may set
    of: TransformersPolicy, *, guidance: NotNegative = 1.0, trained: Literal["guided", "conditional"] = "guided",
    size: Sequence[Count] | None = None, temperature: Positive = 1.0, top_p: Fraction = 1.0, top_k: Natural = 0,
    teacher_forcing: Proportion | None = None,
) -> ImageTokensPolicy:  # fmt: skip
    """A policy that makes images, around a model of ``transformers`` that writes them as tokens: Janus, Janus-Pro, Emu3.

    Args:
        of: the model, and what of it is trained (``lora``, ``train``, or all but its codebook). What it says of sampling is not used.
        guidance: scale of classifier-free guidance in sampling; 1: none. Janus' own code has 5, Emu3's 3.
        trained: whose log-probabilities are scored and trained: ``guided``, those of the distribution that is sampled, at the cost of a
            second pass without the prompt; ``conditional``, those behind the prompt, as in T2I-R1, which samples with guidance and trains
            without: ratios still begin at 1, and the rows are another policy's.
        size: height and width of the images, of a model that makes several sizes (Emu3).
        temperature: of the distribution that is sampled, scored and trained.
        top_p, top_k: cut off the unlikely in sampling alone; the log-probabilities are those of the whole distribution.
        teacher_forcing: prompts hold an image, and each code of a rollout is drawn behind the codes of that image and not behind those
            drawn before it (VA-pi, with the reward ``reconstruction``); this share of what is read is replaced by random codes, 0.5 in
            VA-pi's code. One pass makes all codes. None: images are drawn freely.

    Errors: UserError for a model that makes no images, a size that it does not make, guidance where it has no words for no prompt.
    """
    if not isinstance(of, TransformersPolicy):
        raise UserError(f"policy.of: got a {type(of).__name__}, takes one that transformers makes")
    if of.engine is not None:
        raise UserError("policy.of.engine: a server writes text alone; takes no engine")
    if trained not in ("guided", "conditional"):
        raise UserError(f"policy.trained: got {trained!r}, takes 'guided' or 'conditional'")
    if size is not None and (len(size) != 2 or not all(isinstance(side, int) for side in size)):
        raise UserError(f"policy.size: got {size!r}, takes [height, width]")
    if teacher_forcing is not None and trained == "conditional":
        raise UserError("policy.teacher_forcing: got trained: conditional too, and a pass draws from what it scores; takes trained: guided")
    refuse_numbers(temperature, top_p, top_k)
    drawing = Drawing(temperature, top_p, top_k, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 0)
    return ImageTokensPolicy(of, guidance=guidance, trained=trained, size=size, drawing=drawing, teacher_forcing=teacher_forcing)


class ImageTokensPolicy:
    """See ``image_tokens``. Parameters and their sets are those of the policy inside."""

    kind = ADAPTER.kind
    learns_from = ADAPTER.learns_from
    gives = ADAPTER.gives
    log_probs, remember, remembered, digests = step_tables.log_probs, step_tables.remember, step_tables.remembered, step_tables.digests

    def __init__(
        self, of: TransformersPolicy, *, guidance: float, trained: str, size: Sequence[int] | None, drawing: Drawing,
        teacher_forcing: float | None = None,
    ):  # fmt: skip
        self.of, self.sets, self.rows_at_once, self.guidance = of, of.sets, of.rows_at_once, guidance
        self.layout = layout_of(of.model, of.chat, None if size is None else (size[0], size[1]))
        if guidance != 1:
            self.layout.unprompted([])
        length = len(self.layout.behind([])) + int(self.layout.places[-1]) + 1
        self.room = replace(of.room, max_completion=length)
        self._told = False
        self.pixels = Pixels(self.layout, of.chat.vision, of.device)
        never, self.teacher_forcing = drawing.never.to(of.device), teacher_forcing
        self.drawing = drawing._replace(never=never, most=len(self.layout.places))
        self.fit = GuidedFit(self.layout, guidance if trained == "guided" else 1.0, of.fit.shared, of.device)
        words = int(of.model.get_input_embeddings().weight.shape[0])
        at_once = max(1, of.scorer.at_once * words // self.layout.codes)
        self.scorer = Scorer(self.fit, drawing.temperature, at_once, {}, of.device, never, of.scorer.layers)

    # Parameters

    @property
    def tolerance(self) -> float:
        """Nats that a log-probability may differ by when it is scored again."""
        return self.of.tolerance * max(1.0, abs(self.guidance))

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""
        return self.sets.trained

    def using(self, name: str) -> AbstractContextManager[None]:
        """A named parameter set in place of the current one: ``ref``, ``ema``, ``previous``, ..."""
        return self.sets.using(name)

    def refer(self, name: str, other: Any, examples: Sequence[Any] = ()) -> None:
        """Errors: UserError: codes are compared under sets of the own parameters."""
        raise UserError(f"references.{name}.policy: got another model, and codes mean what a codebook says; takes a set of this one's")

    # Rollout

    @torch.no_grad()
    def sample(
        self, prompts: list[Any], group_size: int, rng: torch.Generator, *, step: int = 0, behaviors: Sequence[Behavior] = (),
        part: slice = EVERY,
    ) -> Rollout:  # fmt: skip
        """``group_size`` images of each prompt; rows of a prompt stand side by side.

        ``rng`` draws one uniform number for each row and code, so that a row does not depend on ``rows_at_once``. ``metrics``: how far
        log-probabilities as they were drawn are from those of ``old`` (``engine_difference``, nats, mean and largest), where both are of
        one distribution.
        """
        if self.teacher_forcing is not None:
            return self._taught(prompts, group_size, rng, behaviors, part)
        who = assignment(group_size, behaviors)
        uniform = torch.rand((len(prompts), len(who), self.drawing.most), generator=rng, dtype=torch.float64)[part].flatten(0, 1)
        own = list(range(len(prompts))[part])
        needed = own if len(own) == len(prompts) else [*own, (own[-1] + 1) % len(prompts)]  # that its last rows may be compared behind
        encoded = [self._prompt(prompts[number], number) for number in needed]
        which, who = torch.arange(len(own)).repeat_interleave(len(who)), who.repeat(len(own))
        drawn = self._drawn(encoded, which, uniform, who, behaviors)
        rollout = self._table(encoded, [prompts[number] for number in needed], which, drawn.codes, torch.tensor(own)[which])
        rollout.log_probs, rollout.drawn = self.log_probs(rollout, self.rows_at_once), drawn_by(who, behaviors)
        for behavior in (behavior for behavior in behaviors if behavior.greedy):
            rollout.mask &= ~rollout.drawn[behavior.name].unsqueeze(1)
        if self.guidance == self.fit.scale:
            differences = (drawn.log_probs - rollout.log_probs)[who == 0].abs()
            rollout.metrics.update(engine_difference=float(differences.mean()), engine_difference_max=float(differences.max()))
        return rollout

    def _taught(self, prompts: list[Any], group_size: int, rng: torch.Generator, behaviors: Sequence[Behavior], part: slice) -> Rollout:
        """Rows whose codes are drawn behind those of the images that prompts hold, ``teacher_forcing`` of these replaced.

        ``same_codes``: the share of codes that are the images' own. Errors: UserError for behaviors, and as of ``forcing.lesson_of``.
        """
        if behaviors:
            raise UserError(f"policy.teacher_forcing: the method's {behaviors[0].name} draws rows too; takes one that lets nobody else")
        shape = (len(prompts), group_size, self.drawing.most)
        uniform, places = (torch.rand(shape, generator=rng, dtype=torch.float64)[part].flatten(0, 1) for _ in range(2))
        others = torch.randint(self.layout.codes, shape, generator=rng)[part].flatten(0, 1)
        own = list(range(len(prompts))[part])
        lessons = [lesson_of(prompts[number], number, self.pixels) for number in own]
        encoded = [self._prompt(lesson.prompt, number) for lesson, number in zip(lessons, own, strict=True)]
        which = torch.arange(len(own)).repeat_interleave(group_size)
        true = torch.cat([self.pixels.encode(lesson.image.unsqueeze(0)) for lesson in lessons])
        read = noised(true[which], float(self.teacher_forcing or 0), places, others)
        ids, lengths = [torch.tensor(prompt.ids) for prompt in encoded], torch.full((len(which),), self.drawing.most)
        parts = [
            draw_forced(self.fit, Sequences(ids, which[rows], read[rows], lengths[rows], read=read[rows]), uniform[rows], self.drawing)
            for rows in torch.arange(len(which)).split(self.rows_at_once)
        ]
        codes = torch.cat([drawn.codes for drawn in parts])
        rollout = self._table(encoded, [prompts[number] for number in own], which, codes, torch.tensor(own)[which])
        rollout.held = replace(rollout.held, read=read, truth=true[which])
        rollout.log_probs = self.log_probs(rollout, self.rows_at_once)
        differences = (torch.cat([drawn.log_probs for drawn in parts]) - rollout.log_probs).abs()
        rollout.metrics.update(engine_difference=float(differences.mean()), engine_difference_max=float(differences.max()))
        rollout.metrics["same_codes"] = float((codes == true[which]).double().mean())
        return rollout

    def _prompt(self, prompt: Any, number: int) -> Prompt:
        """What an image begins behind. Errors: UserError for a prompt with media, and one that is too long."""
        if has_media(prompt):
            raise UserError(f"prompt {number}: holds an image or a video, and images are made of words; takes text")
        read = self.room.prompt(prompt, number)
        return replace(read, ids=tuple(self.layout.behind(list(read.ids))), types={})

    def _drawn(self, encoded: Sequence[Prompt], which: Tensor, uniform: Tensor, who: Tensor, behaviors: Sequence[Behavior]) -> Images:
        """Codes of rows that ``who [R]`` draws: 0 the current policy, k the k-th behavior."""
        codes = torch.zeros(uniform.shape, dtype=torch.int64)
        log_probs = torch.full(uniform.shape, torch.nan, dtype=torch.float64)
        for number, behavior in enumerate([None, *behaviors]):
            shares = CURRENT if behavior is None else behavior.shares
            manner = self.drawing._replace(temperature=0.0) if behavior is not None and behavior.greedy else self.drawing
            for rows in torch.nonzero(who == number).flatten().split(self.rows_at_once):
                drawn = self._images(encoded, which[rows], uniform[rows], manner, self.guidance, shares)
                codes[rows], log_probs[rows] = drawn.codes, drawn.log_probs
        return Images(codes, log_probs)

    def _images(
        self, encoded: Sequence[Prompt], which: Tensor, uniform: Tensor, manner: Drawing, scale: float,
        shares: Mapping[str, float] = CURRENT,
    ) -> Images:  # fmt: skip
        """Codes of some rows, in one batch."""
        used, local = which.unique(return_inverse=True)
        prompts = [torch.tensor(encoded[place].ids) for place in used.tolist()]
        voices = [Voice(share, partial(self.using, name)) for name, share in shares.items()]
        local, uniform = local.to(self.of.device), uniform.to(self.of.device)
        drawn = draw(self.layout, prompts, local, uniform, manner, scale, voices=voices)
        return Images(drawn.codes.cpu(), drawn.log_probs.cpu())

    @torch.no_grad()
    def encode(self, prompts: list[Any], outputs: Any, group: Tensor, rng: torch.Generator, *, part: slice = EVERY) -> Rollout:
        """Given images, ``[C, H, W]`` in 0..1 each, as a rollout of the codes that the model's own codebook reads in them.

        ``outputs`` of the rollout are the given images, ``metrics`` how far they are from what their codes decode to
        (``codebook_error``, root-mean-square over pixels), which is said once where it is much. ``log_probs`` are NaN: nobody sampled
        these rows. Errors: RefusedRow for an image of another size, and for prompts as in ``sample``.
        """
        rows = range(len(prompts))[part]
        encoded = [self._refusing(row, lambda row=row: self._prompt(prompts[row], row)) for row in rows]
        images = torch.stack([self._refusing(row, lambda row=row: self.pixels.fitting(outputs[row])) for row in rows])
        codes = torch.cat([self.pixels.encode(some) for some in images.split(self.rows_at_once)])
        rollout = self._table(encoded, list(prompts[part]), torch.arange(len(rows)), codes, group[part], images=images)
        decoded = torch.cat([self.pixels.decode(some) for some in codes.split(self.rows_at_once)])
        error = rollout.metrics["codebook_error"] = float((decoded - images).square().mean().sqrt())
        if error > LOSSY and not self._told:
            self._told = True
            what = f"given images come back from its codes {error:.2g} apart (root-mean-square of pixels in 0..1)"
            warnings.warn(f"policy.of.model: {what}, and it is their codes that are trained on", stacklevel=3)
        return rollout

    def _refusing(self, row: int, read: Any) -> Any:
        try:
            return read()
        except UserError as error:
            raise RefusedRow(row, str(error).removeprefix(f"prompt {row}: ")) from error

    def _table(
        self, encoded: Sequence[Prompt], sources: Sequence[Any], which: Tensor, codes: Tensor, group: Tensor, *,
        images: Tensor | None = None,
    ) -> Rollout:  # fmt: skip
        """A rollout from codes ``[B, T]``, decoded where there are no images."""
        if images is None:
            images = torch.cat([self.pixels.decode(some) for some in codes.split(self.rows_at_once)])
        lengths = torch.full((len(codes),), codes.shape[1])
        return Rollout(
            prompts=[sources[place] for place in which.tolist()],
            outputs=images,
            log_probs=torch.full(codes.shape, torch.nan, dtype=torch.float64),
            mask=torch.ones(codes.shape, dtype=torch.bool),
            group=group,
            held=Completions.of_rows(None, encoded, sources, which, codes, lengths),
        )

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Place -> why, of prompts that hold media, that the tokenizer or the template refuses, or that are too long."""
        if self.teacher_forcing is None:
            media = {place: "holds an image or a video, takes text" for place, prompt in enumerate(prompts) if has_media(prompt)}
            return self.room.refusals(prompts) | media
        why, asked = dict[int, str](), list[Any]()
        for place, prompt in enumerate(prompts):
            try:
                asked.append(lesson_of(prompt, place, self.pixels).prompt if has_media(prompt) else prompt)  # evaluations ask with words
            except UserError as error:
                asked.append("")
                why[place] = str(error).removeprefix(f"prompt {place}: ")
        return self.room.refusals(asked) | why

    def manner(self, call: Mapping[str, Any]) -> tuple[float, Drawing]:
        """Guidance, and how codes are drawn, as a user's call has it. Errors: UserError for another word, and as of guidance."""
        if odd := sorted(call.keys() - {*CALL}):
            raise UserError(f"call.{odd[0]}: takes {', '.join(CALL)}")
        scale = float(call.get("guidance", self.guidance))
        if scale != 1:
            self.layout.unprompted([])
        return scale, self.drawing._replace(**{name: value for name, value in call.items() if name != "guidance"})

    @torch.no_grad()
    def generate(self, prompts: list[Any], seeds: list[int], **call: Any) -> Tensor:
        """Images as a user gets them, one seed for each prompt.

        call: ``temperature`` (0: the likeliest codes), ``top_p``, ``top_k``, ``guidance``.
        """
        return self.traced(prompts, seeds, **call).outputs  # type: ignore[no-any-return]

    @torch.no_grad()
    def traced(self, prompts: list[Any], seeds: list[int], **call: Any) -> Rollout:
        """What ``generate`` gives, as rows of codes that can be scored, with the policy's own ``guidance`` whatever ``call`` has."""
        scale, manner = self.manner(call)
        if self.teacher_forcing is not None:  # what a prompt shows is not shown to whoever draws freely
            prompts = [
                lesson_of(prompt, number, self.pixels).prompt if has_media(prompt) else prompt for number, prompt in enumerate(prompts)
            ]
        encoded = [self._prompt(prompt, number) for number, prompt in enumerate(prompts)]
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
        uniform = torch.stack([torch.rand(manner.most, generator=rng, dtype=torch.float64) for rng in rngs])
        parts = torch.arange(len(prompts)).split(self.rows_at_once)
        codes = torch.cat([self._images(encoded, rows, uniform[rows], manner, scale).codes for rows in parts])
        return self._table(encoded, prompts, torch.arange(len(prompts)), codes, torch.arange(len(prompts)))

    # Scores

    def steps(self, rollout: Rollout, rows: Tensor, columns: Tensor | None = None, needs: frozenset[Need] = frozenset()) -> Steps:
        """The table of some rows, and of some codes (all, by default), with gradient.

        ``needs`` of ``refs``, ``kls``, ``reverse_kls`` (the last two over the whole codebook), ``entropy``, ``collision`` and
        ``contrast:mismatched`` (behind another row's prompt) fill those tables, and ``contrast:true`` that of the codes of the image that
        a prompt holds, in place of those that were drawn, under ``teacher_forcing``.
        """
        columns = torch.arange(rollout.mask.shape[1]) if columns is None else columns
        steps = steps_of(self, rollout, rows, columns, needs)
        return replace(steps, contrasts={name: self._contrast(rollout, rows, columns, name) for name in named("contrast", needs)})

    def _contrast(self, rollout: Rollout, rows: Tensor, columns: Tensor, name: str) -> Steps:
        """The same codes behind other prompts; or the true codes behind the same ones, with gradient."""
        if name != "true":
            behind = others(rollout.held, name, rows=(rows, rollout.group[rows]), systems={}, ablation=self.of.ablation, room=self.room)
            return steps_behind(self, rollout, rows, columns, behind)
        if rollout.held.truth is None:
            raise UserError("contrast true: rows are drawn freely, behind no image; takes policy.teacher_forcing")
        taught = replace(rollout, held=replace(rollout.held, tokens=rollout.held.truth))
        log_probs = self.scored(taught, rows, cells_of(rollout, rows, columns))[LOG_PROBS][:, columns]
        return Steps(log_probs=log_probs, mask=rollout.mask[rows][:, columns], kind=ADAPTER.kind)

    def scored(
        self, rollout: Rollout, rows: Tensor, cells: Tensor, *, numbers: frozenset[Need] = frozenset(), references: Sequence[str] = (),
        behind: Others | None = None,
    ) -> dict[Need, Tensor]:  # fmt: skip
        """Tables of some rows, ``[R, T]``; behind other prompts, where they are given."""
        of, using = sequences(rollout.held, rows, behind), partial(reference_models.running, self)
        return self.scorer(of, cells, numbers=numbers, references=references, using=using)
