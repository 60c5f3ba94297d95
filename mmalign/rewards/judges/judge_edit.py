"""A model on a server as a judge of edited images, beside the image that was edited: single ones, and pairs."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from mmalign.arguments.columns import Column
from mmalign.arguments.ranges import Count, Mark
from mmalign.conversations import question
from mmalign.rewards._shared.pictures_in import pictures
from mmalign.rewards._shared.scorer import Comparer, Scorer
from mmalign.rewards.judges.judge import judge
from mmalign.rewards.judges.judge_pairs import judge_pairs
from mmalign.serving.chat import ServerSettings
from mmalign.types import Oracle

__all__ = ["judge_edit", "judge_edit_pairs"]

FOLLOWS = "whether the response is the first image with the requested change made, all of it, and with nothing else changed"
LOOKS = "how the response looks as an image: real, clean, without seams, distortions or artefacts"
BETTER = "which response is the better edit: the requested change is made, nothing else is changed, and it looks right"

DIFFERENTIABLE = False


def judge_edit(
    *, server: ServerSettings, low: Mark = 1, high: Mark = 5, read: Literal["likely", "written"] = "likely",
    apart: bool = False, column: Column = "source",
) -> Scorer:  # fmt: skip
    """Reward in ``low..high``: the mean of two scores of an edited image, ``follows`` and ``looks``; NaN where one is missing.

    The judge sees the source image and the instruction as the request, and the edited image as the response; each score is a question
    of its own, as of ``judge``. Not differentiable.

    Args:
        server, low, high, read: as of ``judge``.
        apart: the two as parts in place of their mean.
        column: of the prompts, that holds the source image of each, a path or a tensor.

    Source: the two dimensions of EditReward, https://arxiv.org/abs/2509.26346, asked of any vision-language model on a server; its own
    weights are not read.

    Errors: UserError for settings out of range, and for a server that refuses the key or the model, and prompts without that column.
    """
    find = pictures("judge_edit", column)
    judges = {
        name: judge(server=server, criterion=what, low=low, high=high, read=read) for name, what in (("follows", FOLLOWS), ("looks", LOOKS))
    }

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        requests = _requests(prompts, find(prompts, columns))
        parts = {name: one(outputs, requests) for name, one in judges.items()}
        return parts if apart else (parts["follows"] + parts["looks"]) / 2

    return Scorer("judge_edit", score, low=float(low), high=float(high), reads=frozenset({column}))


def judge_edit_pairs(
    *, server: ServerSettings, read: Literal["likely", "written"] = "likely", ties: bool = False,
    opponents: Count | None = None, column: Column = "source",
) -> Oracle:  # fmt: skip
    """An oracle of pairs of edited images, each compared beside the source image in both orders, as of ``judge_pairs``.

    Args:
        server, read, ties, opponents: as of ``judge_pairs``.
        column: of the prompts, that holds the source image of each, a path or a tensor.

    Source: EditReward's pairs, https://arxiv.org/abs/2509.26346.

    Errors: UserError for settings out of range, and for a server that refuses the key or the model, and prompts without that column.
    """
    find = pictures("judge_edit_pairs", column)
    oracle = judge_pairs(server=server, criterion=BETTER, read=read, ties=ties, opponents=opponents)

    def compare(outputs: Any, prompts: list[Any], group: Tensor, **columns: Any) -> Tensor:
        return oracle(outputs, _requests(prompts, find(prompts, columns)), group)

    return Comparer("judge_edit_pairs", compare, reads=frozenset({column}))


def _requests(prompts: list[Any], sources: list[list[Tensor]]) -> list[list[dict[str, Any]]]:
    """Prompts as conversations that show their source images first."""
    requests = []
    for prompt, images in zip(prompts, sources, strict=True):
        parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
        requests.append([{"role": "user", "content": [*parts, {"type": "text", "text": question(prompt)}]}])
    return requests
