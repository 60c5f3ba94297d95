"""Prompts and completions as token ids: a tokenizer, its chat template, and which tokens a completion is answerable for.

A conversation is a list of ``{"role": ..., "content": ...}``. A prompt ends where the template asks for the assistant; a completion
is what follows: one assistant turn (a string), or several turns, of which only the assistant's are trained and the others (user,
tool) are context. Which tokens those are comes from the template's own ``{% generation %}`` marks where it has them, and else from
what each turn adds to the text before it; the pieces are tokenized apart, so that a prompt has the same ids here as in sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmalign.types import UserError

__all__: list[str] = []  # nothing here is looked up by name

Turn = Mapping[str, Any]


class Row(NamedTuple):
    """Token ids of one row. prompt: what is given. completion: what follows. trained: of each of those, whether it counts."""

    prompt: list[int]
    completion: list[int]
    trained: list[bool]


class Chat:
    """A tokenizer with its chat template, if it has one.

    template: whether prompts go through the chat template; a string is then the user's turn. system: the system turn of prompts that
    have none. stops: ids that end a completion, besides the end of text and what the template ends a turn with. never: ids that no
    completion says (pad, bos, unk, placeholders of media), as far as none ends one. Errors: UserError for a template that is asked for
    and not there, a tokenizer without an end of text.
    """

    def __init__(
        self, tokenizer: Any, *, template: bool | None = None, system: str | None = None, stops: Sequence[int] = (),
        never: Sequence[int] = (),
    ):  # fmt: skip
        self.tokenizer, self.system = tokenizer, system
        has = bool(getattr(tokenizer, "chat_template", None))
        self.template = has if template is None else template
        if self.template and not has:
            raise UserError("policy.template: this tokenizer has no chat template; takes false, or a tokenizer with one")
        if system is not None and not self.template:
            raise UserError("policy.system: got a system turn, and prompts without a chat template have none")
        end = tokenizer.eos_token_id
        ends = [*stops, *(self._end_of_turn() if self.template else []), *([] if end is None else [end])]
        if not ends:
            raise UserError(
                "policy.tokenizer: has no eos_token, so no completion would end; takes a tokenizer with one (a pad_token is not needed)"
            )
        self.stops = tuple(dict.fromkeys(int(end) for end in ends))
        self.end = self.stops[0] if end is None else end
        self.never = tuple(sorted(set(never) - set(self.stops)))

    def prompt(self, prompt: Any, *, system: str | None = None) -> list[int]:
        """A prompt's ids, up to where the assistant answers. ``system``: another system turn than the policy's own.

        Errors: UserError for a conversation without a template, turns that the template drops or refuses, an empty prompt.
        """
        if not self.template:
            return self._plain(prompt, system)
        text = self._rendered(self.turns(prompt, system=system), ask=True)
        return self._ids(text)

    def row(self, prompt: Any, output: Any) -> Row:
        """A prompt and a completion that somebody gave, a string or the turns that follow.

        Tokens after an end-of-turn token inside an assistant's piece (a template's line break) are context, and dropped at the end;
        a last turn that the template does not end is ended here. Errors: UserError for an empty completion, one that holds an id that
        is never said, and as in ``prompt``.
        """
        row = self._row(prompt, output)
        for token, counts in zip(row.completion, row.trained, strict=True):
            if counts and token in self.never:
                said = f"{self.tokenizer.convert_ids_to_tokens(token)!r} (id {token})"
                raise UserError(f"completion: holds {said}, to which the policy gives no probability; takes words that the tokenizer knows")
        return row

    def _row(self, prompt: Any, output: Any) -> Row:
        added = [{"role": "assistant", "content": output}] if isinstance(output, str) else list(output)
        said = [turn["content"] for turn in added if turn.get("role") == "assistant"]
        if not said or not all(said):
            raise UserError("completion: got an empty one, takes at least one token of the assistant's")
        if not self.template:
            if not isinstance(output, str):
                raise UserError("completion: got turns, and this policy has no chat template; takes a string")
            ids = [*self._ids(output), self.end]
            return Row(self._plain(prompt, None), ids, [True] * len(ids))
        turns = self.turns(prompt)
        row = self._marked(turns, added) if "{% generation" in _source(self.tokenizer) else self._pieces(turns, added)
        return self._ended(row, added[-1].get("role") == "assistant")

    def turns(self, prompt: Any, *, system: str | None = None) -> list[Turn]:
        """A prompt as a conversation, with the system turn that was asked for."""
        turns: list[Turn] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if not turns or turns[-1].get("role") == "assistant":
            raise UserError("prompt: got a conversation that ends with the assistant's turn (or none), takes one that asks for it")
        wanted = system if system is not None else self.system
        if system is not None and turns[0]["role"] == "system":
            turns = turns[1:]
        if wanted is not None and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": wanted}, *turns]
        return turns

    def text(self, ids: Sequence[int]) -> str:
        """A completion as rewards see it, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    # ---- inside

    def _end_of_turn(self) -> list[int]:
        """The special token that the template writes behind an assistant's turn, if it does."""
        from jinja2 import TemplateError

        said = "0"
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
        try:
            text = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        except TemplateError:
            return []
        ids = self._ids(text[text.rfind(said) + len(said) :])
        special = {*self.tokenizer.all_special_ids, *(n for n, token in self.tokenizer.added_tokens_decoder.items() if token.special)}
        return [token for token in ids if token in special][:1]

    def _plain(self, prompt: Any, system: str | None) -> list[int]:
        if not isinstance(prompt, str):
            raise UserError("prompt: got a conversation, and this policy has no chat template; takes a string")
        ids = list(self.tokenizer(prompt if system is None else f"{system}\n{prompt}")["input_ids"])
        while ids and ids[-1] in self.stops:
            ids.pop()
        if not ids and self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id]
        if not ids:
            raise UserError("prompt: got an empty one, takes at least one token")
        return ids

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _rendered(self, turns: Sequence[Turn], *, ask: bool) -> str:
        """Text of a conversation. Errors: UserError where the template refuses a turn, or leaves out what it says."""
        from jinja2 import TemplateError

        try:
            text = str(self.tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=ask))
        except TemplateError as error:
            roles = ", ".join(str(turn.get("role")) for turn in turns)
            raise UserError(f"policy.template: refuses turns of {roles}: {str(error).splitlines()[0]}") from error
        for turn in turns:
            content = turn.get("content")
            if turn.get("role") != "assistant" and isinstance(content, str) and content.strip() not in text:
                raise UserError(f"policy.template: drops the {turn.get('role')} turn ({content.strip()[:40]!r} is not in what it makes)")
        return text

    def _pieces(self, turns: list[Turn], added: Sequence[Turn]) -> Row:
        """What each turn adds to the text before it."""
        before = self._rendered(turns, ask=True)
        prompt, completion, trained = self._ids(before), list[int](), list[bool]()
        for count, turn in enumerate(added, start=1):
            own = turn.get("role") == "assistant"
            coming = not own and count < len(added) and added[count].get("role") == "assistant"
            after = self._rendered([*turns, *added[:count]], ask=coming)
            if not after.startswith(before):
                raise UserError(
                    "policy.template: writes earlier turns otherwise once later ones follow; takes a template with {% generation %} marks"
                )
            ids = self._ids(after[len(before) :])
            completion += ids
            trained += self._until_stop(ids) if own else [False] * len(ids)
            before = after
        return Row(prompt, completion, trained)

    def _marked(self, turns: list[Turn], added: Sequence[Turn]) -> Row:
        """By the template's own marks."""
        self._rendered([*turns, *added], ask=False)
        told: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        found = self.tokenizer.apply_chat_template([*turns, *added], **told)
        ids, marks = list(found["input_ids"]), [bool(mark) for mark in found["assistant_masks"]]
        prompt = self.prompt(turns)
        split = len(prompt)
        if ids[:split] != prompt:
            earlier = sum(turn.get("role") == "assistant" for turn in turns)
            split = _start_of_run(marks, earlier)
        if not any(marks[split:]):
            raise UserError("policy.template: its {% generation %} marks are empty for this completion")
        return Row(ids[:split], ids[split:], marks[split:])

    def _until_stop(self, ids: Sequence[int]) -> list[bool]:
        last = max((place for place, token in enumerate(ids) if token in self.stops), default=len(ids) - 1)
        return [place <= last for place in range(len(ids))]

    def _ended(self, row: Row, own: bool) -> Row:
        """A row whose last assistant turn ends with a token that stops sampling; what follows it is dropped."""
        last = max(place for place, counts in enumerate(row.trained) if counts)
        completion, trained = list(row.completion[: last + 1]), list(row.trained[: last + 1])
        if own and completion[-1] not in self.stops:
            if last + 1 < len(row.completion) and row.completion[last + 1] in self.stops:
                return Row(row.prompt, [*completion, row.completion[last + 1]], [*trained, True])
            return Row(row.prompt, [*completion, self.end], [*trained, True])
        return Row(row.prompt, completion, trained)


def _source(tokenizer: Any) -> str:
    template = tokenizer.chat_template
    return "".join(template.values()) if isinstance(template, Mapping) else str(template)


def _start_of_run(marks: Sequence[bool], skip: int) -> int:
    """Where the run of marks number ``skip`` (from 0) starts; the end where there are fewer."""
    starts = [place for place, mark in enumerate(marks) if mark and (place == 0 or not marks[place - 1])]
    return starts[skip] if skip < len(starts) else len(marks)
