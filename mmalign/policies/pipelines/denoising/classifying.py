"""A small classifier on a denoiser's features, that tells given data from a policy's samples, both noised alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmalign.needs import REALISM, REALISM_OF_GIVEN
from mmalign.policies.pipelines.calls.interception import FOR_ITS_SHAPE
from mmalign.policies.pipelines.denoising.denoising_errors import DenoisingErrors, Noised, Probed
from mmalign.policies.pipelines.rollouts.trajectories import Behind
from mmalign.types import Level, Need, Rollout, Steps, UserError

WIDTH = 128  # of the hidden layer


def middle(denoiser: nn.Module) -> nn.Module:
    """The module whose outputs are a denoiser's features: its ``mid_block``, or the middle one of its blocks.

    Its blocks are its ``ModuleList`` with the most parameters. Errors: UserError for a denoiser without either.
    """
    own = getattr(denoiser, "mid_block", None)
    if isinstance(own, nn.Module):
        return own
    rows = [module for module in denoiser.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not rows:
        raise UserError(f"method: {type(denoiser).__name__} has no middle block whose features a classifier could read")
    blocks = max(rows, key=lambda row: sum(p.numel() for p in row.parameters()))
    return blocks[(len(blocks) - 1) // 2]


@contextmanager
def features(denoisers: Mapping[str, nn.Module]) -> Iterator[list[list[Tensor]]]:
    """While the block lasts, what the middle of each call of a denoiser says is added to the list that is yielded.

    An entry is a call, and holds each stream of features as ``[R, positions, width]``: of images, and of text where a block has both.
    """
    seen = list[list[Tensor]]()

    def note(module: nn.Module, arguments: object, output: object) -> None:
        if FOR_ITS_SHAPE.get():
            return
        leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim >= 3]
        streams = [leaf if leaf.ndim == 3 else leaf.flatten(2).transpose(1, 2) for leaf in leaves]
        seen.append([stream for stream in streams if len(stream) == len(streams[0])])

    hooks = [middle(denoiser).register_forward_hook(note) for denoiser in denoisers.values()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def by_row(seen: Sequence[Sequence[Tensor]], rows: int) -> list[list[Tensor]]:
    """The streams of each call, ``[r, positions, width]``, r of all ``rows`` in their order; a denoiser may see frames as rows.

    Errors: UserError where they are of no such rows.
    """
    count = sum(len(call[0]) for call in seen if call)
    if not count or count % rows:
        raise UserError(f"method: the middle block of the denoiser speaks of {count} rows in place of {rows}, so that no row has features")
    return [[stream.unflatten(0, (-1, count // rows)).flatten(1, 2) for stream in call] for call in seen if call]


class Classifier(nn.Module):
    """Features -> a logit of each row: a hidden layer at each position, their mean, and a line. widths: of the streams."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.streams = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, WIDTH), nn.SiLU()) for width in widths)
        self.last = nn.Linear(WIDTH * len(widths), 1)

    def forward(self, streams: Sequence[Tensor]) -> Tensor:
        """streams: ``[R, positions, width]`` each -> ``[R]``."""
        pooled = [read(stream.float()).mean(1) for read, stream in zip(self.streams, streams, strict=True)]
        return self.last(torch.cat(pooled, 1)).squeeze(1)  # type: ignore[no-any-return]


class Classifying(DenoisingErrors):
    """The errors of a denoiser, and beside them how probably each row, noised as it is, is given data and no sample: a logit.

    Its parameters are the denoiser's and the classifier's, so that the features learn, too. Terms: ``realism`` of the samples, and
    ``realism_of_given`` of the rows of ``Noised.given``, at the same levels, with the same noise.
    """

    gives = DenoisingErrors.gives | {"realism", "realism_of_given"}

    def __init__(self, of: Probed):
        super().__init__(of)
        with torch.no_grad(), features(of.denoisers) as seen:  # a first call tells whether two rows go at once, a second one the widths
            rows = self._any_rows(2)
            self.predicted(*rows)
            seen.clear()
            self.predicted(*rows)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.classifier = Classifier([stream.shape[2] for stream in by_row(seen, 2)[0]]).to(rows[1].device)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The denoiser's that are trained, and the classifier's."""
        return {**self.of.parameters(), **{f"classifier.{name}": value for name, value in self.classifier.named_parameters()}}

    def logits(self, prompts: list[str], x: Tensor, timesteps: Tensor, levels: Level, behind: Behind | None = None) -> Tensor:
        """``[R]`` of noised rows, with a graph from ``x`` on. behind: as of ``Noised``."""
        with features(self.of.denoisers) as seen:
            self.predicted(prompts, x, timesteps, levels, behind)
        return self._told(seen, len(x))

    def _told(self, seen: Sequence[Sequence[Tensor]], rows: int) -> Tensor:
        return torch.cat([self.classifier(streams) for streams in by_row(seen, rows)])

    def steps(self, rollout: Rollout, rows: Tensor, columns: Tensor | None = None, needs: frozenset[Need] = frozenset()) -> Steps:
        """As of ``DenoisingErrors``, of rows with one draw; with the terms."""
        noised: Noised = rollout.held
        with features(self.of.denoisers) as seen:
            steps = super().steps(rollout, rows, columns, needs - {REALISM, REALISM_OF_GIVEN})
        if noised.given is None:
            raise UserError("records: missing; this method tells samples from given images or videos, and has none")
        own, behind = self._told(seen, len(rows)), None if noised.given_behind is None else noised.given_behind.take(rows)
        prompts, at = [noised.given_prompts[row] for row in rows.tolist()], self.at_level(noised, rows, 0, noised.given[rows])
        given = self.logits(prompts, *at, behind)
        terms = {name: value.double().cpu()[:, None] for name, value in (("realism", own), ("realism_of_given", given))}
        return replace(steps, terms={**steps.terms, **terms})

    def _any_rows(self, count: int) -> tuple[list[str], Tensor, Tensor, Level]:
        """Rows of zeros at the first level of the training schedule."""
        first = self.of.first()
        x = torch.zeros((count, *first.shape), dtype=first.dtype, device=self.of.caller.device())
        levels = Level(*(value[:1].to(x).expand(count) for value in self.schedule.levels))
        return [self.of.caller.example] * count, x, self.schedule.timesteps[:1].to(x.device).expand(count), levels
