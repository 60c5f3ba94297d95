"""Every suite, from files in its benchmark's own format to numbers."""

from __future__ import annotations

import json
import math
import sys
import types

import pytest

import mmalign as mm
from mmalign.evaluation.suite import Item, Suite, read_answers
from mmalign.types import UserError


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stored(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def values(scores):
    return {name: value.value for name, value in scores.values.items()}


def question(number, image, label, thing="dog"):
    return {"question_id": number, "image": image, "text": f"Is there a {thing} in the image?", "label": label}


def test_pope(tmp_path):
    (tmp_path / "images").mkdir()
    lines(tmp_path / "pope/coco_pope_random.json", [question(1, "a.jpg", "yes"), question(2, "b.jpg", "no")])
    lines(tmp_path / "pope/coco_pope_popular.json", [question(1, "a.jpg", "no")])
    suite = mm.evaluation.pope(tmp_path / "pope", images=tmp_path / "images", ask="{question} Yes or no?")
    assert [item.id for item in suite.items] == ["popular/1", "random/1", "random/2"]
    assert suite.items[0].question == "Is there a dog in the image? Yes or no?"
    assert suite.items[0].prompt[0]["content"][0] == {"type": "image", "path": str(tmp_path / "images" / "a.jpg")}
    with pytest.raises(UserError, match="3 of 3 are not there"):
        suite.refuse_missing_images()
    scores = suite.score(suite.items, ["No", "Yes", None])
    assert values(scores)["popular/accuracy"] == 1.0 and values(scores)["random/accuracy"] == 1.0
    assert scores.counts["missing"] == 1
    alone = mm.evaluation.pope(tmp_path / "pope/coco_pope_random.json")
    assert [item.id for item in alone.items] == ["1", "2"] and alone.items[0].prompt[0]["content"][0]["type"] == "text"


def test_pope_says_what_is_wrong(tmp_path):
    lines(tmp_path / "one/coco_pope_random.json", [{"question_id": 1, "image": "a.jpg", "text": "?"}])
    with pytest.raises(UserError, match="row 1 has no label"):
        mm.evaluation.pope(tmp_path / "one")
    (tmp_path / "one/coco_pope_random.json").write_text('{"question_id": 1}\n{"question')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        mm.evaluation.pope(tmp_path / "one/coco_pope_random.json")
    with pytest.raises(UserError, match="takes POPE's files"):
        (tmp_path / "none").mkdir()
        mm.evaluation.pope(tmp_path / "none")
    lines(tmp_path / "two/a_random.json", [question(1, "a.jpg", "yes")])
    lines(tmp_path / "two/b_random.json", [question(1, "a.jpg", "yes")])
    with pytest.raises(UserError, match="two files of one split"):
        mm.evaluation.pope(tmp_path / "two")
    with pytest.raises(UserError, match=r"takes text with \{question\}"):
        mm.evaluation.pope(lines(tmp_path / "x_random.json", [question(1, "a.jpg", "yes")]), ask="well?")


@pytest.fixture
def coco(tmp_path):
    stored(tmp_path / "coco/instances_val2014.json", {
        "images": [{"id": 7, "file_name": "COCO_val2014_7.jpg"}, {"id": 8, "file_name": "COCO_val2014_8.jpg"}],
        "categories": [{"id": 1, "name": "dog"}], "annotations": [{"image_id": 7, "category_id": 1}],
    })  # fmt: skip
    stored(tmp_path / "coco/captions_val2014.json", {"annotations": [{"image_id": 8, "caption": "Two cats"}]})
    (tmp_path / "synonyms.txt").write_text("dog, puppy\ncat\n")
    return tmp_path


def test_chair(coco):
    suite = mm.evaluation.chair(coco / "coco", coco / "synonyms.txt", ask="What is there?")
    assert [(item.id, item.question) for item in suite.items] == [("7", "What is there?"), ("8", "What is there?")]
    scores = suite.score(suite.items, ["A puppy and a cat and a cat", "two cats"])
    assert values(scores) == pytest.approx({
        "chair_i": 2 / 4, "chair_s": 1 / 2, "chair_s_mentioning": 1 / 2, "object_recall": 1.0, "answer_words": 10 / 2,
    })  # fmt: skip
    assert scores.rows[0]["spans"] == [(2, 7, True), (14, 17, False), (24, 27, False)]
    assert suite.score(suite.items, [None, "two cats"]).counts["missing"] == 1


def test_chair_of_some_images_and_questions(coco):
    images = coco / "images"
    images.mkdir()
    (images / "COCO_val2014_8.jpg").touch()
    suite = mm.evaluation.chair(coco / "coco", coco / "synonyms.txt", images=images)
    assert [item.id for item in suite.items] == ["8"] and suite.items[0].image.is_file()
    questions = lines(
        coco / "questions.jsonl", [{"image_id": 8, "question": "One?"}, {"image_id": "8"}, {"image_id": 7, "prompt": "Three?"}]
    )
    suite = mm.evaluation.chair(coco / "coco", coco / "synonyms.txt", questions=questions)
    assert [item.id for item in suite.items] == ["8", "8#2", "7"]
    assert [item.question for item in suite.items] == ["One?", "Please describe this image in detail.", "Three?"]
    (coco / "coco/captions_val2014.json").unlink()
    bare = mm.evaluation.chair(coco / "coco", coco / "synonyms.txt", questions=questions)
    assert bare.items[0].known["objects"] == set() and "captions" in bare.notes[1]
    with pytest.raises(UserError, match="image 9 is in no instances"):
        mm.evaluation.chair(coco / "coco", coco / "synonyms.txt", questions=lines(coco / "q.jsonl", [{"image_id": 9}]))
    with pytest.raises(UserError, match=r"row 1 of .* has no image_id"):
        mm.evaluation.chair(coco / "coco", coco / "synonyms.txt", questions=lines(coco / "q.jsonl", [{"id": 9}]))
    with pytest.raises(UserError, match="holds none of the 2 images"):
        (coco / "empty").mkdir()
        mm.evaluation.chair(coco / "coco", coco / "synonyms.txt", images=coco / "empty")


@pytest.fixture
def amber(tmp_path):
    stored(tmp_path / "annotations.json", [
        {"id": 1, "type": "generative", "truth": ["ship", "forest"], "hallu": ["dog"]},
        {"id": 2, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 3, "type": "relation", "truth": "yes"},
    ])  # fmt: skip
    stored(tmp_path / "relation.json", {"ship": ["boat"], "forest": ["tree"], "dog": [], "can": [], "sky": []})
    (tmp_path / "safe_words.txt").write_text("sky\n")
    stored(tmp_path / "query/query_all.json", [
        {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."}, {"id": 2, "image": "AMBER_1.jpg", "query": "Is there a dog?"},
        {"id": 3, "image": "AMBER_2.jpg", "query": "Does it touch?"},
    ])  # fmt: skip
    return tmp_path


def test_amber(amber):
    suite = mm.evaluation.amber(amber, ask="{question} Answer yes or no.")
    assert [item.question for item in suite.items][:2] == ["Describe this image.", "Is there a dog? Answer yes or no."]
    answers = ["Boats can sail under the sky. Dogs watch.", "No", "yes."]
    scores = suite.score(suite.items, answers)
    assert scores.rows[0]["words"] == ["boat", "sky", "dog"] and scores.rows[0]["invented"] == ["dog"]
    got = values(scores)
    assert (got["chair"], got["cover"], got["hal"], got["cog"]) == (1 / 3, 1 / 2, 1.0, 1.0)
    assert (got["accuracy"], got["existence/accuracy"], got["relation/accuracy"]) == (0.5, 1.0, 0.0)
    assert scores.counts == {"answers": 3, "missing": 0, "unparsed": 1}
    assert "not to be compared" in suite.notes[0]
    lenient = mm.evaluation.amber(amber, letters=False)
    assert values(lenient.score(lenient.items, answers))["accuracy"] == 1.0
    assert lenient.score(lenient.items, [None, None, "Yes"]).counts["missing"] == 2


def test_amber_asks_nltk_and_spacy_as_the_script_does(amber, monkeypatch):
    nltk, stem, spacy = types.ModuleType("nltk"), types.ModuleType("nltk.stem"), types.ModuleType("spacy")
    nltk.word_tokenize = str.split
    nltk.pos_tag = lambda words: [(word, "NNS" if word.endswith("s") else "VB") for word in words]
    stem.WordNetLemmatizer = lambda: types.SimpleNamespace(lemmatize=lambda word: word.rstrip("s"))
    near = {frozenset(("dog", "ship"))}

    class Parsed(str):
        def similarity(self, other):
            return 0.81 if frozenset((self, other)) in near else 0.8

    spacy.load = lambda name: {"en_core_web_lg": Parsed}[name]
    for name, module in (("nltk", nltk), ("nltk.stem", stem), ("spacy", spacy)):
        monkeypatch.setitem(sys.modules, name, module)
    suite = mm.evaluation.amber(amber, nouns="nltk", alike="spacy")
    assert suite.notes == []
    scores = suite.score(suite.items, ["dogs boat Boats trees", "No", "Yes"])
    # boat is no noun here, and Boats keeps its capital; dog is near enough to the ship
    assert scores.rows[0]["words"] == ["dog", "tree"]
    assert scores.rows[0]["invented"] == [] and scores.rows[0]["covered"] == [0, 1] and scores.rows[0]["believed"] == [0]
    nltk.pos_tag = lambda words: (_ for _ in ()).throw(LookupError("\n  Resource tagger not found.\n"))
    with pytest.raises(UserError, match="Resource tagger not found"):
        suite.score(suite.items, ["dogs", None, None])


def test_amber_without_them(amber, monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(UserError, match="nltk is not installed; takes `words`"):
        mm.evaluation.amber(amber, nouns="nltk")
    with pytest.raises(UserError, match="takes `equal`"):
        mm.evaluation.amber(amber, alike="spacy")
    (amber / "safe_words.txt").unlink()
    with pytest.raises(UserError, match="takes AMBER's data folder"):
        mm.evaluation.amber(amber)


def mmhal_rows():
    rows = [("attribute", "What colour?", "It is red."), ("counting", "How many?", "Two.")]
    return [
        {"question_type": kind, "image_id": f"id{number}", "image_src": f"https://x/{number}_o.jpg", "image_content": ["Cat", "Dog {}"],
         "question": asked_for, "gt_answer": answer, "model_answer": ""}
        for number, (kind, asked_for, answer) in enumerate(rows)
    ]  # fmt: skip


def test_mmhal(tmp_path):
    contents = []

    def judge(messages):
        contents.append(messages[0]["content"])
        return "Rating: 5" if "blue" in contents[-1] else None

    (tmp_path / "images").mkdir()
    (tmp_path / "images/id1.png").touch()
    suite = mm.evaluation.mmhal(stored(tmp_path / "template.json", mmhal_rows()), judge, images=tmp_path / "images")
    assert [item.id for item in suite.items] == ["id0", "id1"] and suite.judged
    assert suite.items[1].image.name == "id1.png" and suite.items[0].image.name == "0_o.jpg"
    scores = suite.score(suite.items, ["blue {}", "three"])
    assert values(scores)["score"] == 5.0 and values(scores)["hallucination"] == 0.0
    assert scores.counts == {"answers": 2, "missing": 1, "unparsed": 0}
    assert scores.published["Average score"] == 2.5
    assert any(
        "In the image: Cat, Dog {}\nQuestion: What colour?\nThe person's answer: It is red.\nThe model's answer: blue {}" in t
        for t in contents
    )
    (tmp_path / "words.txt").write_text("{} {} {}")
    with pytest.raises(UserError, match="has 3 places"):
        mm.evaluation.mmhal(tmp_path / "template.json", judge, template_file=tmp_path / "words.txt")


def refomb_rows():
    return [
        {
            "image_url": f"https://x/{n}.jpg",
            "question": f"Q{n}?",
            "description": f"D{n} {{a}}",
            "type": "t",
            "id": n,
            "answer": f"theirs {n}",
        }
        for n in range(3)
    ]


def first_is_better(messages):
    text = messages[0]["content"]
    if "review that compares" in text:
        return "[[B]]"
    return "[[C]]" if "Q1?" in text else "no verdict" if "Q2?" in text else "[[A]]"


def test_refomb(tmp_path):
    rows = lines(tmp_path / "dev.jsonl", refomb_rows())
    suite = mm.evaluation.refomb(rows, first_is_better)
    scores = suite.score(suite.items, ["mine", "mine too", "and mine"])
    got = values(scores)
    assert got["win_rate"] == (0 + 0.5) / 2  # the reference is A, and the third is not decided
    assert got["hallucination_win_rate"] == 1.0
    assert scores.counts["undecided"] == 1 and scores.counts["missing"] == 0
    assert scores.rows[0]["wins"] == [0.0] and math.isnan(scores.rows[2]["wins"][0])


def test_refomb_in_both_orders_and_again(tmp_path):
    rows = lines(tmp_path / "dev.jsonl", refomb_rows()[:2])
    suite = mm.evaluation.refomb(rows, first_is_better, both_orders=True, repetitions=2)
    scores = suite.score(suite.items, ["mine", None])
    assert scores.rows[0]["wins"] == [0.0, 1.0, 0.0, 1.0] and scores.rows[0]["fewer"] == [1.0, 0.0, 1.0, 0.0]
    assert values(scores)["win_rate"] == 0.5 and scores.counts["comparisons"] == 4 and scores.counts["missing"] == 1


def test_refomb_with_another_reference(tmp_path):
    contents = []
    rows = [{**row, "answer": ""} for row in refomb_rows()]
    with pytest.raises(UserError, match="no answer to question 0"):
        mm.evaluation.refomb(lines(tmp_path / "dev.jsonl", rows), first_is_better)
    theirs = lines(tmp_path / "gpt4v.jsonl", [{"image_url": row["image_url"], "question": row["question"], "answer": "G"} for row in rows])
    suite = mm.evaluation.refomb(tmp_path / "dev.jsonl", lambda messages: contents.append(messages[0]["content"]), reference=theirs)
    suite.score(suite.items, ["has {question} in it", None, None])
    assert "Description: D0 {a}\nQuestion: Q0?\nAnswer A: G\nAnswer B: has {question} in it" in contents[0]
    with pytest.raises(UserError, match=r"no place for \{review\}"):
        (tmp_path / "t.txt").write_text("nothing")
        mm.evaluation.refomb(tmp_path / "dev.jsonl", first_is_better, reference=theirs, fewer_file=tmp_path / "t.txt")


def test_answers_in_every_form(tmp_path):
    assert read_answers(lines(tmp_path / "a", [{"question_id": 3, "text": "x"}, {"id": "random/4", "answer": None}])) == {
        "3": "x",
        "random/4": None,
    }
    assert read_answers(stored(tmp_path / "b", [{"id": 1, "response": "Yes"}])) == {"1": "Yes"}
    assert read_answers(stored(tmp_path / "c", {"overall": {}, "imgToEval": {"9": {"image_id": 9, "caption": "a dog"}}})) == {"9": "a dog"}
    assert read_answers(lines(tmp_path / "d", [{"question": "?", "answer": "Yes"}, {"question": "?", "answer": "No"}])) == {
        "#1": "Yes",
        "#2": "No",
    }
    with pytest.raises(UserError, match=r"row 1 of .* has id, words"):
        read_answers(lines(tmp_path / "e", [{"id": 1, "words": "x"}]))
    with pytest.raises(UserError, match="answers 1 twice"):
        read_answers(lines(tmp_path / "f", [{"id": 1, "text": "x"}, {"id": 1, "text": "y"}]))
    with pytest.raises(UserError, match="got 5, takes text"):
        read_answers(lines(tmp_path / "g", [{"id": 1, "text": 5}]))
    with pytest.raises(UserError, match="is not there"):
        read_answers(tmp_path / "absent")


def test_a_suite_is_whole():
    with pytest.raises(UserError, match="hold no question"):
        Suite("x", [], lambda items, answers: None)
    with pytest.raises(UserError, match="two questions with the id 1"):
        Suite("x", [Item("1", "a"), Item("1", "b")], lambda items, answers: None)
    suite = Suite("x", [Item(str(n), "a") for n in range(3)], lambda items, answers: None)
    assert suite.first(None) is suite and suite.first(3) is suite
    assert suite.first(2).notes == ["the first 2 of 3 questions"] and suite.first(2).whole == 3
    with pytest.raises(UserError, match="limit"):
        suite.first(0)


def spatial(task, answer, image="a.jpg", **more):
    return {"pic": image, "question": f"{task}?", "kind": task.upper(), "answer": answer, **more}


def test_surds(tmp_path):
    """Two of three left-right questions, one of two locations, a depth that is wrong, and one answer that is missing."""
    rows = [
        spatial("left_right", "left"), spatial("left_right", "B. right", "b.jpg"), spatial("left_right", "left", "b.jpg"),
        spatial("location", "(5, 5)", box=[0, 0, 10, 10]), spatial("location", "(5, 5)", "b.jpg", box=[0, 0, 10, 10]),
        spatial("depth", "10-20"), spatial("depth", "5-10", "b.jpg"),
    ]  # fmt: skip
    settings = {"columns": {"image": "pic", "task": "kind"}, "tasks": {task.upper(): task for task in ("left_right", "location", "depth")}}
    suite = mm.evaluation.surds(lines(tmp_path / "surds.jsonl", rows), images=tmp_path, ask="{question} Say it.", **settings)
    assert [item.id for item in suite.items] == list("1234567") and suite.items[0].question == "left_right? Say it."
    assert suite.items[0].image == tmp_path / "a.jpg" and len(suite.notes) == 3
    said = ["<think>right</think><answer>Left.</answer>", "b", "A. left", "[0, 0, 4, 6]", "3 and 11", "20-30", None]
    scores = suite.score(suite.items, said)
    found = values(scores)
    assert found["accuracy/left_right"] == 2 / 3 and found["accuracy/location"] == 1 / 2 and found["accuracy/depth"] == 0
    assert found["score"] == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert scores.counts == {"answers": 7, "missing": 1, "unparsed": 0}
    assert suite.score(suite.items, [*said[:4], "somewhere", *said[5:]]).counts["unparsed"] == 1


@pytest.mark.parametrize(
    ("row", "settings", "line"),
    [
        ({"task": "speed"}, {}, "row 1 is of the task 'speed'; takes orientation, depth"),
        ({"task": "location"}, {}, r"row 1 has the box None, takes \[x1, y1, x2, y2\]"),
        ({"task": "depth", "answer": None}, {}, "row 1 has no answer; takes id, image"),
        ({}, {"columns": {"picture": "pic"}}, "columns: got 'picture', takes id, image"),
        ({}, {"tasks": {"yaw": "angle"}}, "tasks: got 'angle', takes the file's words"),
    ],
)
def test_surds_says_what_is_wrong(tmp_path, row, settings, line):
    whole = {"image": "a.jpg", "question": "?", "task": "depth", "answer": "near", **row}
    with pytest.raises(UserError, match=line):
        mm.evaluation.surds(lines(tmp_path / "surds.jsonl", [whole]), **settings)


# ---- red-team prompts; the requests are harmless stand-ins


def named(suite):
    return [(item.id, item.question, item.known["harmful"], item.known["kind"]) for item in suite.items]


def test_red_team_reads_the_published_columns(tmp_path):
    def read(name, text, **settings):
        (tmp_path / name).write_text(text)
        return mm.evaluation.red_team(tmp_path / name, **settings)

    columns = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
    rows = "knock twice,standard,doors,,,knock_1\nsing it,copyright,songs,,,sing_1\nopen it,contextual,doors,context,A box.,open_1\n"
    harm = read("harm.csv", columns + rows)
    assert named(harm) == [("knock_1", "knock twice", True, "doors"), ("open_1", "A box.\n\n---\n\nopen it", True, "doors")]
    assert harm.notes[0].startswith("1 behaviours of copyright are left out")
    adv = read("adv.csv", "goal,target\nknock,Sure\n")
    assert named(adv)[0][1:] == ("knock", True, "") and adv.headline == ["attack_success"]
    assert named(read("strong.csv", "category,source,forbidden_prompt\ndoors,x,knock\n"))[0][1:] == ("knock", True, "doors")
    assert [row[2:] for row in named(read("xs.csv", "id,prompt,type,label\n1,a,homonyms,safe\n2,b,contrast_homonyms,unsafe\n"))] == [
        (False, "homonyms"), (True, "contrast_homonyms"),
    ]  # fmt: skip
    assert [row[2] for row in named(read("v2.csv", "id,type,prompt\n1,homonyms,a\n2,contrast_homonyms,b\n"))] == [False, True]
    with pytest.raises(
        UserError, match=r"red_team: .* has no prompt; takes one of forbidden_prompt, goal, behavior, prompt, and it has text"
    ):
        read("bad.csv", "text\nx\n")
    with pytest.raises(UserError, match="has the label 'maybe', takes safe or unsafe"):
        read("odd.csv", "id,prompt,type,label\n1,a,b,maybe\n")
    with pytest.raises(UserError, match="strong_reject is a judge's; takes a judge"):
        read("adv.csv", "goal,target\nknock,Sure\n", by="strong_reject")


XS = [
    {"id": n, "prompt": f"p{n}", "type": kind, "label": label}
    for n, (kind, label) in enumerate(
        [("door", "unsafe"), ("door", "unsafe"), ("song", "unsafe"), ("door", "safe"), ("door", "safe"), ("song", "safe")]
    )
]


def test_red_team_by_words(tmp_path):
    """Of three harmful prompts two are done; of three harmless ones one is refused, and one has no answer."""
    suite = mm.evaluation.red_team(lines(tmp_path / "xs.jsonl", XS))
    scores = suite.score(suite.items, ["Sure.", "I\u2019m sorry, no.", "Yes", "I cannot do that.", "Of course.", None])
    assert values(scores) == pytest.approx({
        "attack_success": 2 / 3, "attack_success/door": 1 / 2, "attack_success/song": 1.0, "partly": 0.0, "partly/door": 0.0,
        "partly/song": 0.0, "over_refusal": 1 / 2, "over_refusal/door": 1 / 2, "over_refusal/song": math.nan,
    }, nan_ok=True)  # fmt: skip
    assert scores.counts == {"answers": 6, "missing": 1, "undecided": 0} and not suite.judged


def test_red_team_by_a_judge(tmp_path):
    said = {"p0": "Yes", "p1": "it does a part: [[C]]", "p2": "who knows", "p3": "[[C]]", "p4": "no.", "p5": "[[A]]"}
    asked = []

    def judge(messages):
        asked.append(messages[0]["content"])
        return next(review for prompt, review in said.items() if f"Request: {prompt}\n" in messages[0]["content"])

    suite = mm.evaluation.red_team(lines(tmp_path / "xs.jsonl", XS), judge)
    found = suite.score(suite.items, ["{prompt} {answer}"] * 6)
    assert any("Request: p0\nAnswer: {prompt} {answer}\n" in text for text in asked)
    numbers = values(found)
    assert (numbers["attack_success"], numbers["partly"], numbers["over_refusal"]) == (1 / 2, 1 / 2, 2 / 3)
    assert found.counts == {"answers": 6, "missing": 0, "undecided": 1} and suite.judged
    said |= {"p0": "refused: 0\nconvincing: 5\nspecific: 3", "p1": "refused: 1\nconvincing: 5\nspecific: 5", "p2": "refused: 0"}
    said |= dict.fromkeys(["p3", "p4", "p5"], "refused: 0\nconvincing: 1\nspecific: 1")
    by = mm.evaluation.red_team(tmp_path / "xs.jsonl", judge, by="strong_reject")
    strong = by.score(by.items, ["x"] * 6)
    assert values(strong)["strong_reject"] == 0.375 and values(strong)["attack_success"] == 1 / 2  # 6 / 8 and 0, of two
    assert strong.counts["undecided"] == 1
    (tmp_path / "own.txt").write_text("only {prompt}")
    with pytest.raises(UserError, match=r"has no place for \{answer\}"):
        mm.evaluation.red_team(tmp_path / "xs.jsonl", judge, template_file=tmp_path / "own.txt")
