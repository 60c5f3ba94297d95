"""Calls of tools in the forms that chat templates write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2
import pytest

from mmalign.policies.language.tool_calls import reader

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
