"""Files as they are published: what is asked is read by the columns they have, what nobody reads is named, and nothing is guessed."""

from __future__ import annotations

import io
import json
import math
import warnings

import pytest
from PIL import Image

import mmalign as mm
from mmalign.records import Pair, Thumb
from mmalign.types import UserError
from tests.helpers.turns import assistant, gpt, human, system, user


def png(colour="red", size=(6, 4)):
    held = io.BytesIO()
    Image.new("RGB", size, colour).save(held, format="PNG")
    return held.getvalue()


def written(place, rows, name="data.jsonl"):
    (place / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(place / name)


def read(place, row, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (record,) = mm.data.texts(written(place, [row]), **more).first(2)
    return record


TALK = [system("Be short."), user("Hi"), assistant("Yes?"), user("Name a fruit.")]

PAIRS = {
    "orca_dpo_pairs": (
        {"system": "Be short.", "question": "A fruit?", "chosen": "Apple", "rejected": "Axe"},
        [system("Be short."), user("A fruit?")],
    ),
    "no system": ({"system": "", "question": "A fruit?", "chosen": "Apple", "rejected": "Axe"}, "A fruit?"),
    "alpaca": ({"instruction": "Name it:", "input": "a fruit", "chosen": "Apple", "rejected": "Axe"}, "Name it:\na fruit"),
    "alpaca, empty input": ({"instruction": "A fruit?", "input": "", "chosen": "Apple", "rejected": "Axe"}, "A fruit?"),
    "alpaca, empty instruction": ({"instruction": "", "input": "A fruit?", "chosen": "Apple", "rejected": "Axe"}, "A fruit?"),
    "Dolly": (
        {"instruction": "Name it:", "context": "Fruits and tools.", "chosen": "Apple", "rejected": "Axe"},
        "Name it:\nFruits and tools.",
    ),
    "input alone": ({"input": "A fruit?", "chosen": "Apple", "rejected": "Axe"}, "A fruit?"),
    "capitals": ({"Question": "A fruit?", "Chosen": "Apple", "Rejected": "Axe"}, "A fruit?"),
    "LLaMA-Factory, ShareGPT": (
        {"conversations": [human("Hi"), gpt("Yes?"), human("A fruit?")], "chosen": gpt("Apple"), "rejected": gpt("Axe")},
        [user("Hi"), assistant("Yes?"), user("A fruit?")],
    ),
    "LLaMA-Factory, history": (
        {"instruction": "A fruit?", "history": [["Hi", "Yes?"]], "system": "Be short.", "chosen": "Apple", "rejected": "Axe"},
        [system("Be short."), user("Hi"), assistant("Yes?"), user("A fruit?")],
    ),
    "roles in capitals": (
        {
            "chosen": [{"role": "USER", "content": "A fruit?"}, {"role": "Assistant", "content": "Apple"}],
            "rejected": [{"role": "User", "content": "A fruit?"}, {"role": "ASSISTANT", "content": "Axe"}],
        },
        [user("A fruit?")],
    ),
    "one-turn objects": ({"prompt": user("A fruit?"), "chosen": assistant("Apple"), "rejected": assistant("Axe")}, [user("A fruit?")]),
    "ms-swift 2": (
        {"query": "A fruit?", "response": "Apple", "rejected_response": "Axe", "history": [["Hi", "Yes?"]]},
        [user("Hi"), assistant("Yes?"), user("A fruit?")],
    ),
    "ms-swift 3": ({"messages": [*TALK, assistant("Apple")], "rejected_response": "Axe"}, TALK),
    "ms-swift 3, messages": ({"messages": [*TALK, assistant("Apple")], "rejected_messages": [*TALK, assistant("Axe")]}, TALK),
    "ms-swift 3, last turn": ({"messages": [*TALK, assistant("Apple")], "rejected_messages": [assistant("Axe")]}, TALK),
    "OpenAI": (
        {"input": {"messages": [user("A fruit?")]}, "preferred_output": [assistant("Apple")], "non_preferred_output": [assistant("Axe")]},
        [user("A fruit?")],
    ),
    "OpenAI's parts": (
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "A "}, {"type": "input_text", "text": "fruit?"}]}],
            "chosen": [{"role": "assistant", "content": [{"type": "output_text", "text": "Apple"}]}],
            "rejected": [assistant("Axe")],
        },
        [user("A fruit?")],
    ),
    "Anthropic": (
        {
            "system": "Be short.",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "A fruit?"}]}],
            "chosen": "Apple",
            "rejected": "Axe",
        },
        [system("Be short."), user("A fruit?")],
    ),
    "HH-RLHF": (
        {"chosen": "\n\nHuman: A fruit?\n\nAssistant: Apple", "rejected": "\n\nHuman: A fruit?\n\nAssistant: Axe"},
        [user("A fruit?")],
    ),
    "messages that end with the better answer": ({"messages": [*TALK, assistant("Apple")], "chosen": "Apple", "rejected": "Axe"}, TALK),
    "UltraFeedback, binarized": (
        {"prompt": "A fruit?", "chosen": [user("A fruit?"), assistant("Apple")], "rejected": [user("A fruit?"), assistant("Axe")]},
        [user("A fruit?")],
    ),
    "stack-exchange": ({"question": "A fruit?", "response_j": "Apple", "response_k": "Axe"}, "A fruit?"),
    "PKU-SafeRLHF": ({"prompt": "A fruit?", "response_0": "Axe", "response_1": "Apple", "better_response_id": 1}, "A fruit?"),
    "SHP": ({"history": "A fruit?", "human_ref_A": "Apple", "human_ref_B": "Axe", "labels": 1}, "A fruit?"),
    "arena": (
        {
            "conversation_a": [user("A fruit?"), assistant("Axe")],
            "conversation_b": [user("A fruit?"), assistant("Apple")],
            "winner": "model_b",
        },
        [user("A fruit?")],
    ),
    "reject": ({"conversations": [human("A fruit?")], "chosen": gpt("Apple"), "reject": gpt("Axe")}, [user("A fruit?")]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(tmp_path, name):
    row, prompt = PAIRS[name]
    pair = read(tmp_path, row)
    assert isinstance(pair, Pair) and (pair.prompt, pair.first, pair.second, pair.strength) == (prompt, "Apple", "Axe", 1.0)


def test_help_and_harm_are_two_labels_of_a_pair(tmp_path):
    row = {"prompt": "A fruit?", "response_0": "Axe", "response_1": "Apple", "better_response_id": 0, "safer_response_id": 1}
    pair = read(tmp_path, row | {"is_response_0_safe": False, "is_response_1_safe": True})
    assert (pair.first, pair.labels) == ("Axe", {"helpful": 1.0, "harmful": 1.0})
    assert pair.ratings == ({"harmful": 1.0}, {"harmful": -1.0})
    with pytest.raises(UserWarning, match="nobody reads column safer_response_id"):  # nobody said whether they are safe
        read(tmp_path, row)


def test_a_tie_of_an_arena(tmp_path):
    row = {"conversation_a": [user("A fruit?"), assistant("Axe")], "conversation_b": [user("A fruit?"), assistant("Apple")]}
    assert read(tmp_path, {**row, "winner": "tie"}).strength == 0.5


def test_a_renamed_instruction_keeps_its_input(tmp_path):
    row = {"instruction": "Name it:", "input": "a fruit", "good": "Apple", "bad": "Axe"}
    pair = read(tmp_path, row, columns={"prompt": "instruction", "chosen": "good", "rejected": "bad"})
    assert (pair.prompt, pair.first, pair.second) == ("Name it:\na fruit", "Apple", "Axe")


THUMBS = {
    "alpaca": ({"instruction": "Name it:", "input": "a fruit", "output": "Apple"}, "Name it:\na fruit", 1.0),
    "TRL": ({"prompt": "A fruit?", "completion": "Apple"}, "A fruit?", 1.0),
    "question and answer": ({"question": "A fruit?", "answer": "Apple"}, "A fruit?", 1.0),
    "ms-swift": ({"query": "A fruit?", "response": "Apple", "system": "Be short."}, [system("Be short."), user("A fruit?")], 1.0),
    "messages": ({"messages": [*TALK, assistant("Apple")]}, TALK, 1.0),
    "ShareGPT": ({"conversations": [human("A fruit?"), gpt("Apple")]}, [user("A fruit?")], 1.0),
    "LLaMA-Factory, KTO": ({"messages": [user("A fruit?"), assistant("Apple")], "label": False}, [user("A fruit?")], 0.0),
    "LLaMA-Factory, alpaca KTO": ({"instruction": "A fruit?", "output": "Apple", "kto_tag": "true"}, "A fruit?", 1.0),
    "TRL, KTO": ({"prompt": [user("A fruit?")], "completion": [assistant("Apple")], "label": True}, [user("A fruit?")], 1.0),
    "one-turn object": ({"prompt": user("A fruit?"), "completion": assistant("Apple"), "label": 0.25}, [user("A fruit?")], 0.25),
}


@pytest.mark.parametrize("name", THUMBS)
def test_thumbs_and_plain_supervised_rows(tmp_path, name):
    row, prompt, label = THUMBS[name]
    thumb = read(tmp_path, row)
    assert isinstance(thumb, Thumb) and (thumb.prompt, thumb.output, thumb.label) == (prompt, "Apple", label)


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}


