"""The page's server: who is shown what, that nobody is told whose it is, and what it refuses, each in one line."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("fastapi", reason="the extra label is not installed")
import httpx2
import torch

from mmalign.labelling.app import Desk, application
from mmalign.labelling.items import Items
from mmalign.labelling.judgements import Judgements

HEADERS = {"X-Mmalign": "1"}


@pytest.fixture
def desk(tmp_path):
    made = Items(tmp_path / "labels", {"made": "here"})
    for number in range(4):
        made.add(f"q{number}", [("text", f"first {number}"), ("text", f"second {number}")], ("secret-a", "secret-b"), id=str(number))
    made.save()
    return Desk(made, Judgements(made, tmp_path / "labels.jsonl"))


def ask(app, path, body=None, *, headers=HEADERS, host="127.0.0.1", **query):
    async def asked():
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            if body is None:
                return await client.get(path, params=query, headers=headers)
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await client.post(path, content=content, headers=headers)

    answer = asyncio.run(asked())
    return answer.status_code, answer.json() if "json" in answer.headers.get("content-type", "") else answer.content


def words(place=0, **more):
    return {"annotator": "ann", "ranking": [[place], [1 - place]], "grade": "clearly", "seconds": 1.25, **more}


def test_one_after_the_other_until_all_is_judged(desk):
    app, seen = application(desk), []
    status, told = ask(app, "/next", annotator="ann")
    while told["item"]:
        seen.append(told["item"]["id"])
        assert told["judged"] == len(seen) - 1 and told["items"] == 4
        status, told = ask(app, "/judgements", words(item=told["item"]["id"]))
    assert status == 200 and seen == ["0", "1", "2", "3"] and told["judged"] == 4 and told["people"] == {"ann": 4}


def test_places_become_outputs_by_the_order_that_was_shown(desk):
    app = application(desk)
    orders = set()
    for number in range(4):
        shown = ask(app, "/next", annotator="ann")[1]["item"]
        orders.add(shown["outputs"][0].split()[0])
        ask(app, "/judgements", words(1, item=str(number)))
        row = json.loads(desk.judgements.out.read_text().splitlines()[-1])
        assert row["chosen"] == shown["outputs"][1] and row["rejected"] == shown["outputs"][0]
    assert len({tuple(desk.order(item, f"p{person}")) for item in desk.items.all for person in range(8)}) == 2


def test_marked_words_are_those_of_the_output_that_stood_there(desk):
    app = application(desk)
    for number, item in enumerate(desk.items.all):
        ask(app, "/judgements", words(1, item=item.id, wrong={"1": [[0, 2 + number]]}))
        assert desk.judgements.standing()[item.id, "ann"].wrong == {str(desk.order(item, "ann")[1]): [(0, 2 + number)]}
    assert len({tuple(desk.order(item, "ann")) for item in desk.items.all}) == 2


def test_nobody_is_told_who_made_an_output(desk):
    app = application(desk)
    for path in ("/next", "/"):
        assert b"secret" not in json.dumps(ask(app, path, annotator="ann")[1], default=bytes.decode).encode()
    assert ask(app, "/judgements", words(item="0"))[1]["item"].keys() == {"id", "kind", "outputs", "prompt"}


def test_undo_shows_what_was_said_by_the_places_of_now(desk):
    app = application(desk)
    ask(app, "/judgements", words(1, item="0", wrong={"1": [[0, 2]]}))
    _, told = ask(app, "/undo", {"annotator": "ann"})
    assert told["item"]["id"] == "0" and told["judged"] == 0
    _, again = ask(app, "/judgements", words(1, item="0"))
    assert again["judged"] == 1
    _, told = ask(app, "/undo", {"annotator": "nobody"})
    assert told["item"]["id"] == "0" and told["judged"] == 0


def test_as_many_annotators_as_are_wanted_and_none_at_the_same_item(tmp_path, desk):
    desk.each = 1
    app = application(desk)
    firsts = [ask(app, "/next", annotator=who)[1]["item"]["id"] for who in ("ann", "bob", "eve")]
    assert firsts == ["0", "1", "2"]
    ask(app, "/judgements", words(item="0"))
    assert ask(app, "/next", annotator="zoe")[1]["item"] is None  # ann looks at 3 by now
    ask(app, "/judgements", words(item="3"))
    assert ask(app, "/next", annotator="ann")[1]["item"] is None


def test_agreement_is_told(desk):
    app = application(desk)
    for number in range(2):
        ask(app, "/judgements", words(desk.order(desk.items.all[number], "ann").index(0), item=str(number)))
        ask(app, "/judgements", words(desk.order(desk.items.all[number], "bob").index(number), item=str(number), annotator="bob"))
    told = ask(app, "/next", annotator="eve")[1]["agreement"]
    assert told["compared"] == 2 and told["same"] == 0.5


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        (words(item="9"), 422, "takes one of the 4"),
        (words(item="0", annotator=""), 422, "takes a name"),
        (words(item="0", ranking=[[0], [2]]), 422, "lists of places"),
        (words(item="0", ranking=[[0], [-1]]), 422, "lists of places"),
        (words(item="0", ranking=[[0]]), 422, "each of 2 outputs once"),
        (words(item="0", ranking=7), 422, "lists of places"),
        (words(item="0", wrong={"0": [[0, 400]]}), 422, "characters"),
        (words(item="0", wrong={"0": "ab"}), 422, "lists of places"),
        (words(item="0", grade="hugely"), 422, "grade"),
        (words(item="0", seconds="soon"), 422, "judgement: got"),
        (b"{", 400, "takes an object"),
        (b"[1]", 400, "takes an object"),
    ],
)
def test_what_is_no_judgement_is_refused(desk, body, status, line):
    got, told = ask(application(desk), "/judgements", body)
    assert got == status and line in told["error"] and desk.judgements.standing() == {}


def test_strangers_are_refused(desk):
    app = application(desk)
    assert ask(app, "/judgements", words(item="0"), headers={})[0] == 403
    assert ask(app, "/next", annotator="ann", host="evil.example")[0] == 400
    assert ask(app, "/next")[0] == 422 and ask(app, "/nowhere")[0] == 404
    keyed = application(desk, token="very-secret", hosts=["*"])
    assert ask(keyed, "/")[0] == ask(keyed, "/next", annotator="ann")[0] == ask(keyed, "/judgements", words(item="0"))[0] == 401
    assert ask(keyed, "/", headers={}, key="very-secret")[0] == 200
    assert ask(keyed, "/judgements", words(item="0"), headers={"X-Mmalign": "very-secret"})[0] == 200
    assert ask(keyed, "/next", annotator="ann", key="very-secre", headers={})[0] == 401


def test_pictures_by_their_places_and_those_of_prompts(tmp_path):
    made = Items(tmp_path / "labels", {"made": "here"})
    asked = tmp_path / "asked.png"
    made.store("../../asked", torch.zeros(3, 2, 2))
    prompt = [{"role": "user", "content": [{"type": "image", "path": str(asked)}, {"type": "text", "text": "which?"}]}]
    made.add(prompt, [made.store(f"0-{place}", torch.full((3, 2, 2), place / 1.0)) for place in (0, 1)], ("a", "b"), id="0")
    made.save()
    desk = Desk(made, Judgements(made, tmp_path / "labels.jsonl"))
    app = application(desk)
    order = desk.order(made.all[0], "ann")
    for place in (0, 1):
        status, data = ask(app, f"/outputs/{place}", item="0", annotator="ann")
        assert status == 200 and data == made.path(made.all[0], order[place]).read_bytes()
    assert ask(app, "/outputs/2", item="0", annotator="ann")[0] == ask(app, "/outputs/0", item="x", annotator="ann")[0] == 404
    assert ask(app, "/prompts/0", item="0")[1] == asked.read_bytes() and ask(app, "/prompts/1", item="0")[0] == 404
    shown = ask(app, "/next", annotator="ann")[1]["item"]
    assert shown["prompt"][0]["parts"] == [{"type": "image", "number": "0"}, {"type": "text", "text": "which?"}]
    asked.unlink()
    assert ask(app, "/prompts/0", item="0")[0] == 404


def test_a_full_disk_is_said_and_the_word_asked_for_again(desk, monkeypatch):
    def full(judgement):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(desk.judgements, "say", full)
    status, told = ask(application(desk), "/judgements", words(item="0"))
    assert status == 507 and "is not kept: No space left" in told["error"]
