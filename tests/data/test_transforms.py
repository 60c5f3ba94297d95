"""Records made of other records: doubled by their scores, chosen by them, mixed; and that a run goes on in the middle of each."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmalign as mm
from mmalign.conversations import said_after
from mmalign.records import Pair, Ranking, Thumb
from mmalign.types import UserError

SCORED = [Pair(f"q{n}", f"good {n}", f"bad {n}", scores=(float(n + 1), 0.5), id=str(n)) for n in range(8)]

RANKED = [
    Ranking("q0", ("a", "b", "c"), (1.0, 4.0, 2.5), id="0"),  # 0, 1.5, 0
    Ranking("q1", ("a", "b", "c", "d"), (3.0, float("nan"), 5.0, -2.0), id="1"),  # 1, 0, 3, 0
    Ranking("q2", ("a", "b"), (2.0, 2.0), id="2"),  # nothing is ahead
    Ranking("q3", ("a",), (9.0,), id="3"),
    Ranking("q4", ("a", "b"), (-1.0, -1.5), id="4"),  # .25, 0
]


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


def test_verdicts_are_asked_in_both_orders_and_ties_give_none() -> None:
    pairs = [
        Pair("q", "a", "b", strength=0.2, id="0"),
        Pair("q", "c", "d", strength=0.5, id="1"),
        Pair([{"role": "user", "content": "r"}], "e", "f"),
    ]
    first, second, third, fourth = taken(mm.data.verdicts(pairs, words=" {first}|{second}", say=("A", "B")), 4)
    decided = {str(one.prompt): (one.output, one.label) for one in (first, second, third, fourth)}
    assert decided["q b|a"] == ("A", 0.8) and decided["q a|b"] == ("B", 0.8)  # b is the better one
    assert decided["[{'role': 'user', 'content': 'r e|f'}]"] == ("A", 1.0) and len(decided) == 4
    alone = taken(mm.data.verdicts(pairs[:1], words=" {answer}?", say=("yes", "no")), 2)
    assert [(one.prompt, one.output) for one in alone] == [("q b?", "yes"), ("q a?", "no")]
    for words, say, says in (("?", ("A", "B"), "records.words: got"), (" {answer}", ("A", "A"), "records.say: got .* takes two")):
        with pytest.raises(UserError, match=says):
            mm.data.verdicts(pairs, words=words, say=say)
    with pytest.raises(UserError, match="got a Thumb, takes pairs"):
        taken(mm.data.verdicts([Thumb("q", "a", 1.0)]), 1)


@pytest.mark.parametrize(
    "records",
    [
        mm.data.conditioned(SCORED, words=" [{score:g}]"),
        mm.data.chosen(SCORED, least=3.0),
        mm.data.mixture({"a": SCORED, "b": [Pair("x", "y", "z", id="b")]}, weights={"a": 1, "b": 2}),
        mm.data.rewritten(SCORED),
        mm.data.verdicts([*SCORED, SCORED[0]._replace(strength=0.5, id="tie")]),
        mm.data.prioritised(SCORED),
        mm.data.prioritised(RANKED, look=1),
    ],
    ids=["conditioned", "chosen", "mixture", "rewritten", "verdicts", "prioritised", "several of a record"],
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


AHEAD = {("q0", "b"): 1.5, ("q1", "a"): 1.0, ("q1", "c"): 3.0, ("q4", "a"): 0.25}


@pytest.mark.parametrize("look", [1024, 1])  # what is looked at first is q4, of which q1 is sixteen times as far ahead
def test_an_answer_comes_as_often_as_it_is_ahead(look: int) -> None:
    records = mm.data.prioritised(RANKED, look=look)
    assert records.largest == (0.25 if look == 1 else 4.0)
    count = 6000
    came = Counter((one.prompt, *one.outputs, *one.scores) for one in taken(records, count))
    assert {(prompt, output): score for prompt, output, score in came} == pytest.approx(AHEAD)
    for prompt, output, score in came:
        p = AHEAD[prompt, output] / sum(AHEAD.values())
        assert abs(came[prompt, output, score] / count - p) < 5 * (p * (1 - p) / count) ** 0.5  # independent draws would stay within it


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
        (lambda: mm.data.prioritised(unscored), r"records\.of: seven has no scores, which say how often it comes"),
        (lambda: mm.data.prioritised([Thumb("q", "a", 1.0)]), r"records\.of: got a Thumb, takes rankings, or pairs with scores"),
        (lambda: mm.data.prioritised([Ranking("q", ("a", "b"), (2.0, 2.0))]), r"records\.of: in 1024 of them no answer's score is above"),
        (lambda: mm.data.mixture({"a": SCORED}), r"records\.of: takes two or more sources by name"),
        (lambda: mm.data.mixture({"a": SCORED, "b": SCORED}, weights={"a": 1}), r"records\.weights: b is in one of of and weights alone"),
        (lambda: mm.data.mixture({"a": SCORED, "b": SCORED}, weights={"a": 0, "b": 0}), r"records\.weights: got .*, takes numbers of 0 or"),
    ):
        with pytest.raises(UserError, match=line):
            make()


def test_a_pair_shows_how_an_answer_is_made_better() -> None:
    sure, turned, tied = Pair("q", "good", "bad", 0.9), Pair("q", "bad", "good", 0.2), Pair("q", "one", "other", 0.5)
    words = "|{answer}|{brace}"
    made = [
        [(one.prompt, one.output, one.label) for one in taken(mm.data.rewritten([pair], words=words), 2)] for pair in (sure, turned, tied)
    ]
    assert made[0] == [("q|bad|{brace}", "good", 0.9), ("q|good|{brace}", "good", 0.9)]
    assert made[1] == [("q|bad|{brace}", "good", 0.8), ("q|good|{brace}", "good", 0.8)]
    assert made[2] == [("q|one|{brace}", "one", 0.5), ("q|other|{brace}", "other", 0.5)]
    with pytest.raises(UserError, match=r"records\.words: got 'x', takes words with \{answer\}"):
        mm.data.rewritten([sure], words="x")


RULES = {name: [f"Be {name}.", f"Be not {name}."] for name in ("brief", "kind", "true")}


def test_the_principle_that_tells_two_answers_most_apart_labels_them() -> None:
    ratings = ({"brief": 1.0, "kind": 3.0, "odd": 9.0}, {"brief": 4.0, "kind": 2.0, "odd": 0.0})
    pairs = [Pair("q", "a", "b", 0.5, id=str(number), ratings=ratings) for number in range(64)]
    seen = Counter[tuple[str, float]]()
    for pair in taken(mm.data.principled(pairs, principles=RULES, at_once=2, words="|{principles}"), 64):
        rules = set(pair.prompt.removeprefix("q|").split("\n"))
        assert len(rules) == 2 and {rule.split()[-1] for rule in rules} == {"brief.", "kind."}  # what nobody rated is never drawn
        assert pair.strength == float("Be not brief." in rules)  # by 3 to 1, whatever is said of kindness
        seen[str(sorted(rules)), pair.strength] += 1
    assert len(seen) == 4 and min(seen.values()) > 4
    one = [pair.prompt for pair in taken(mm.data.principled(pairs, principles=RULES, at_once=1), 64)]
    assert one == [pair.prompt for pair in taken(mm.data.principled(pairs, principles=RULES, at_once=1), 64, seed=3)]
    equal = pairs[0]._replace(ratings=({"true": 1.0}, {"true": 1.0}))
    assert taken(mm.data.principled([equal], principles=RULES), 1)[0].strength == 0.5
    with pytest.raises(UserError, match="1000 records in a row are rated by none of the principles"):
        taken(mm.data.principled(SCORED, principles=RULES), 1)
    with pytest.raises(UserError, match=r"records\.principles\.kind: got \['Be kind.'\], takes \[sentence, sentence of its opposite\]"):
        mm.data.principled(pairs, principles={"kind": ["Be kind."]})


@pytest.mark.parametrize(("order", "ahead"), [(0, 3), (1, 1), (1, 4), (2, 1), (2, 3)])
def test_preferences_are_forecast_by_the_polynomial_through_the_last_times(order: int, ahead: int) -> None:
    """Against numpy's polynomials: who is ahead, and how often a pair comes up."""
    times = [{"a": 0.1, "b": 0.9, "c": 0.6}, {"a": 0.4, "b": 1.0, "c": 0.45}, {"a": 0.8, "b": 1.0, "c": 0.4}]
    sources = [[Pair(q, "x", "y", strength=p, id=q) for q, p in known.items()] for known in times]
    sources[1] = [pair._replace(first="y", second="x", strength=1 - pair.strength) for pair in sources[1]]  # the same, the other way round
    stream, wanted = taken(mm.data.forecast(sources, order=order, ahead=ahead, most=2), 3000), {}
    for q in "abc":
        votes = [2 * known[q] - 1 for known in times][2 - order :]
        wanted[q] = float(np.polyval(np.polyfit(range(order + 1), votes, order), order + ahead))
    assert all(record.strength == float(wanted[record.prompt] > 0) for record in stream)
    counts, sizes = Counter(record.prompt for record in stream), {q: min(abs(vote), 2.0) for q, vote in wanted.items()}
    for q in "abc":
        share = sizes[q] / sum(sizes.values())
        assert abs(counts[q] / 3000 - share) < 6 * (share * (1 - share) / 3000) ** 0.5 + 1e-3


def test_a_forecast_goes_on_and_takes_files(tmp_path: Path) -> None:
    lines = [[{"prompt": str(n), "chosen": f"{n} a", "rejected": f"{n} b"} for n in range(9)] for _ in "ab"]
    for line in lines[0][:4]:
        line["chosen"], line["rejected"] = line["rejected"], line["chosen"]
    for number, rows in enumerate(lines):
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = mm.data.forecast([str(tmp_path / "0.jsonl"), str(tmp_path / "1.jsonl")])
    whole = taken(records, 60)
    assert taken(records, 20, start=whole[29].position) == whole[30:50] and records.digest()
    turned = Counter(int(record.prompt) < 4 for record in taken(records, 4000))[True] / 4000
    assert abs(turned - 12 / 17) < 0.04  # 4 that changed their minds count 3 each, 5 that did not 1
    for make, line in (
        (lambda: mm.data.forecast([]), r"records\.of: got none, takes pairs of one time or more"),
        (lambda: taken(mm.data.forecast([[Thumb("q", "a", 1.0)]]), 1), r"records\.of: got a Thumb, takes pairs of texts"),
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
