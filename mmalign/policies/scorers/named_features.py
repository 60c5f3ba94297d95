"""Numbers that somebody can name as the reader of a reward model: what rewards say of an output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.arguments.ranges import Finite
from mmalign.arguments.reads import columns_read
from mmalign.policies.parameters import ParameterSets
from mmalign.records import RefusedRow
from mmalign.types import EVERY, Rollout, UserError

__all__ = ["NamedFeatures", "named_features"]


def named_features(*, rewards: Mapping[str, Callable[..., Any]], scales: dict[str, list[Finite]] | None = None) -> NamedFeatures:
    """What rewards say of an output, as the features of a reward model: knowledge of a domain in place of a large model and many labels.

    Any rewards, of outputs of any kind: lengths, overlap with the prompt, a judge's marks, scores of other reward models. Nothing of
    them is trained; with the head ``mlp`` on top some hundred comparisons may be enough. Features stand in the order of their names.

    Args:
        rewards: name -> reward, that answers one number for an output, and reads no columns of the prompts.
        scales: name -> ``[centre, scale]``: its feature is ``(reward - centre) / scale``; 0 and 1 where it is not said.

    An output of which one of them has no score cannot be read: its record is put aside, and as a reward the run has no score of it.

    Paper: Leveraging Domain Knowledge for Efficient Reward Modelling in RLHF, arXiv 2402.15473 (recalled: seven features of a summary of
    opinions, a small network, Bradley-Terry). With one reward ``score_regression(target="label")`` makes a classifier of it, such as that
    of simple against original texts of health information (arXiv 2401.15043).

    Errors: UserError without a reward, for one that reads columns or answers parts, and for a scale that is none, or nobody's.

    Examples:
        >>> reader = named_features(rewards={"brief": mm.rewards.length(2), "digit": mm.rewards.format(r".*[0-9].*")})
        >>> rollout = reader.read(["2 + 2?"] * 2, ["4", "it is surely four"], torch.tensor([0, 0]), None)
        >>> reader.features(rollout, torch.tensor([0, 1])).tolist()
        [[0.0, 1.0], [-1.0, 0.0]]
    """
    if not rewards or not all(callable(reward) for reward in rewards.values()):
        raise UserError(f"policy.of.rewards: got {dict(rewards)!r}, takes at least one {{name: reward}}")
    for name, reward in rewards.items():
        if columns := sorted(columns_read(reward)):
            raise UserError(f"policy.of.rewards.{name}: reads the column {columns[0]!r}, takes rewards of outputs and prompts alone")
    for name, scale in (scales or {}).items():
        if name not in rewards:
            raise UserError(f"policy.of.scales: no reward {name!r}; takes {', '.join(rewards)}")
        if len(scale) != 2 or scale[1] <= 0:
            raise UserError(f"policy.of.scales.{name}: got {list(scale)}, takes [centre, scale] with a scale above 0")
    return NamedFeatures(dict(rewards), dict(scales or {}))


@dataclass(frozen=True)
class Numbers:
    """values: ``[B, H]`` float32, the features of each row."""

    values: Tensor

    def take(self, rows: Tensor) -> Numbers:
        return Numbers(self.values[rows])

    @staticmethod
    def join(parts: Sequence[Numbers]) -> Numbers:
        return Numbers(torch.cat([part.values for part in parts]))


class NamedFeatures:
    """See ``named_features``; a ``readers.Reader`` without parameters."""

    differentiable = False
    rows_at_once = 4096

    def __init__(self, rewards: dict[str, Callable[..., Any]], scales: Mapping[str, Sequence[float]]):
        self.rewards, self.width = rewards, len(rewards)
        self.scales = torch.tensor([list(scales.get(name, (0.0, 1.0))) for name in rewards], dtype=torch.float64)
        self.model: nn.Module = nn.Module()
        self.sets = ParameterSets(self.model)

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return torch.device("cpu")

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Nothing: what cannot be scored is found out by its output."""
        return {}

    def read(self, prompts: list[Any], outputs: Any, group: Tensor, rng: torch.Generator | None, *, part: slice = EVERY) -> Rollout:
        """What the rewards say. Errors: RefusedRow for the first row that one has no score of; UserError for one that answers parts."""
        asked, given = list(prompts[part]), outputs[part] if isinstance(outputs, Tensor) else list(outputs)[part]
        if not isinstance(given, Tensor) and given and isinstance(given[0], Tensor) and len({one.shape for one in given}) == 1:
            given = torch.stack(given)  # rewards are shown pictures of one size as one tensor
        columns = []
        for name, reward in self.rewards.items():
            with torch.no_grad():
                answer = reward(given, asked)
            if isinstance(answer, Mapping):
                raise UserError(f"policy.of.rewards.{name}: answers parts ({', '.join(answer)}), takes {{use: combined}} around them")
            scores = torch.as_tensor(answer).double().cpu()
            if bool(scores.isnan().any()):
                row = int(scores.isnan().int().argmax())
                raise RefusedRow(range(len(prompts))[part].start + row, f"{name} has no score of it")
            columns.append(scores)
        values = ((torch.stack(columns, 1) - self.scales[:, 0]) / self.scales[:, 1]).float()
        nothing = torch.full((len(asked), 1), torch.nan, dtype=torch.float64)
        return Rollout(asked, list(given), nothing, nothing.isnan(), group[part], held=Numbers(values))

    def features(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """``[R, H]`` float32, as they were read."""
        return rollout.held.values[rows]  # type: ignore[no-any-return]
