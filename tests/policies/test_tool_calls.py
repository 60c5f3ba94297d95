"""Calls of tools in the forms that chat templates write them: in what a tokenizer's template makes, and in what models write badly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2
import pytest

import mmalign as mm
from mmalign.policies.language.drawing.replies import read_reply
from mmalign.policies.language.prompts.chat import Chat
from mmalign.policies.language.prompts.tool_calls import reader
from tests.helpers import chat_families
from tests.helpers.chat_families import WITH_TOOLS

CALLS = "{% for c in m.tool_calls or [] %}"
FAMILIES = {
    "qwen": (
        CALLS + "\n<tool_call>\n{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ "
        "c.function.arguments | tojson }}}\n</tool_call>{% endfor %}",
        'I look.\n<tool_call>\n{"name": "find", "arguments": {"word": "fox", "most": '
        '3}}\n</tool_call>\n<tool_call>\n{"name": "go", "arguments": {}}\n</tool_call>',
    ),
    "llama": (
        CALLS + '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}{% endfor %}',
        '{"name": "find", "parameters": {"word": "fox", "most": 3}}; {"name": "go", "parameters": {}}',
    ),
    "mistral": (
        '{% if m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}{"name": "{{ c.function.name }}", "arguments": '
        '{{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}{% endfor %}]{% endif %}',
        '[TOOL_CALLS] [{"name": "find", "arguments": {"word": "fox", "most": 3}, "id": "a"}, {"name": "go", "arguments": {}, "id": "b"}]',
    ),
    "deepseek": (
        "{% if m.tool_calls %}<calls>{% for c in m.tool_calls %}<call>function<sep>{{ c.function.name }}\n```json\n"
        "{{ c.function.arguments | tojson }}\n```</call>{% endfor %}</calls>{% endif %}",
        '<calls><call>function<sep>find\n```json\n{"word": "fox", "most": '
        '3}\n```</call>\n<call>function<sep>go\n```json\n{}\n```</call></calls>',
    ),
    "qwen_coder": (
        CALLS + "\n<tool_call>\n<function={{ c.function.name }}>\n{% for k, v in "
        "c.function.arguments.items() %}<parameter={{ k }}>\n{{ v }}\n"
        "</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}",
        "<tool_call>\n<function=find>\n<parameter=word>\nfox\n</parameter>\n<parameter=most>\n3\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=go>\n</function>\n</tool_call>",
    ),
}  # fmt: skip


def rendering(calls: str) -> Any:
    template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content or '' }}"
        + calls
        + "<|end|>\n{% endfor %}{% if ask %}<|assistant|>\n{% endif %}"
    )

    def render(turns: Sequence[Any], ask: bool) -> str:
        return jinja2.Environment(autoescape=False).from_string(template).render(messages=turns, ask=ask)

    return render


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_are_read_as_the_template_writes_them(family: str) -> None:
    calls, words = FAMILIES[family]
    read = reader(rendering(calls))
    assert read is not None
    assert read(words) == [{"name": "find", "arguments": {"word": "fox", "most": 3}}, {"name": "go", "arguments": {}}]
    assert read("There is nothing to look for.") == []


def test_what_is_no_call_is_said() -> None:
    read = reader(rendering(FAMILIES["qwen"][0]))
    assert read is not None
    [wrong] = read('<tool_call>\n{"name": "find", "argu')
    assert wrong["name"] == "" and wrong["error"].startswith("is no object of JSON")
    assert read('<tool_call>\n{"arguments": {}}\n</tool_call>') == [{"name": "", "error": "has no name"}]


def test_a_template_without_a_form_has_no_reader() -> None:
    assert reader(rendering("")) is None


def find(word: str, most: int = 1) -> str:
    """Words."""
    return word * most


TOOLS = mm.environments.tools({"find": find, "calculate": mm.environments.calculator()})
USER = {"role": "user", "content": "Find it."}
FIND = ("find", {"word": 'a "fox" {1} <b>', "most": 2})
SUM = ("calculate", {"expression": "2 * 3"})


def chat_of(family: str) -> Chat:
    return Chat(chat_families.tokenizer(WITH_TOOLS[family]), tools=TOOLS.schemas)  # type: ignore[attr-defined]


def said(chat: Chat, *calls: tuple[str, dict[str, Any]], content: str = "") -> str:
    """What the tokenizer's own template writes for a turn with these calls, up to its end."""
    called = [{"type": "function", "id": f"abcdefgh{place}", "function": {"name": name, "arguments": arguments}}
              for place, (name, arguments) in enumerate(calls)]  # fmt: skip
    more = chat.options
    asked = chat.tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True, **more)
    turn = {"role": "assistant", "content": content, "tool_calls": called}
    text = chat.tokenizer.apply_chat_template([USER, turn], tokenize=False, **more).removeprefix(asked)
    ids = chat.ids(text)
    end = next(place for place, token in enumerate(ids) if token in chat.stops)
    return chat.words(ids[:end])


