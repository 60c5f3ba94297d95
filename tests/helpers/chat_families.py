"""Chat templates as model families write them, before tokenizers of letters with the families' own special tokens."""

from __future__ import annotations

from typing import NamedTuple

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,!?\n:[]<>/_-'|&+=(){}\"*;\\"
ASK_CHATML = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
THOUGHT = "{% set content = m['content'] %}{% if m['role'] == 'assistant' and '</think>' in content %}"


class ChatFamily(NamedTuple):
    """A template, the special tokens that it writes, what ends an answer, and what the tokenizer puts before and behind a text."""

    template: str
    special: tuple[str, ...]
    eos: str
    bos: str | None = None
    before: bool = False
    behind: bool = False
    system: bool = True
    keeps_reasoning: bool = True


CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}" + ASK_CHATML
QWEN2_5 = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Qwen.<|im_end|>\n{% endif %}" + CHATML
QWEN3 = (
    "{% for m in messages %}" + THOUGHT + "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% else %}{% set thought = '' %}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ content }}<|im_end|>\n{% endfor %}" + ASK_CHATML
)
R1 = (
    "{{ bos_token }}{% for m in messages %}" + THOUGHT + "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{% if m['role'] == 'system' %}{{ content }}{% elif m['role'] == 'user' %}<|User|>{{ content }}"
    "{% else %}<|Assistant|>{{ content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set head = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ (head if loop.first else '') + m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}[SYS]{{ m['content'] }}[/SYS]{% elif m['role'] == 'user' %}"
    "[INST]{{ m['content'] }}[/INST]{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}ASSISTANT: {{ m['content'] }}{{ eos_token }}"
    "{% elif m['role'] == 'user' %}USER: {{ m['content'] }} {% else %}{{ m['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
OLMO = "{{ bos_token }}" + ZEPHYR
IM = ("<|im_start|>", "<|im_end|>")
FAMILIES = {
    "ChatML": ChatFamily(CHATML, IM, "<|im_end|>"),
    "Qwen2.5": ChatFamily(QWEN2_5, IM, "<|im_end|>"),
    "Qwen3": ChatFamily(QWEN3, IM, "<|im_end|>"),
    "DeepSeek-R1": ChatFamily(R1, ("<s>", "<|User|>", "<|Assistant|>", "<|end|>"), "<|end|>", "<s>", before=True, keeps_reasoning=False),
    "Llama-3": ChatFamily(LLAMA3, ("<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>", "<s>", before=True),
    "Llama-2": ChatFamily(LLAMA2, ("<s>", "</s>"), "</s>", "<s>", before=True),
    "Mistral": ChatFamily(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]", "[SYS]", "[/SYS]"), "</s>", "<s>", before=True),
    "Gemma-2": ChatFamily(GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>", before=True, system=False),
    "Phi-3": ChatFamily(PHI3, ("<|end|>", "<|user|>", "<|system|>", "<|assistant|>", "<|endoftext|>"), "<|endoftext|>"),
    "Zephyr": ChatFamily(ZEPHYR, ("<s>", "</s>"), "</s>", "<s>", before=True),
    "Vicuna": ChatFamily(VICUNA, ("<s>", "</s>"), "</s>", "<s>", before=True, behind=True),
    "OLMo": ChatFamily(OLMO, ("<|endoftext|>",), "<|endoftext|>", "<|endoftext|>", before=True),
}

TOOLS_QWEN = (
    "<|im_start|>system\n{% for t in tools or [] %}<tools>{{ t | tojson }}</tools>{% endfor %}<|im_end|>\n{% for m in messages %}"
    "{% if m.role == 'tool' %}{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n' }}<tool_response>\n{{ m.content }}\n</tool_response>{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n"
    "{% endif %}{% else %}<|im_start|>{{ m.role }}{% if m.content %}{{ '\n' }}{{ m.content }}{% endif %}{% for c in m.tool_calls or [] %}"
    "{{ '\n' }}<tool_call>"
    '\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endif %}{% endfor %}" + ASK_CHATML
)
TOOLS_LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.tool_calls is defined %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('one call at a time') }}{% endif %}<|start_header_id|>assistant<|end_header_id|>\n\n{% set c = m.tool_calls[0] %}"
    '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}<|eot_id|>{% else %}<|start_header_id|>'
    "{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n{% if m.role == 'user' %}{% for t in tools or [] %}"
    "{{ t | tojson }}\n\n{% endfor %}{% endif %}{{ (m.content | tojson) if m.role == 'tool' else (m.content | trim) }}<|eot_id|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TOOLS_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{% if loop.first and tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}"
    "[/AVAILABLE_TOOLS]{% endif %}[INST] {{ m.content }}[/INST]{% elif m.role == 'tool' %}{% if m.tool_call_id is not defined or "
    "m.tool_call_id | length != 9 %}{{ raise_exception('a call has an id of nine letters') }}{% endif %}[TOOL_RESULTS] {\"content\": "
    '{{ m.content }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]{% elif m.tool_calls is defined %}[TOOL_CALLS] ['
    "{% for c in m.tool_calls %}{% if c.id is not defined or c.id | length != 9 %}{{ raise_exception('a call has an id of nine letters') }}"
    "{% endif %}{{ (c.function | tojson)[:-1] }}, \"id\": \"{{ c.id }}\"}{{ ']' if loop.last else ', ' }}{% endfor %}{{ eos_token }}"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA_IDS = ("<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")
MISTRAL_IDS = ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
WITH_TOOLS = {
    "Qwen": ChatFamily(TOOLS_QWEN, (*IM, "<tool_call>", "</tool_call>"), "<|im_end|>"),
    "Llama-3.1": ChatFamily(TOOLS_LLAMA, LLAMA_IDS, "<|eot_id|>", "<s>", before=True),
    "Mistral": ChatFamily(TOOLS_MISTRAL, MISTRAL_IDS, "</s>", "<s>", before=True),
}


def tokenizer(family: ChatFamily, **more):
    """A token for each letter, and the family's own; BOS before and EOS behind a text where its tokenizer puts them."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {token: number for number, token in enumerate(["<pad>", *family.special, *LETTERS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="?"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
    form = f"{family.bos + ' ' if family.before else ''}$A{' ' + family.eos if family.behind else ''}"
    added = [(token, words[token]) for token in {family.bos, family.eos} if token in form.split()]
    inner.post_processor = processors.TemplateProcessing(single=form, special_tokens=added)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token=family.eos, bos_token=family.bos, clean_up_tokenization_spaces=False,
        additional_special_tokens=list(family.special), **more,
    )  # fmt: skip
    made.chat_template = family.template
    return made
