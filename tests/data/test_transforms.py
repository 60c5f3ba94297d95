"""Records made of other records: doubled by their scores, chosen by them, mixed; and that a run goes on in the middle of each."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.conversations import said_after
from mmalign.records import Pair, Ranking, Thumb
from mmalign.types import UserError

SCORED = [Pair(f"q{n}", f"good {n}", f"bad {n}", scores=(float(n + 1), 0.5), id=str(n)) for n in range(8)]


def taken(records: Any, count: int, **how: Any) -> list[Any]:
    return list(islice(records.stream(**{"seed": 3, **how}), count))


def test_every_scored_pair_is_there_twice_and_wins_by_its_own_score() -> None:
    records = mm.data.conditioned(SCORED, words=" [{score:g}]")
    for good, bad in zip(*[iter(taken(records, 16))] * 2, strict=True):
        number = good.id
        assert (good.prompt, good.strength) == (f"q{number} [{int(number) + 1}]", 1.0)
        assert (bad.prompt, bad.strength) == (f"q{number} [0.5]", 0.0)
        assert (good.first, good.second) == (bad.first, bad.second) == (f"good {number}", f"bad {number}")
    turned = Pair("q", "a", "b", strength=0.25, scores=(1.0, 2.0), labels={"wit": 0.25})
    first, second = taken(mm.data.conditioned([turned], words="{score:g}"), 2)
    assert (first.prompt, first.strength, first.labels) == ("q2", 0.25, {"wit": 0.25})  # b is the better one, and 2 its score
    assert (second.prompt, second.strength, second.labels) == ("q1", 0.75, {"wit": 0.75})


def test_dpo_on_conditioned_pairs_is_dpo_on_the_doubled_data() -> None:
    """Of rows that a policy scores in some way: the loss of the stream, against the paper's formula by hand on the pairs themselves."""
    score = lambda prompt, answer: float(torch.sin(torch.tensor(float(hash((prompt, answer)) % 1000))))  # noqa: E731
    beta, total = 0.3, 0.0
    for pair in SCORED:
        (high, low), (w, r) = (f"{pair.prompt} [{score_:g}]" for score_ in pair.scores), pair[1:3]
        for prompt, better, worse in ((high, w, r), (low, r, w)):
            total += float(torch.nn.functional.softplus(torch.tensor(-beta * (score(prompt, better) - score(prompt, worse)))))
    stream = taken(mm.data.conditioned(SCORED, words=" [{score:g}]"), 16)
    gaps = [beta * (score(pair.prompt, pair.first) - score(pair.prompt, pair.second)) for pair in stream]
    losses = [torch.nn.functional.softplus(torch.tensor(-gap if pair.strength else gap)) for gap, pair in zip(gaps, stream, strict=True)]
    assert abs(float(sum(losses)) - total) < 1e-5  # 16 sums in float32


@pytest.mark.parametrize(
    "records",
    [
        mm.data.conditioned(SCORED, words=" [{score:g}]"),
        mm.data.chosen(SCORED, least=3.0),
        mm.data.mixture({"a": SCORED, "b": [Pair("x", "y", "z", id="b")]}, weights={"a": 1, "b": 2}),
    ],
    ids=["conditioned", "chosen", "mixture"],
)
def test_a_run_goes_on_behind_any_record(records: Any) -> None:
    whole = taken(records, 40)
    for place in (1, 2, 7, 16, 23):
        assert taken(records, 10, start=whole[place - 1].position) == whole[place : place + 10]
    assert taken(records, 40, seed=4) != whole


def test_what_a_prompt_asks_for_stands_behind_its_user_s_last_words() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    assert said_after(turns, "!")[1] == {"role": "user", "content": "u!"} and turns[1]["content"] == "u"
    seen = [{"role": "user", "content": [{"type": "image", "path": "x.png"}, {"type": "text", "text": "what?"}]}]
    assert said_after(seen, "!")[0]["content"] == [*seen[0]["content"], {"type": "text", "text": "!"}]
    with pytest.raises(UserError, match="prompt: no turn of its user"):
        said_after(turns[:1], "!")


def test_records_are_chosen_by_a_number_of_theirs() -> None:
    gaps = {record.id: int(record.id) + 0.5 for record in SCORED}
    for keywords, wanted in (
        ({"least": 3.5}, [n for n, gap in gaps.items() if gap >= 3.5]),
        ({"most": 3.5}, [n for n, gap in gaps.items() if gap < 3.5]),
        ({"part": [0.0, 0.5], "look": 8}, ["0", "1", "2", "3"]),
        ({"part": [0.5, 1.0], "look": 8}, ["4", "5", "6", "7"]),
        ({"by": "score", "least": 8.0}, ["7"]),
    ):
        assert sorted({record.id for record in taken(mm.data.chosen(SCORED, **keywords), 30)}) == sorted(wanted), keywords
    sure = [Pair("q", "a", "b", strength=0.1, id="sure"), Pair("q", "a", "b", strength=0.6, id="unsure")]
    assert {record.id for record in taken(mm.data.chosen(sure, by="strength", least=0.8), 5)} == {"sure"}
    ranked = [Ranking("q", ("a", "b", "c"), (1.0, 4.0, 2.0), id="wide"), Ranking("q", ("a", "b"), (1.0, 1.5), id="narrow")]
    assert {record.id for record in taken(mm.data.chosen(ranked, least=2.0), 5)} == {"wide"}