def read(chat: Chat, words: str) -> list[dict[str, Any]]:
    assert chat.calls is not None
    return chat.calls(words)


def answers(chat: Chat, words: str) -> list[dict[str, Any]]:
    """The replies of the tools to what a model wrote."""
    [reply] = TOOLS([[USER, {"role": "assistant", "content": words, "calls": read(chat, words)}]])
    return reply or []


@pytest.mark.parametrize("family", WITH_TOOLS)
def test_what_a_tokenizer_s_template_writes_is_read_back(family: str) -> None:
    chat = chat_of(family)
    for calls in ([FIND], [SUM], [FIND, SUM])[: 2 if family == "Llama-3.1" else 3]:
        words = said(chat, *calls)
        assert read(chat, words) == [{"name": name, "arguments": arguments} for name, arguments in calls], words
        assert [turn["content"] for turn in answers(chat, words)] == [find(**FIND[1]) if call is FIND else "6" for call in calls]
    assert read(chat, "It is a fox.") == [] and answers(chat, "It is a fox.") == []


def test_a_family_without_tools_has_no_reader() -> None:
    chat = Chat(chat_families.tokenizer(chat_families.FAMILIES["Qwen2.5"]), tools=TOOLS.schemas)  # type: ignore[attr-defined]
    assert chat.calls is None
    [[turn]] = TOOLS([[USER, {"role": "assistant", "content": "<calculate>2 * 3</calculate>"}]])
    assert turn["content"] == "6"


FORMS = {
    "Qwen": ("<tool_call>\n{}\n</tool_call>", "arguments"),
    "Llama-3.1": ("{}", "parameters"),
    "Mistral": ("[TOOL_CALLS] [{}]", "arguments"),
}


@pytest.mark.parametrize("family", WITH_TOOLS)
@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ('{"name": "find", "KEY": "{\\"word\\": \\"fox\\"}"}', "fox"),  # arguments as a string of JSON
        ('{"name": "find", "KEY": "fox"}', "fox"),  # as the words themselves
        ('{"KEY": {"word": "fox"}, "name": "find"}', "fox"),
        ('{"name": "fnd", "KEY": {"word": "fox"}}', "error: no tool is called 'fnd'; there are find, calculate"),
        ('{"name": "find"}', "error: TypeError: "),
        ('{"name": "find", "KEY": null}', "error: "),
        ('{"name": "find", "KEY": {"words": "fox"}}', "error: TypeError: "),
        ('{"name": ["find"], "KEY": {"word": "fox"}}', "error: has no name"),
        ('{"name": "", "KEY": {}}', "error: has no name"),
        ('{"name": "find", "KEY": {"word": "fox"}', "error: is no object of JSON: "),
        ("{'name': 'find'}", "error: is no object of JSON: "),
    ],
)
def test_calls_as_models_write_them(family: str, call: str, answer: str) -> None:
    chat, (form, key) = chat_of(family), FORMS[family]
    words = form.replace("{}", call.replace("KEY", key))
    [turn] = answers(chat, chat.words(chat.ids(words)))
    assert turn["content"].startswith(answer) and bool(turn.get("error")) == answer.startswith("error: ")


def test_a_wrong_call_takes_none_of_the_others_along() -> None:
    chat = chat_of("Qwen")
    words = "<tool_call>\n{oops}\n</tool_call>\n" + said(chat, SUM) + "\n<tool_call>"
    assert [(turn["content"][:28], turn.get("error")) for turn in answers(chat, words)] == [
        ("error: is no object of JSON:", True), ("6", None), ("error: is no object of JSON:", True),
    ]  # fmt: skip


def test_llama_s_tag_before_a_call_and_an_answer_that_is_json() -> None:
    chat = chat_of("Llama-3.1")
    assert read(chat, "<|python_tag|>" + said(chat, SUM)) == [{"name": SUM[0], "arguments": SUM[1]}]
    assert read(chat, '{"answer": 6}') == []


@pytest.mark.parametrize(
    ("family", "tail"),
    [
        (
            "Qwen",
            "\n<|im_start|>user\n<tool_response>\n6\n</tool_response>\n"
            "<tool_response>\n7\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "Llama-3.1",
            '<|start_header_id|>ipython<|end_header_id|>\n\n"6"<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n"7"<|eot_id|>'
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "Mistral",
            '[TOOL_RESULTS] {"content": 6, "call_id": "000000000"}[/TOOL_RESULTS][TOOL_RESULTS] {"content": 7, "call_id": "000000001"}'
            "[/TOOL_RESULTS]",
        ),
    ],
)  # fmt: skip
def test_answers_of_tools_stand_in_the_family_s_own_form(family: str, tail: str) -> None:
    chat = chat_of(family)
    read, added = read_reply(chat, [{"role": "tool", "name": "calculate", "content": text} for text in "67"])
    assert chat.words(read.ids) == tail and [turn["role"] for turn in added] == ["tool", "tool"]
