"""A model on a server as a judge by published sets of dimensions, and by published lists of weighted questions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmalign.arguments.ranges import Mark
from mmalign.rewards._shared.scorer import Scorer
from mmalign.rewards.judges.judge import judge
from mmalign.rewards.judges.judge_rubric import judge_rubric
from mmalign.serving.chat import ServerSettings
from mmalign.types import UserError

__all__ = ["judge_dimensions", "judge_questions"]

DIMENSIONS: dict[str, dict[str, str]] = {
    "video_reward": {
        "VQ": "the visual quality of the video: how clear, detailed and well made its frames are",
        "MQ": "the motion quality of the video: how smooth, stable and plausible what moves is",
        "TA": "how well the video fits the text: its subjects, what they do, where they are, and the style that is asked for",
    },
    "mm_rlhf": {
        "faithfulness": "how faithful the response is to the image or video: objects, attributes, relations and numbers, nothing made up",
        "helpfulness": "how helpful the response is: to the point, complete, and clear",
        "ethics": "how safe and respectful the response is: no harm, no bias, no private data",
    },
}
"""Name of a published set -> its dimensions by their own names, in words of ours."""

DIFFERENTIABLE = False


def judge_dimensions(
    *, server: ServerSettings, dimensions: Mapping[str, str] | str = "video_reward", low: Mark = 1, high: Mark = 5,
    read: Literal["likely", "written"] = "likely", apart: bool = False,
) -> Scorer:  # fmt: skip
    """Reward in ``low..high``: the mean of what a judge says in each dimension, each a question of its own; NaN where one is missing.

    Args:
        server, low, high, read: as of ``judge``.
        dimensions: ``video_reward`` (VQ, MQ, TA), ``mm_rlhf`` (faithfulness, helpfulness, ethics), or name -> what is scored, as it
            completes "Score ...". What editing is judged by is ``judge_edit``.
        apart: each by its name as a part in place of their mean: what ``records`` with ``labels`` of the same names, and reward models with
            ``scores`` of them, say as well.

    Source: VideoReward, https://arxiv.org/abs/2501.13918, and MM-RLHF, https://arxiv.org/abs/2502.10391, whose dimensions these are, asked
    of any vision-language model in words of ours; their own weights are ``video_reward`` and ``trained``.

    Errors: UserError for another name, no dimension, settings out of range, and for a server that refuses the key or the model.
    """
    named = DIMENSIONS.get(dimensions) if isinstance(dimensions, str) else dict(dimensions)
    if not named:
        raise UserError(f"judge_dimensions.dimensions: got {dimensions!r}, takes {', '.join(DIMENSIONS)}, or name -> what is scored")
    judges = {name: judge(server=server, criterion=what, low=low, high=high, read=read) for name, what in named.items()}

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        parts = {name: one(outputs, prompts) for name, one in judges.items()}
        return parts if apart else sum(parts.values()) / len(parts)

    return Scorer("judge_dimensions", score, low=float(low), high=float(high))


def judge_questions(*, server: ServerSettings, questions: str, weights: str) -> Scorer:
    """``sum_k w_k x_k`` over a list of yes-no questions about an output, ``x_k = 2 P(yes) - 1``; NaN where an answer is missing.

    With answers of yes and no alone that is VisionReward's score, ``x_k`` 1 or -1; here an unsure answer counts for less.

    Args:
        server: as of ``judge``; each question is asked by itself.
        questions: a file with a question in every line that is not empty, such as VisionReward's ``VisionReward_image_qa_select.txt``.
        weights: a file with a JSON list of numbers, one for each question in their order, such as its ``weight.json``. A question with
            weight 0 is not asked.

    Source: VisionReward, https://arxiv.org/abs/2412.21059: linear weights of binary questions. Deviations: any vision-language model on a
    server answers; what its own model says is not to be compared. Neither file is shipped.

    Errors: UserError for files that cannot be read, other than one weight for each question, none but zeros, and as of ``judge``.
    """
    asked, numbers = _lines(questions), _numbers(weights)
    if len(asked) != len(numbers) or not any(numbers):
        raise UserError(
            f"judge_questions: got {len(asked)} questions and {len(numbers)} weights, takes one of each, one other than 0 or more"
        )
    kept = {f"{place}": (question, weight) for place, (question, weight) in enumerate(zip(asked, numbers, strict=True), 1) if weight}
    whole = sum(abs(weight) for _, weight in kept.values())
    rubric = judge_rubric(
        server=server, criteria={name: one for name, (one, _) in kept.items()}, weights={name: one for name, (_, one) in kept.items()}
    )

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        return whole * (2 * rubric(outputs, prompts) - 1)  # of a rubric, sum_k |w_k| p_k / sum_k |w_k|, 1 - p_k where w_k < 0

    return Scorer("judge_questions", score, low=-whole, high=whole)


def _lines(path: str) -> list[str]:
    if not Path(path).is_file():
        raise UserError(f"judge_questions.questions: no such file: {path[:240]}")
    return [line.strip() for line in Path(path).read_text(encoding="utf-8").split("\n") if line.strip()]


def _numbers(path: str) -> list[float]:
    try:
        listed = json.loads(Path(path).read_text(encoding="utf-8"))
        return [float(number) for number in listed]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"judge_questions.weights: {path[:240]} is no file with a list of numbers") from error