@pytest.mark.parametrize(
    "turns",
    [
        [  # OpenAI: arguments as a string of JSON, no content
            user("Rome?"),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "20"},
            assistant("It is 20."),
        ],
        [  # Anthropic
            user("Rome?"),
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Rome"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "20"}]}]},
            assistant("It is 20."),
        ],
        [  # ShareGPT, LLaMA-Factory
            human("Rome?"),
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
            {"from": "observation", "value": "20"},
            gpt("It is 20."),
        ],
        [  # ms-swift
            user("Rome?"),
            {"role": "tool_call", "content": '{"name": "weather", "arguments": {"city": "Rome"}}'},
            {"role": "tool_response", "content": "20"},
            assistant("It is 20."),
        ],
    ],
)
def test_calls_of_tools_are_kept(tmp_path, turns):
    thumb = read(tmp_path, {"messages": turns})
    call, result, last = thumb.output
    assert thumb.prompt == [user("Rome?")] and last == assistant("It is 20.")
    assert call["role"] == "assistant" and [{k: v for k, v in one.items() if k != "id"} for one in call["tool_calls"]] == [CALL]
    assert (result["role"], result["content"]) == ("tool", "20")


def test_a_call_is_an_answer_of_its_own(tmp_path):
    calling = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather", "arguments": "{}"}}]}
    pair = read(tmp_path, {"prompt": [user("Rome?")], "chosen": [calling], "rejected": [assistant("No idea.")]})
    assert pair.first[0]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {}} and pair.second == "No idea."