def test_sources_come_as_often_as_they_weigh() -> None:
    one, two = [Thumb("a", str(n), 1.0) for n in range(3)], [Thumb("b", str(n), 1.0) for n in range(50)]
    mixed = taken(mm.data.mixture({"one": one, "two": two}, weights={"one": 3, "two": 1}), 4000)
    share = Counter(record.prompt for record in mixed)["a"] / 4000
    assert abs(share - 0.75) < 5 * (0.75 * 0.25 / 4000) ** 0.5
    assert [record.position for record in mixed[:5]] == [1, 2, 3, 4, 5]
    own = [record.output for record in mixed if record.prompt == "b"][:50]
    assert sorted(own) == sorted(record.output for record in two)  # each source gives all of its own before any comes again


def test_records_that_cannot_be_made_are_said_in_one_line() -> None:
    unscored = [Pair("q", "a", "b", id="seven")]
    for make, line in (
        (lambda: taken(mm.data.conditioned(unscored), 1), r"records\.of: seven has no scores, for which its prompt would ask"),
        (lambda: taken(mm.data.conditioned([Thumb("q", "a", 1.0)]), 1), r"records\.of: got a Thumb, takes pairs"),
        (lambda: mm.data.conditioned(SCORED, words="a score"), r"records\.words: got 'a score', takes words with \{score\} in them"),
        (lambda: mm.data.conditioned(SCORED, words="{scores}"), r"records\.words: got '\{scores\}', takes words with \{score\}"),
        (lambda: taken(mm.data.chosen(unscored, least=1.0), 1), r"records\.of: seven has no gap, by which they are chosen"),
        (lambda: mm.data.chosen(unscored, part=[0, 0.5]), r"records\.of: seven has no gap"),
        (lambda: mm.data.chosen(SCORED, part=[0.5, 0.5]), r"records\.part: got \[0\.5, 0\.5\], takes \[from, to\]"),
        (lambda: mm.data.chosen(SCORED, part=[0, 0.5], least=1.0), r"records\.part: given beside least or most"),
        (lambda: mm.data.chosen(SCORED, least=2.0, most=1.0), r"records\.most: got 1, takes more than least, which is 2"),
        (lambda: taken(mm.data.chosen(SCORED, least=99.0), 1), r"records: 1000 records in a row have a gap outside 99 to inf"),
        (lambda: mm.data.mixture({"a": SCORED}), r"records\.of: takes two or more sources by name"),
        (lambda: mm.data.mixture({"a": SCORED, "b": SCORED}, weights={"a": 1}), r"records\.weights: b is in one of of and weights alone"),
        (lambda: mm.data.mixture({"a": SCORED, "b": SCORED}, weights={"a": 0, "b": 0}), r"records\.weights: got .*, takes numbers of 0 or"),
    ):
        with pytest.raises(UserError, match=line):
            make()


def test_bad_rows_come_from_the_prompts_of_good_ones() -> None:
    """Poems are praised four times in five and code once in five: as they are, a prompt tells a row's label; matched, it tells nothing."""
    rng = random.Random(0)
    kinds = [rng.choice(["a poem about"] * 3 + ["a program for"]) for _ in range(2000)]
    thumbs = [
        Thumb(f"{kind} {rng.choice(['rain', 'sums', 'ships'])}", "x", float(rng.random() < (0.8 if "poem" in kind else 0.2)), id=str(n))
        for n, kind in enumerate(kinds)
    ]  # fmt: skip
    used = taken(mm.data.matched(thumbs, look=2000), 4000)
    poems = {label: [("poem" in thumb.prompt) for thumb in used if thumb.label == label] for label in (0.0, 1.0)}
    share = {label: sum(some) / len(some) for label, some in poems.items()}
    assert share[1.0] == pytest.approx(0.6 / 0.65, abs=0.02) and share[0.0] == pytest.approx(0.6 / 0.65, abs=0.04)  # .43 without it
    assert len(poems[0.0]) / len(poems[1.0]) == pytest.approx(0.35 / 0.65, rel=0.2)  # E_bad[w] = 1
    records = mm.data.matched(thumbs, look=200)
    first, last = taken(records, 30), taken(records, 10, start=taken(records, 20)[-1].position)
    assert [thumb.id for thumb in first[20:]] == [thumb.id for thumb in last]
    with pytest.raises(UserError, match="all up"):
        mm.data.matched([Thumb("a", "x", 1.0)] * 3, look=3)
    with pytest.raises(UserError, match="takes thumbs"):
        mm.data.matched(SCORED)
