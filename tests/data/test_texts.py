"""Preference data of texts: the schemas people have, what is put aside and why, places to resume from."""

from __future__ import annotations

import csv
import json
import math
from itertools import islice

import pytest

import mmalign as mm
from mmalign.records import Pair, Ranking, Thumb
from mmalign.types import UserError


def written(tmp_path, rows, name="data.jsonl"):
    (tmp_path / name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(tmp_path / name)


def read(tmp_path, rows, **more):
    return mm.data.texts(written(tmp_path, rows), **more).first(1000)


def talk(*texts):
    """Turns of user and assistant, the user first."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


SYSTEM = [{"role": "system", "content": "Be short."}]
ANSWER = [{"role": "assistant", "content": "Blue."}]
HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: What color?\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "prompt", "first", "second"),
    [
        ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, "The sky is", " blue.", " green."),
        ({"chosen": "The sky is blue.", "rejected": "The sky is black."}, "The sky is", " blue.", " black."),
        ({"chosen": "It is so", "rejected": "It is so."}, "It is", " so", " so."),
        ({"prompt": talk("Color?"), "chosen": ANSWER, "rejected": talk("x", "Red.")[1:]}, talk("Color?"), "Blue.", "Red."),
        ({"prompt": "Color?", "chosen": ANSWER, "rejected": talk("x", "Red.")[1:]}, talk("Color?"), "Blue.", "Red."),
        ({"chosen": talk("Color?", "Blue."), "rejected": talk("Color?", "Red.")}, talk("Color?"), "Blue.", "Red."),
        (  # UltraFeedback, binarized: the prompt stands in all three
            {"prompt": "Color?", "chosen": SYSTEM + talk("Color?", "Blue."), "rejected": SYSTEM + talk("Color?", "Red.")},
            SYSTEM + talk("Color?"), "Blue.", "Red.",
        ),
        (  # several turns follow
            {"chosen": talk("a", "b", "c", "d"), "rejected": talk("a", "x", "y", "z")},
            talk("a"), talk("a", "b", "c", "d")[1:], talk("a", "x", "y", "z")[1:],
        ),
        (
            {"chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "rejected": talk("q", "b")},
            talk("q"), "a", "b",
        ),
        ({"chosen": HH + " Blue.", "rejected": HH + " Red."}, talk("Hi", "Hello", "What color?"), "Blue.", "Red."),
    ],
)  # fmt: skip
def test_pairs(tmp_path, row, prompt, first, second):
    assert read(tmp_path, [row]) == [
        Pair(prompt, first, second, 1.0, "data.jsonl:1", position=4096, scores=(pytest.approx(math.nan, nan_ok=True),) * 2)
    ]


def test_transcripts_may_stay_text(tmp_path):
    (pair,) = read(tmp_path, [{"chosen": HH + " Blue.", "rejected": HH + " Red."}], transcripts="text")
    assert (pair.prompt, pair.first, pair.second) == (HH, " Blue.", " Red.")


def test_strengths_scores_ids_and_annotators(tmp_path):
    rows = [
        {
            "prompt": "p",
            "chosen": "a",
            "rejected": "b",
            "strength": 0.7,
            "id": "x",
            "annotator": 3,
            "score_chosen": 9,
            "score_rejected": 4.5,
        },
        {"prompt": "p", "chosen": "a", "rejected": "b", "strength": 0.5, "prompt_id": "tie"},
        {"prompt": "p", "chosen": "a", "rejected": "b", "strength": None, "id": "nobody said"},
    ]
    soft, drop = (mm.data.texts(written(tmp_path, rows), ties=ties) for ties in ("soft", "drop"))
    assert [(pair.id, pair.strength) for pair in soft.first(9)] == [("x@3", 0.7), ("tie", 0.5)]
    assert soft.first(9)[0].scores == (9.0, 4.5)
    assert [pair.annotator for pair in soft.first(9)] == ["3", ""]
    assert [pair.id for pair in drop.first(9)] == ["x@3"]
    assert drop.dropped == {"ties": 1, "unlabelled": 1} and drop.broken == {}


def test_columns_of_any_name(tmp_path):
    row = {"question": "p", "win": "a", "lose": "b", "p": 0.9}
    columns = {"prompt": "question", "chosen": "win", "rejected": "lose", "strength": "p"}
    assert read(tmp_path, [row], columns=columns)[0][:4] == ("p", "a", "b", 0.9)


def test_thumbs_of_files_with_and_without_types(tmp_path):
    rows = [{"prompt": "p", "completion": "a", "label": label} for label in (True, False, 0.25)]
    assert [(thumb.output, thumb.label) for thumb in read(tmp_path, rows)] == [("a", 1.0), ("a", 0.0), ("a", 0.25)]
    with open(tmp_path / "data.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    thumbs = mm.data.texts(str(tmp_path / "data.csv")).first(9)
    assert [thumb.label for thumb in thumbs] == [1.0, 0.0, 0.25] and isinstance(thumbs[0], Thumb)


def test_steps_are_thumbs_that_hold_the_steps_before(tmp_path):
    row = {"prompt": "2 + 3 * 4?", "completions": ["3 * 4 = 12.", "2 + 12 = 15.", "So 15."], "labels": [True, False, None], "id": "s"}
    records = mm.data.texts(written(tmp_path, [row]))
    first, second = records.first(9)
    assert first == Thumb("2 + 3 * 4?", "3 * 4 = 12.", 1.0, "s:1", position=1)
    assert second == Thumb("2 + 3 * 4?\n3 * 4 = 12.", "2 + 12 = 15.", 0.0, "s:2", position=2)


def test_ranked_lists(tmp_path):
    rows = [
        {"prompt": "p", "completions": ["a", "b", "c"], "scores": [1, None, 3]},
        {"prompt": talk("p"), "completions": ["a", ANSWER], "scores": [2, 2]},
    ]
    first, second = read(tmp_path, rows)
    assert isinstance(first, Ranking) and first.outputs == ("a", "b", "c") and first.scores == pytest.approx((1, math.nan, 3), nan_ok=True)
    assert second.outputs == ("a", "Blue.") and second.scores == (2, 2)
    assert len(read(tmp_path, rows, ties="drop")) == 1
    (by_rank,) = read(tmp_path, [{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 0]}])
    assert by_rank.scores == (-1, 0)


def test_ultrafeedback(tmp_path):
    def completion(text, overall, *ratings):
        aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
        annotations = {aspect: {"Rating": rating} for aspect, rating in zip(aspects, ratings, strict=True)}
        return {"response": text, "overall_score": overall, "annotations": annotations}

    row = {"instruction": "p", "completions": [completion("a", 10, "1", "2", "1", "N/A"), completion("b", 8.5, "5", "4", "5", "5")]}
    (mean,), (overall,) = read(tmp_path, [row]), read(tmp_path, [row], score="overall")
    assert mean.ratings[0] == {"helpfulness": 1.0, "honesty": 2.0, "instruction_following": 1.0}
    assert mean.outputs == ("a", "b") and mean.scores == pytest.approx((4 / 3, 19 / 4)) and overall.scores == (10, 8.5)
    whole = {**row, "completions": {key: [one[key] for one in row["completions"]] for key in row["completions"][0]}}  # as `datasets` has it
    assert read(tmp_path, [whole], schema="ultrafeedback")[0][:3] == mean[:3]
    for number, one in enumerate(row["completions"]):
        one |= {"critique": f" critique {number} "}
    row["completions"].append({"response": "c", "critique": " "})
    first, second = read(tmp_path, [row], schema="critiques")  # the third has no critique
    assert first.output == "critique 0\nScore: 10" and second.output == "critique 1\nScore: 8.5" and first.label == 1.0
    assert "<request>\np\n</request>\n<response>\nb\n</response>" in second.prompt


def test_labels_by_dimension(tmp_path):
    (pair,) = read(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b", "labels": {"brief": 0.3, "kind": "same", "deep": None}}])
    assert pair.labels["brief"] == 0.3 and pair.labels["kind"] == 0.5 and math.isnan(pair.labels["deep"]) and pair.strength == 1.0
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "ratings_chosen": {"x": 1}, "ratings_rejected": {"x": 2}}
    assert read(tmp_path, [row])[0].ratings == ({"x": 1.0}, {"x": 2.0})
    steer = {"prompt": "p", "response": "a", "helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
    (thumb,) = read(tmp_path, [steer])
    assert (thumb.output, thumb.ratings[0]["helpfulness"], len(thumb.ratings[0])) == ("a", 3.0, 5) and math.isnan(thumb.label)
    (thumb,) = read(tmp_path, [{"prompt": "p", "completion": "a", "ratings": '{"x": 0.5}'}])
    assert thumb.ratings == ({"x": 0.5},)
    (ranking,) = read(tmp_path, [{"prompt": "p", "completions": ["a", "b"], "scores": [{"x": 1, "y": 3}, {"x": 4}]}])
    assert ranking.scores == (2.0, 4.0) and ranking.ratings == ({"x": 1.0, "y": 3.0}, {"x": 4.0})


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"labels": {"brief": 2}}, "labels: brief is 2, takes 0..1"),
        ({"labels": {"brief": "C"}}, "got 'C', takes a number"),
        ({"ratings_chosen": {"x": 1}}, "ratings_rejected: got NoneType, takes an object"),
    ],
)
def test_labels_by_dimension_that_cannot_be(tmp_path, more, why):
    with pytest.raises(UserError, match=why):
        read(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b", **more}])


def message(key, text, role, parent=None, rank=None, **more):
    return {"message_id": key, "parent_id": parent, "text": text, "role": role, "rank": rank, **more}


MESSAGES = [
    message("q", "Color?", "prompter"),
    message("a", "Blue.", "assistant", "q", 1),
    message("b", "Blue, by day.", "assistant", "q", 0),
    message("gone", "Spam", "assistant", "q", 2, deleted=True),
    message("why", "Why?", "prompter", "b"),
    message("c", "Scattering.", "assistant", "why", 0),
    message("d", "Who knows.", "assistant", "why", 1),
    message("single", "Night?", "prompter", "a"),
    message("e", "Black.", "assistant", "single"),
]


def test_trees_of_messages_are_rankings_of_siblings(tmp_path):
    nodes = {one["message_id"]: {**one, "replies": []} for one in MESSAGES}
    for one in MESSAGES[1:]:
        nodes[one["parent_id"]]["replies"].append(nodes[one["message_id"]])
    tree, flat = [{"message_tree_id": "q", "prompt": nodes["q"]}], [MESSAGES[place] for place in (4, 0, 1, 8, 2, 3, 5, 6, 7)]
    for rows in (tree, flat):
        rankings = {ranking.id: ranking for ranking in read(tmp_path, rows)}
        assert set(rankings) == {"q", "why"}
        assert dict(zip(rankings["q"].outputs, rankings["q"].scores, strict=True)) == {"Blue.": -1, "Blue, by day.": 0}
        assert rankings["why"].prompt == talk("Color?", "Blue, by day.", "Why?")
    records = mm.data.texts(written(tmp_path, [*flat, message("lost", "x", "assistant", "nobody")]))
    assert len(records.first(9)) == 2 and [*records.broken.values()] == ["message lost answers nobody, which is not there"]


BROKEN = {
    "no rejected": ({"chosen": "a", "rejected": " "}, "no text under 'rejected'"),
    "same": ({"chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
    "two kinds": ({"chosen": "a", "rejected": ANSWER}, "chosen and rejected are a text and a conversation"),
    "a number": ({"prompt": "p", "chosen": 3, "rejected": "b"}, "no text under 'chosen'"),
    "strength": ({"prompt": "p", "chosen": "a", "rejected": "b", "strength": 1.5}, "strength is 1.5, takes 0..1"),
    "apart": ({"chosen": talk("a", "b"), "rejected": talk("x", "b")}, "no shared prefix: chosen and rejected differ in their first turn"),
    "apart in words": ({"chosen": "black", "rejected": "blue"}, "no shared prefix, and no prompt"),
    "ends early": ({"chosen": talk("a", "b"), "rejected": talk("a")}, "one of chosen and rejected has no completion"),
    "user differs": (
        {"chosen": talk("a", "b", "c", "d"), "rejected": talk("a", "b", "x", "d")},
        "wrong role order: chosen and rejected differ",
    ),
    "two users": ({"prompt": talk("a") * 2, "chosen": "a", "rejected": "b"}, "wrong role order: turn 2 is the user's"),
    "ends with user": ({"chosen": talk("a", "b", "c"), "rejected": talk("a", "c")}, "wrong role order: ends with the user's turn"),
    "prompt answered": ({"prompt": talk("a", "b"), "chosen": "c", "rejected": "d"}, "wrong role order: turn 3 is the assistant's"),
    "late system": ({"prompt": talk("a", "b") + SYSTEM, "chosen": "c", "rejected": "d"}, "wrong role order: turn 3 is the system's"),
    "unknown role": ({"prompt": [{"role": "critic", "content": "x"}], "chosen": "a", "rejected": "b"}, "got role 'critic'"),
    "silent": ({"prompt": [{"role": "user", "content": None}], "chosen": "a", "rejected": "b"}, "the user turn has no text"),
    "no turn": ({"prompt": ["x"], "chosen": "a", "rejected": "b"}, "got str, takes a turn"),
    "long": ({"prompt": "é" * 600, "chosen": "a", "rejected": "b"}, "a text of 1,200 bytes, max_bytes is 1,000"),
    "surrogate": ({"prompt": "p", "chosen": "\ud800", "rejected": "b"}, "a text that is not Unicode"),
    "not JSON": ("{", "not JSON"),
    "a list": ("[1]", "got list, takes an object"),
}


def test_what_cannot_be_used_is_put_aside_and_the_stream_goes_on(tmp_path):
    rows = [row if isinstance(row, str) else {**row, "id": name} for name, (row, _) in BROKEN.items()]
    good = [{"prompt": "p", "chosen": f"good {n}", "rejected": "b"} for n in range(3)]
    records = mm.data.texts(written(tmp_path, [good[0], *rows, *good[1:]]), max_bytes=1000)
    assert [pair.first for pair in islice(records.stream(seed=0), 6)].count("good 1") == 2
    why = list(records.first(99) and records.broken.items())
    assert len({reason for _, reason in why}) == len(BROKEN)
    for place, (name, (_, reason)) in enumerate(BROKEN.items(), start=2):
        assert reason in records.broken.get(name, records.broken.get(f"data.jsonl:{place}", "nothing")), name
    assert "data.jsonl:2" in records.broken and "long" in records.broken


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "completion": "", "label": True}, "no text under 'completion'"),
        ({"prompt": "p", "completion": "a", "label": 2}, "label is 2, takes true, false or 0..1"),
        ({"prompt": "p", "completion": "a", "label": "maybe"}, "got 'maybe', takes a number"),
        ({"prompt": "p", "completions": ["a"], "scores": [1]}, "a list of 1, takes two"),
        ({"prompt": "p", "completions": ["a", "b"], "scores": [1]}, "2 completions and 1 scores"),
        ({"prompt": "p", "completions": ["a", "b"], "scores": [1, None]}, "1 unlabelled passed over"),
        ({"prompt": "p", "completions": ["a", ""], "labels": [True, True]}, "step 2 has no text"),
        ({"prompt": "p", "completions": [], "labels": []}, "takes a list under 'completions'"),
        ({"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: b"}, "the assistant turn has no text"),
        ({"prompt": {"message_id": "q", "role": "prompter", "text": ""}}, "the user turn has no text"),
        ({"question": "p", "best": "a"}, "columns best, question look like no known schema"),
    ],
)
def test_nothing_usable_is_one_line(tmp_path, row, reason):
    with pytest.raises(UserError, match=r"^records: no usable record ") as error:
        mm.data.texts(written(tmp_path, [row]))
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"schema": "reddit"}, "texts.schema: got 'reddit', takes 'auto' or 'preference'"),
        ({"ties": "hard"}, "texts.ties"),
        ({"score": "best"}, "texts.score"),
        ({"transcripts": "html"}, "texts.transcripts"),
        ({"max_bytes": 0}, "texts.max_bytes: got 0, takes 1 or more"),
        ({"columns": {"better": "x"}}, "records.columns.better: unknown"),
    ],
)
def test_mistakes_are_one_line(tmp_path, more, says):
    with pytest.raises(UserError, match=f"^{says}"):
        mm.data.texts(written(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b"}]), **more)


def test_text_that_names_a_file_stays_text(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert read(tmp_path, [{"prompt": "notes.txt", "chosen": "a", "rejected": "b"}])[0].prompt == "notes.txt"


def test_a_resumed_stream_continues_within_a_row(tmp_path):
    rows = [{"prompt": f"p{n}", "completions": ["a", "b", "c"], "labels": [1, 0, 1]} for n in range(5)]
    path = written(tmp_path, rows)
    whole = [(thumb.id, thumb.position) for thumb in islice(mm.data.texts(path).stream(seed=3), 40)]
    for cut in (1, 2, 3, 14, 15, 16, 31):
        again = mm.data.texts(path).stream(seed=3, start=whole[cut - 1][1])
        assert [(thumb.id, thumb.position) for thumb in islice(again, 40 - cut)] == whole[cut:]
    assert len({name for name, _ in whole[:15]}) == 15


@pytest.mark.parametrize("streaming", [True, False])
def test_a_data_set_of_the_library(tmp_path, streaming):
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    rows = [{"chosen": talk("q", f"good {n}"), "rejected": talk("q", "bad"), "score_chosen": 9.0, "score_rejected": 2.0} for n in range(4)]
    written(tmp_path / "set", rows, "train.jsonl")
    records = mm.data.hub_texts(str(tmp_path / "set"), streaming=streaming)
    pairs = list(islice(records.stream(seed=1), 4))
    assert sorted(pair.first for pair in pairs) == [f"good {n}" for n in range(4)]
    assert pairs[0].prompt == talk("q") and pairs[0].scores == (9.0, 2.0)
    with pytest.raises(UserError, match=r"records\.name"):
        mm.data.hub_texts(str(tmp_path / "nothing"), streaming=streaming)