REFUSED = {
    "unknown question": (
        {"frage": "Ein Obst?", "chosen": "The apple", "rejected": "The axe"},
        "no prompt: nobody reads frage (columns: {prompt: frage}",
    ),
    "unknown turns": ({"dialog_turns": ["Hi"], "chosen": "The apple", "rejected": "The axe"}, "nobody reads dialog_turns"),
    "a score that nobody reads": ({"prompt": "p", "response": "a", "score": 0.1}, "column 'score' says how good the answer is"),
    "a rating": ({"messages": [user("p"), assistant("a")], "rating": 1}, "column 'rating' says how good the answer is"),
    "another prompt": (
        {"prompt": "Ein Obst?", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        "prompt is none of what chosen and rejected share",
    ),
    "two systems": ({"system": "x", "prompt": [system("y"), user("q")], "chosen": "a", "rejected": "b"}, "two system turns"),
    "pictures": (
        {"prompt": "p", "image": "a.png", "chosen": "a", "rejected": "b"},
        "holds an image or a video under 'image' (picture_texts",
    ),
    "pictures in parts": (
        {
            "prompt": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}, {"type": "text", "text": "q"}]}
            ],
            "chosen": "a",
            "rejected": "b",
        },
        "the prompt holds an image or a video",
    ),
    "no choice": (
        {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 7},
        "better_response_id: got '7', takes 0, 1",
    ),
    "no answer": ({"messages": [user("p")]}, "ends with the user's turn, takes the assistant's"),
    "history": ({"query": "q", "history": ["x"], "response": "a"}, "history[0]: takes [question, answer]"),
    "a call without a name": (
        {"messages": [user("q"), {"role": "assistant", "content": None, "tool_calls": [{"function": {}}]}]},
        "takes calls of tools as",
    ),
    "sound": (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, assistant("a")]},
        "got a part of type 'input_audio'",
    ),
    "words alone": ({"text": "once upon a time"}, "columns text look like no known schema"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_whose_prompt_cannot_be_told_is_refused(tmp_path, name):
    row, why = REFUSED[name]
    with pytest.raises(UserError) as error:
        mm.data.texts(written(tmp_path, [row]))
    assert why in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600


def test_columns_that_nobody_reads_are_named_once(tmp_path):
    row = {"question": "q", "chosen": "a", "rejected": "b", "topic": "x", "id": 1, "empty": "", "none": None}
    path = written(tmp_path, [row, row, {**row, "later": 3}])
    with pytest.warns(UserWarning) as caught:
        mm.data.texts(path).first(3)
    assert [str(warning.message) for warning in caught] == ["records: nobody reads column topic", "records: nobody reads column later"]


def test_the_words_that_both_share_are_the_prompt_where_nothing_else_can_be(tmp_path):
    row = {"chosen": "The sky is blue.", "rejected": "The sky is black.", "source": "x", "margin": 2}
    with pytest.warns(UserWarning, match="nobody reads columns margin, source"):
        (pair,) = mm.data.texts(written(tmp_path, [row])).first(2)
    assert pair.prompt == "The sky is"


def test_json_lines_that_are_called_json(tmp_path):
    (pair,) = mm.data.texts(written(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b"}], "data.json")).first(2)
    assert (pair.prompt, pair.first) == ("p", "a")
    two = written(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "c", "rejected": "d"}], "two.json")
    assert [pair.prompt for pair in mm.data.texts(two).first(3)] == ["p", "q"]


def test_strengths_are_numbers(tmp_path):
    assert math.isnan(read(tmp_path, {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 2, None]}).scores[2])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "\n\nHuman: A fruit?\n\nAssistant:", "chosen": " Apple", "rejected": " Axe"},
        {"prompt": "Human: A fruit?\n\nAssistant: ", "chosen": "Apple", "rejected": "Axe"},
        {"messages": '[{"role": "user", "content": "A fruit?"}, {"role": "assistant", "content": "Apple"}]', "rejected_response": "Axe"},
        {"chosen": json.dumps([user("A fruit?"), assistant("Apple")]), "rejected": json.dumps([user("A fruit?"), assistant("Axe")])},
        {"conversations": json.dumps([human("A fruit?")]), "chosen": "Apple", "rejected": "Axe"},
    ],
)
def test_transcripts_as_prompts_and_turns_in_cells(tmp_path, row):
    pair = read(tmp_path, row)
    assert (pair.prompt, pair.first, pair.second) == ([user("A fruit?")], "Apple", "Axe")


