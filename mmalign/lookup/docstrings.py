"""What a docstring says of a function, in parts: what it is, its formula, every keyword, its paper, who does otherwise.

The house form is::

    First line: what it is.

    The formula, and what else there is to say.

    Args:
        beta: how much a nat counts.
        low, high: of the clip.

    Paper: title, arXiv number, equation.

    Deviations: from it, and from well-known code.

    Dialects: see ``dialects``.

    Errors: UserError where ...

    Examples:
        >>> mm.methods.kto(beta=0.2).unit
        'batch'

An entry may go on with other keywords, each at the start of a sentence: ``path: a JSON file. seed: of the order.`` Where a function needs
no list, its keywords may stand so in prose. What means the same wherever it occurs (`SHARED`) need not be said again.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

SECTIONS = ("Args", "Paper", "Deviations", "Dialects", "Errors", "Examples")
PARAGRAPHS = ("Paper", "Deviations", "Errors")  # sections of one paragraph: what comes after it is prose again

SHARED = {
    "path": "the file that it reads.",
    "device": "where it computes; the fastest device there is by default.",
    "rows_at_once": "rows computed at a time: memory grows with them, results do not change.",
    "seed": "of everything random in it.",
    "weights": "a folder or file of published weights, or their hub id.",
    "sha256": "checksum of the weights; another file is refused.",
    "transforms": "name of a reward -> its transform, or a list of them, before they are combined (`mmalign list transforms`).",
    "missing": "what a row is worth of which a reward is missing.",
    "start, stop": "the part of the steps in which it acts, as fractions of the way from noise (0) to data (1).",
    "resamples": "how often the rows are drawn anew for the interval.",
    "clusters": "rows with one name are drawn together in the interval.",
    "max_bytes": "of one file; a larger one is a broken record.",
    "max_pixels": "width times height of one image; a larger one is a broken record.",
    "animated": "what an animated image is: ``refuse`` it, or take its ``first`` frame.",
    "split": "of the data set.",
    "streaming": "read the data set while it is used, without a copy on the disk.",
    "config": "name of the data set's configuration on the hub.",
}
"""keyword -> its meaning, where a function's own docstring does not give another one."""

TABLES = {
    "steps": "the table of a batch of rows (``types.Steps``).",
    "feedback": "rewards, groups and labels of a rollout (``types.Feedback``).",
    "rewards": "of each row ``[B]``, or of each step ``[B, T]``; NaN is missing.",
    "group": "``[B]``, the number of each row's group.",
    "mask": "``[B, T]`` bool: live cells.",
    "log_ratio": "of the policy to another, nats.",
    "log_probs": "``[B, T]``, of the policy, nats.",
    "advantage": "``[B, 1 or T]``: how much better than expected a row or a step is.",
    "advantages": "``[B]`` or ``[B, T]``.",
    "margin": "of the better score over the worse one, nats.",
    "better, worse": "scores of the rows of pairs, nats.",
    "name": "which one, by its name.",
    "need": "which table (``types.Need``).",
    "beta": "how much a nat counts.",
    "flips": "fraction of the labels that is taken to be flipped, 0 to below 0.5.",
    "score": "what a row is worth to the policy, one of ``objectives.scores``.",
    "link": "of a margin to a cost, one of ``objectives.links``.",
    "compare": "(better score, worse score) -> cost.",
    "terms": "what is added to the loss.",
    "lam": "how far advantages trust returns over the critic, 0 to 1.",
    "eps": "what is added to a divisor.",
    "lengths": "``[B]``, live steps of each row.",
    "critic": "how the critic is used and fitted (``terms.critics.Critic``).",
}
"""The same for functions of ``objectives``, which all take the same few tables."""

OPTIMIZERS = {
    "rate": "the highest learning rate.",
    "warmup": "steps over which the rate rises in a line: times ``(step + 1) / (warmup + 1)``.",
    "decay": "what the rate is times otherwise: ``constant`` 1; ``linear`` ``1 - step / steps`` of the run's steps; ``cosine`` "
    "``(1 + cos(pi step / steps)) / 2``.",
    "max_norm": "gradients are scaled down to this norm of all parameters together; ``.inf`` leaves them.",
    "ema": "decay of an exponential moving average that is evaluated and exported, or ``{decay, every}`` (`mmalign explain ema`).",
}
"""The same for ``training.optimizers``."""

OF_ROOMS = {"mmalign.objectives.": TABLES, "mmalign.training.optimizers": OPTIMIZERS}


