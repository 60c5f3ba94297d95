"""Preference pairs of a data set's better answers and a policy's own, given under a handicap, such as hidden pictures (BDHS)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path
from typing import Any

from mmalign.arguments.ranges import Count, Proportion, Seed
from mmalign.commands._answers import Cut, answered, seeds_of, texts_of_outputs
from mmalign.commands._lines import Line, refuse_there, written
from mmalign.conversations import has_media, said_after
from mmalign.data._reading.around import refuse_two_prompts
from mmalign.data.pairs import listed
from mmalign.data.transforms.two_prompts import altered
from mmalign.distributed.jobs import in_turn, stopping_together
from mmalign.distributed.team import joined, team_for
from mmalign.files import plain
from mmalign.media.altering import Alteration
from mmalign.records import Pair, Record, Records, Thumb
from mmalign.training.journal import hashed
from mmalign.training.settings import at_least
from mmalign.types import Policy, UserError


def make_rejected(  # what a command may be told
    policy: Policy,
    records: Records | Sequence[Record],
    *,
    out: str,
    count: Count,
    call: dict[str, Any] | None = None,
    guide: str | None = None,
    pictures: dict[str, Any] | None = None,
    alike: Proportion = 1.0,
    cut: Cut = "drop",
    records_at_once: Count = 8,
    seed: Seed = 0,
) -> dict[str, int]:
    """Writes the better answers of ``count`` records, each against what the policy answers when called with ``call``; returns counts.

    Args:
        policy: what answers. count: records that are answered.
        records: pairs, of which the better answer is taken, or thumbs that are up. out: as of ``make_pairs``.
        call: of ``policy.generate``: the temperature, and what hides the pictures from it.
        guide: words behind what the prompt's user says last, which may show the better answer, ``{answer}``, so that what is drawn stays
            near it; the pair has the prompt without them. None: the prompt as it is.
        pictures: what is done to the pictures that it is shown, ``{transform: GaussianBlur, settings: {radius: 8}}``, with ``seed`` and
            ``cache``, as of the records ``two_pictures``; the pair has the prompt with its own. None: nothing.
        alike: answers whose words are more alike than this are left out (0: no word in common, 1: the same).
        cut: as of ``make_pairs``.
        records_at_once: records that are answered at once. seed: of the sampling, and of the order of the records.

    Counts: ``pairs``, ``records``, ``alike`` and ``cut`` (left out).

    Paper: BDHS, in Understanding Alignment in Multimodal LLMs: A Comprehensive Study,
    https://arxiv.org/abs/2407.02477; answers are drawn from their beginning here, and how a reference guides them is as recalled. Batches
    in which the policy's own pairs stand beside these: ``{use: mixture, ...}`` of this file and one of ``make_pairs``.

    Errors: UserError, as of ``make_pairs``.
    """
    refuse_there(out)
    at_least(1, count=count, records_at_once=records_at_once)
    if not 0 <= alike <= 1:
        raise UserError(f"alike: got {alike}, takes 0..1")
    source: Records = listed(records) if isinstance(records, Sequence) else records
    counts, team = {"pairs": 0, "records": 0, "alike": 0, "cut": 0}, joined()
    alter = None if pictures is None else _alteration(pictures)

    def batches() -> Iterator[tuple[int, list[tuple[Any, str, str]]]]:
        coming, first = islice(filter(None, map(_better, source.stream(seed=seed))), count), 0
        while some := list(islice(coming, records_at_once)):
            yield first, some
            first += len(some)

    def made_of(batch: tuple[int, list[tuple[Any, str, str]]]) -> dict[str, Any]:
        first, some = batch
        seeds = seeds_of(seed, first, len(some))
        asked = [prompt if guide is None else said_after(prompt, guide.replace("{answer}", better)) for prompt, better, _ in some]
        if alter is not None:
            asked = [altered(prompt, alter) if has_media(prompt) else prompt for prompt in asked]
        answers, endless = answered(policy, asked, seeds, call or {})
        return {"answers": texts_of_outputs(answers), "cut": endless, "records": hashed(some)}

    def lines() -> Iterator[Line]:
        for (_, some), made in in_turn(team, batches(), made_of):
            if made["records"] != hashed(some):
                raise UserError(f"records: processes read others at {some[0][2] or 'the same place'}; takes the same files in all of them")
            for (prompt, better, name), answer, goes_on in zip(some, made["answers"], made["cut"], strict=True):
                counts["records"] += 1
                if goes_on and cut == "drop":
                    counts["cut"] += 1
                    continue
                same = SequenceMatcher(None, better.split(), answer.split(), autojunk=False).ratio()
                if same > alike or answer == better or not answer.strip():
                    counts["alike"] += 1
                    continue
                counts["pairs"] += 1
                yield {"prompt": prompt, "chosen": better, "rejected": answer, "id": name}

    with stopping_together(team):
        team_for(-(-count // records_at_once), f"batches of {records_at_once} records")
        settings = {
            "count": count,
            "call": call,
            "guide": guide,
            "pictures": pictures,
            "alike": alike,
            "cut": cut,
            "records_at_once": records_at_once,
            "seed": seed,
        }
        team.agree("make_rejected", plain(settings))
        written(Path(out), lines(), team)
    return counts


def _alteration(pictures: Mapping[str, Any]) -> Alteration:
    """Errors: UserError for other keys than it has, and as of ``Alteration``."""
    if odd := set(pictures) - {"transform", "settings", "seed", "cache"} or {"transform"} - set(pictures):
        raise UserError(
            f"make_rejected.pictures: got {', '.join(pictures) or 'nothing'} ({sorted(odd)[0]}), takes transform, and settings, seed, cache"
        )
    return Alteration(pictures["transform"], **{key: value for key, value in pictures.items() if key != "transform"})


def _better(record: Any) -> tuple[Any, str, str] | None:
    """Prompt, the answer that is taken to be good, and id; None for a record that has none that is a text."""
    refuse_two_prompts(record)
    answer = None
    if isinstance(record, Pair) and record.strength != 0.5:
        answer = record.first if record.strength > 0.5 else record.second
    elif isinstance(record, Thumb) and record.label > 0.5:
        answer = record.output
    return (record.prompt, answer, record.id) if isinstance(answer, str) else None