def test_text_forms_stay_text(tmp_path):
    row = {"prompt": "\n\nHuman: A fruit?\n\nAssistant:", "chosen": " Apple", "rejected": " Axe"}
    assert read(tmp_path, row, transcripts="text")[:3] == (row["prompt"], " Apple", " Axe")
    row = {"prompt": "As JSON?", "chosen": '["a", "b"]', "rejected": '[{"name": "a"}]'}
    assert read(tmp_path, row)[:3] == tuple(row.values())


def test_anthropics_system_of_parts(tmp_path):
    row = {"system": [{"type": "text", "text": "Be short."}], "messages": [user("A fruit?"), assistant("Apple")]}
    assert read(tmp_path, row).prompt == [system("Be short."), user("A fruit?")]


def test_labels_are_a_files_own(tmp_path):
    """A row without a label among rows with one is not known; it is no demonstration."""
    up, silent = {"prompt": "p", "completion": "a", "label": True}, {"prompt": "q", "completion": "b"}
    records = mm.data.texts(written(tmp_path, [up, silent]))
    assert [thumb.output for thumb in records.first(3)] == ["a"] and records.dropped["unlabelled"] == 1
    records = mm.data.texts(written(tmp_path, [silent, up]))
    assert [thumb.output for thumb in records.first(3)] == ["b"]
    assert [*records.broken.values()] == ["a label, and the first rows have none (schema: thumbs reads rows with labels)"]
    with pytest.raises(UserError, match=r"no usable record .* 1 unlabelled"):
        mm.data.texts(written(tmp_path, [silent]), schema="thumbs")
    assert mm.data.texts(written(tmp_path, [silent]), schema="demonstrations").first(1)[0].label == 1.0