class Explanation(NamedTuple):
    """A docstring in parts.

    formula: prose and equations. keywords: (names, meaning), those of ``Args``, of the prose and of ``SHARED``, in that order.
    defaults: name -> default, ``inspect.Parameter.empty`` where it is required. remarks: what follows the keywords. dialects, examples: as
    text.
    """

    name: str
    meaning: str
    formula: str
    defaults: dict[str, Any]
    keywords: list[tuple[str, str]]
    remarks: str
    paper: str
    deviations: str
    dialects: str
    errors: str
    examples: str

    @property
    def unexplained(self) -> list[str]:
        """Keywords that nothing is said of."""
        explained = {name.strip().lstrip("*") for names, _ in self.keywords for name in names.split(",")}
        return [name for name in self.defaults if name not in explained]


def explanation(function: Callable[..., Any]) -> Explanation:
    """What a function's signature and docstring say of it, or of a class that is called like one."""
    first, *rest = re.split(rf"^({'|'.join(SECTIONS)}):", inspect.cleandoc(function.__doc__ or ""), flags=re.MULTILINE)
    meaning, _, prose = first.strip().partition("\n")
    parts = {}
    for section, text in zip(rest[::2], rest[1::2], strict=True):
        parts[section], after = text.split("\n\n", 1) if section in PARAGRAPHS and "\n\n" in text.strip("\n") else (text, "")
        prose = f"{prose}\n\n{after}"
    arguments, *remarks = re.split(r"^(?=\S)", parts.get("Args", "").strip("\n"), maxsplit=1, flags=re.MULTILINE)
    entries = re.split(r"^(?=\S)", textwrap.dedent(arguments), flags=re.MULTILINE)
    defaults = {
        name: _made(function, name, parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    listed: list[tuple[str, str]] = []
    for names, _, text in (entry.partition(":") for entry in entries if entry.strip()):
        own, others = _from_prose(unwrapped(text), [*defaults])
        listed += [(names.strip(), own), *others]
    known = {name.strip() for names, _ in listed for name in names.split(",")}
    rest_of_it, in_prose = _from_prose(prose.strip("\n"), [name for name in defaults if name not in known])
    known |= {name.strip() for names, _ in in_prose for name in names.split(",")}
    own_tables = (table for room, table in OF_ROOMS.items() if function.__module__.startswith(room))
    common = {**SHARED, **next(own_tables, {})}
    shared = [(names, meaning) for names, meaning in common.items() if {*names.split(", ")} <= {*defaults} - known]
    return Explanation(
        name=function.__name__,
        meaning=meaning.strip(),
        formula=rest_of_it.replace("::", ":").strip("\n"),
        defaults=defaults,
        keywords=[*listed, *in_prose, *shared],
        remarks=unwrapped("".join(remarks)),
        paper=unwrapped(parts.get("Paper", "")),
        deviations=unwrapped(parts.get("Deviations", "")),
        dialects=parts.get("Dialects", ""),
        errors=unwrapped(parts.get("Errors", "")),
        examples=textwrap.dedent(parts.get("Examples", "").strip("\n")).rstrip(),
    )


def _made(function: Any, name: str, default: Any) -> Any:
    """The default of a keyword; of a dataclass's field that is made anew each time, what is made."""
    field = function.__dataclass_fields__.get(name) if dataclasses.is_dataclass(function) else None
    return default if field is None or field.default_factory is dataclasses.MISSING else field.default_factory()


def _from_prose(prose: str, names: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """(the prose without them, keywords that a sentence of it begins with). A keyword's words end at the next one's, or at a blank line."""
    if not names:
        return prose, []
    one = "|".join(re.escape(name) for name in names)
    begins = re.compile(rf"(?:(?<=^)|(?<=\.\s)|(?<=\.\s\s)|(?<=\n)|(?<=\n\n))((?:{one})(?:, (?:{one}))*):\s")
    texts, keywords = [], []
    for paragraph in prose.split("\n\n"):
        starts = list(begins.finditer(paragraph))
        texts.append(paragraph[: starts[0].start()] if starts else paragraph)
        for start, end in zip(starts, [*(following.start() for following in starts[1:]), None], strict=False):
            keywords.append((start.group(1), unwrapped(paragraph[start.end() : end])))
    return "\n\n".join(text.rstrip() for text in texts if text.strip()), keywords


def unwrapped(text: str) -> str:
    """A paragraph as one line."""
    return " ".join(text.split())


def paragraphs(text: str) -> Iterator[str]:
    """The entries of a list of ``- `` points, each as one line."""
    return (unwrapped(entry) for entry in re.split(r"^\s*- ", text, flags=re.MULTILINE)[1:])