@pytest.mark.parametrize("ours", ["prompt", "chosen", "rejected"])
def test_a_column_that_is_named_has_to_be_there(tmp_path, ours):
    row = {"prompt": "p", "chosen": "The sky a", "rejected": "The sky b"}
    line = rf"no column 'tpyo' \(columns: {{{ours}: tpyo}}\); has chosen, prompt, rejected"
    with pytest.raises(UserError, match=line):
        mm.data.texts(written(tmp_path, [row]), columns={ours: "tpyo"})


def test_files_with_endings_in_capitals(tmp_path):
    assert len(mm.data.texts(written(tmp_path, [{"prompt": "p", "completion": "a"}], "DATA.JSONL")).first(2)) == 1


def test_reasoning_beside_an_answer_is_kept(tmp_path):
    thumb = read(tmp_path, {"messages": [user("p"), {**assistant("a"), "reasoning_content": "hm"}]})
    assert thumb.output == [{**assistant("a"), "reasoning_content": "hm"}]


def test_names_of_columns_are_on_one_line(tmp_path):
    row = {"no\nname " + "x" * 500: "p", "chosen": "The a", "rejected": "The b"}
    with pytest.raises(UserError) as error:
        mm.data.texts(written(tmp_path, [row]))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500 and "nobody reads no name_x" in str(error.value)


def test_a_data_set_that_its_library_has_saved(tmp_path):
    import datasets

    rows = [{"prompt": f"What {n}?", "chosen": "A dog.", "rejected": "A cat."} for n in range(5)]
    loaded = datasets.Dataset.from_list(rows)
    loaded.save_to_disk(tmp_path / "one", num_shards=2)
    (tmp_path / "one" / "data-99999-of-99999.arrow").write_bytes(b"left over")  # its state does not name it
    assert [(pair.prompt, pair.first) for pair in mm.data.texts(str(tmp_path / "one")).first(9)] == [
        (row["prompt"], "A dog.") for row in rows
    ]
    datasets.DatasetDict({"train": loaded, "test": loaded}).save_to_disk(tmp_path / "two")
    with pytest.raises(UserError, match=r"two holds several splits, takes one of them: \S*two/test, \S*two/train$"):
        mm.data.texts(str(tmp_path / "two"))
    (tmp_path / "one" / "state.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="names no files of a data set"):
        mm.data.texts(str(tmp_path / "one"))


def test_a_table_whose_columns_are_parted_by_tabs(tmp_path):
    (tmp_path / "a.tsv").write_text('prompt\tchosen\trejected\nA fruit, say?\t"Apple\tor pear"\tAxe\n', encoding="utf-8-sig")
    (pair,) = mm.data.texts(str(tmp_path / "a.tsv")).first(2)
    assert (pair.prompt, pair.first, pair.second) == ("A fruit, say?", "Apple\tor pear", "Axe")
    (prompt,) = mm.data.prompts(str(tmp_path / "a.tsv"))
    assert (prompt.content, dict(prompt.columns)) == ("A fruit, say?", {"chosen": "Apple\tor pear", "rejected": "Axe"})
