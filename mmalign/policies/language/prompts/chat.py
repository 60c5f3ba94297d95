"""Prompts and completions as token ids: a tokenizer, its chat template, and which tokens a completion is answerable for.

A conversation is a list of ``{"role": ..., "content": ...}``. A prompt ends where the template asks for the assistant; a completion
is what follows: one assistant turn (a string), or several turns, of which only the assistant's are trained and the others (user,
tool) are context. Which tokens those are comes from the template's own ``{% generation %}`` marks where it has them, and else from
what each turn adds to the text before it; the pieces are tokenized apart, so that a prompt has the same ids here as in sampling.

Special tokens are those that a user gets. A tokenizer's template writes all of them itself; behind a processor the tokenizer adds its own,
unless the text begins with BOS. An end of text that a tokenizer puts behind a prompt is taken off, a prompt that arrives rendered is not
rendered again, and an answer that carries its end is ended once. Where a template cuts out of an answer what it says (its reasoning),
the answer stands behind the prompt as it was given. ``agreement.py`` compares all of it with transformers' own.

Contents are strings or lists of parts: ``{"type": "text", "text": ...}``, ``{"type": "image", "path": ...}``, ``{"type": "video", ...}``
(``conversations.py``). Images and videos stand in prompts; ``vision.py`` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from mmalign.conversations import Turn, as_parts, as_text, media_of, texts_of
from mmalign.media import ONE, Medium
from mmalign.policies.language.prompts.encoded_prompts import Prompt
from mmalign.policies.language.prompts.encoded_rows import EncodedRow, start_of_run, until_stop, until_stops
from mmalign.policies.language.prompts.templates import (
    PROBE,
    Frame,
    adds_special,
    ends_of,
    frame,
    keeps,
    overlap,
    source,
    unended,
    unopened,
)
from mmalign.policies.language.prompts.tool_calls import Reader, reader
from mmalign.policies.language.prompts.vision import Vision
from mmalign.types import UserError


class Chat:
    """A tokenizer with its chat template, if it has one.

    vision: what reads images and videos, and whose processor's template goes before the tokenizer's. template: whether prompts go
    through the chat template; a string is then the user's turn. system: the system turn of prompts that have none. stops: ids that end a
    completion, besides the end of text and what the template ends a turn with. never: ids that no completion says (pad, bos, unk,
    placeholders of media), as far as none ends one. tools: what the template is given as such, where it takes
    them. Errors: UserError for a template that is asked for and not there, a tokenizer without an end of text.
    """

    def __init__(
        self, tokenizer: Any, *, template: bool | None = None, system: str | None = None, stops: Sequence[int] = (),
        never: Sequence[int] = (), vision: Vision | None = None, tools: Sequence[Mapping[str, Any]] = (),
    ):  # fmt: skip
        self.tokenizer, self.system, self.vision = tokenizer, system, vision
        processor = None if vision is None else vision.processor
        self.writer: Any = processor if getattr(processor, "chat_template", None) else tokenizer
        has = bool(getattr(self.writer, "chat_template", None))
        self.template = has if template is None else template
        if self.template and not has:
            raise UserError("policy.template: this tokenizer has no chat template; takes false, or a tokenizer with one")
        self.options = {"tools": list(tools)} if tools and self.template and "tools" in source(self.writer) else {}
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
        self.ends = ends_of(tokenizer, self.stops)
        with_ask, without_ask = (self.tried(PROBE, ask=ask)[0] or "" for ask in (True, False)) if self.template else ("", "")
        self.frame = frame(with_ask, without_ask, tokenizer) if self.template else Frame()
        self.never = tuple(sorted(set(never) - set(self.stops)))

    def prompt(self, prompt: Any, *, system: str | None = None) -> Prompt:
        """A prompt up to where the assistant answers. ``system``: another system turn than the policy's own.

        Errors: UserError for a conversation without a template, turns that the template drops or refuses, an empty prompt, media that
        cannot be read, that the model does not take, or that are fewer or more than their placeholders.
        """
        if not self.template:
            return self._plain(prompt, system)
        if self.arrives_rendered(prompt):
            return self._as_rendered(prompt, system)
        turns = self.turns(prompt, system=system)
        return self._with_media(self.rendered(turns, ask=True), turns)

    def arrives_rendered(self, prompt: Any) -> bool:
        """Whether a prompt is a text that this template has already made, see ``templates.Frame``."""
        return isinstance(prompt, str) and self.frame.around(prompt)

    def row(self, prompt: Any, output: Any) -> EncodedRow:
        """A prompt and a completion that somebody gave, a string or the turns that follow.

        Tokens after an end-of-turn token inside an assistant's piece (a template's line break) are context, and dropped at the end;
        a last turn that the template does not end is ended here. Errors: UserError for an empty completion, one that holds an id that
        is never said, and as in ``prompt``.
        """
        row = self._row(prompt, output)
        for token, counts in zip(row.completion, row.trained, strict=True):
            if counts and token in self.never:
                word = f"{self.tokenizer.convert_ids_to_tokens(token)!r} (id {token})"
                raise UserError(f"completion: holds {word}, to which the policy gives no probability; takes words that the tokenizer knows")
        return row

    def answer(self, output: Any) -> list[Turn]:
        """A completion as turns, the ends that its words carry taken off.

        Errors: UserError for a completion that is empty, that ends before its last word, or that is a picture.
        """
        if not isinstance(output, str) and not (isinstance(output, Sequence) and all(isinstance(turn, Mapping) for turn in output)):
            what = f"a tensor {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise UserError(f"completion: got {what}, takes a text, or the turns that follow")
        turns: list[Turn] = [{"role": "assistant", "content": output}] if isinstance(output, str) else list(output)
        added = [unended(turn, self.ends) for turn in turns]
        own = [turn for turn in added if turn.get("role") == "assistant"]
        for turn in own:
            for end in (end for text in texts_of(turn) for end in self.ends if end in text):
                raise UserError(f"completion: holds its end {end!r} before its last word; takes an answer that ends once")
        if not own or not all(turn.get("content") or turn.get("tool_calls") for turn in own):
            raise UserError("completion: got an empty one, takes at least one token of the assistant's")
        return added

    def _row(self, prompt: Any, output: Any) -> EncodedRow:
        added = self.answer(output)
        if not self.template:
            if not isinstance(output, str):
                raise UserError("completion: got turns, and this policy has no chat template; takes a string")
            ids = [*self.ids(added[0]["content"]), self.end]
            return EncodedRow(self._plain(prompt, None), ids, [True] * len(ids))
        if any(media_of([turn]) for turn in added if turn.get("role") == "assistant") or (media_of(added) and self.vision is None):
            raise UserError("completion: holds an image or a video, takes them in prompts, and in replies where the model sees")
        end = self.end if added[-1].get("role") == "assistant" else None
        if self.arrives_rendered(prompt):
            return self._pieces(PROBE, added, self._as_rendered(prompt, None)).ended(self.stops, end)
        turns = self.turns(prompt)
        marked = "{% generation" in source(self.writer) and self.vision is None
        marked = marked and keeps(self.rendered([*turns, *added], ask=False), added)
        row = self._marked(turns, added) if marked else self._pieces(turns, added)
        return row.ended(self.stops, end)

    def turns(self, prompt: Any, *, system: str | None = None) -> list[Turn]:
        """A prompt as a conversation, with the system turn that was asked for."""
        turns: list[Turn] = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [unended(turn, self.ends) for turn in prompt]
        )
        if not turns or turns[-1].get("role") == "assistant":
            raise UserError("prompt: got a conversation that ends with the assistant's turn (or none), takes one that asks for it")
        system_text = system if system is not None else self.system
        if system is not None and turns[0]["role"] == "system":
            turns = turns[1:]
        if system_text is not None and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": system_text}, *turns]
        return turns

    def rendered(self, turns: Sequence[Turn], *, ask: bool) -> str:
        """Text of a conversation. Errors: UserError where the template refuses a turn, or leaves out what it says."""
        text, why = self.tried(turns, ask=ask)
        if text is None:
            raise UserError(f"policy.template: {why}")
        return text

    def tried(
        self, turns: Sequence[Turn], *, ask: bool = True, forms: Sequence[Callable[[Sequence[Turn]], list[Turn]]] = ()
    ) -> tuple[str | None, str]:
        """Text of a conversation, or None and why the template does not write it; contents in the first form that it takes and keeps."""
        from jinja2 import TemplateError

        why = ""
        for form in forms or ((as_text,) if self.vision is None else (as_parts, as_text)):
            try:
                text = str(self.writer.apply_chat_template(form(turns), tokenize=False, add_generation_prompt=ask, **self.options))
            except (TemplateError, TypeError) as error:
                roles = ", ".join(str(turn.get("role")) for turn in turns)
                why = why or f"refuses turns of {roles}: {str(error).splitlines()[0]}"
                continue
            asked = [(str(turn.get("role")), part.strip()) for turn in turns if turn.get("role") != "assistant" for part in texts_of(turn)]
            lost = [(role, part) for role, part in asked if part not in text]
            if not lost:
                return text, ""
            role, part = lost[0]
            why = why or f"drops the {role} turn ({part[:40]!r} is not in what it makes)"
        return None, why

    @cached_property
    def calls(self) -> Reader | None:
        """What reads calls of tools in an answer, where prompts list tools and the template has a form for calls."""
        return reader(lambda turns, ask: self.tried(turns, ask=ask)[0]) if self.options else None

    def takes_parts(self, turns: Sequence[Turn], *, ask: bool) -> bool:
        """Whether the template reads contents as lists of parts."""
        return self.tried(turns, ask=ask, forms=(as_parts,))[0] is not None

    def text(self, ids: Sequence[int]) -> str:
        """A completion as rewards see it, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def words(self, ids: Sequence[int]) -> str:
        """Tokens as they are, special ones included."""
        return str(self.tokenizer.decode(list(ids)))

    def ids(self, text: str) -> list[int]:
        """A text's tokens, with nothing put before or behind them."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def piece(self, text: str, media: Sequence[Medium]) -> Prompt:
        """A text in the middle of a conversation, with its media; nothing is put around it. Errors: UserError, as ``Vision.read``."""
        if not media or self.vision is None:
            return Prompt(tuple(self.ids(text)), text)
        read, bos = self._open(self.vision.read_later(text, media)), self.tokenizer.bos_token
        return read.window(int(bool(bos) and read.ids[0] == self.tokenizer.bos_token_id and not text.startswith(bos)), len(read))

    # ---- inside

    def _end_of_turn(self) -> list[int]:
        """The special token that the template writes behind an assistant's turn, if it does."""
        content = "0"
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
        text, _ = self.tried(turns, ask=False)
        if text is None:
            return []
        ids = self.ids(text[text.rfind(content) + len(content) :])
        added = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        return [token for token in ids if token in added][:1]

    def _with_media(self, text: str, turns: Sequence[Turn]) -> Prompt:
        """A text with the media of its turns."""
        media = media_of(turns)
        if self.vision is not None:
            return self._open(self.vision.read(text, media, () if media else self._prompt_ids(text)))
        if media:
            raise UserError(f"prompt: holds {ONE[media[0].kind]}, and this model reads words alone; takes text")
        return Prompt(tuple(self.ids(text)), text)

    def _as_rendered(self, text: str, system: str | None) -> Prompt:
        """A prompt that arrives rendered, with the BOS that the template writes, once."""
        if system is not None or self.system is not None:
            raise UserError(
                "prompt: arrives rendered, so that a system turn cannot be put in; takes a conversation, or policy.system: null"
            )
        bos = self.tokenizer.bos_token
        if bos and not text.startswith(bos) and self.rendered(PROBE, ask=True).startswith(bos):
            text = bos + text
        return self._with_media(text, ())

    def _prompt_ids(self, text: str) -> list[int]:
        """A text's ids with what tokenizer and processor put before it; BOS once."""
        text = text if self.vision is None else self.vision.laid_out(text)
        return list(self.tokenizer(text, add_special_tokens=adds_special(self.tokenizer, text))["input_ids"])

    def _open(self, prompt: Prompt) -> Prompt:
        """A prompt without the ends that the tokenizer put behind it: the answer follows."""
        count = len(prompt)
        if not prompt.text.rstrip().endswith(self.ends):
            while count > 1 and prompt.ids[count - 1] in self.stops:
                count -= 1
        return prompt if count == len(prompt) else prompt.window(0, count)

    def _plain(self, prompt: Any, system: str | None) -> Prompt:
        """Without a template; of a conversation, a single turn with media, which stand where it says."""
        if not isinstance(prompt, str) and self.vision is not None and len(prompt) == 1 and (media := media_of(prompt)):
            tokens, parts = self.vision.tokens, as_parts(prompt)[0]["content"]
            text = "".join(part["text"] if part["type"] == "text" else tokens.get(part["type"], "") for part in parts)
            return self._open(self.vision.read(text if system is None else f"{system}\n{text}", media))
        if not isinstance(prompt, str):
            raise UserError("prompt: got a conversation, and this policy has no chat template; takes a string")
        ids = self._plain_ids(prompt, system)
        return Prompt(tuple(ids), prompt) if self.vision is None else self.vision.read(prompt, (), ids)

    def _plain_ids(self, prompt: str, system: str | None) -> list[int]:
        text = prompt if system is None else f"{system}\n{prompt}"
        ids = self._prompt_ids(text)
        if not text.rstrip().endswith(self.ends):
            while ids and ids[-1] in self.stops:
                ids.pop()
        if not ids and self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id]
        if not ids:
            raise UserError("prompt: got an empty one, takes at least one token")
        return ids

    def _pieces(self, turns: Sequence[Turn], added: Sequence[Turn], rendered: Prompt | None = None) -> EncodedRow:
        """What each turn adds to the text before it. rendered: the prompt itself, where ``turns`` only stand for it."""
        before = self.rendered(turns, ask=True)
        prompt = self._with_media(before, turns) if rendered is None else rendered
        completion, trained, shown = list[int](), list[bool](), list[tuple[int, Prompt]]()
        for count, turn in enumerate(added, start=1):
            own = turn.get("role") == "assistant"
            coming = not own and count < len(added) and added[count].get("role") == "assistant"
            after = self.rendered([*turns, *added[:count]], ask=coming)
            follows = after.startswith(before)
            if own and count == len(added) and not (follows and keeps(after[len(before) :], [turn])):
                if count == 1 and rendered is None and (shorter := unopened(before, after, turn)) is not None:
                    return self._pieces_behind(shorter, after, turns)
                ids = self._answer_ids(before, turn)
                return EncodedRow(prompt, [*completion, *ids], [*trained, *[True] * len(ids)], tuple(shown))
            if not follows:
                raise UserError(
                    "policy.template: writes earlier turns otherwise once later ones follow; takes a template with {% generation %} marks"
                )
            if own and not keeps(after[len(before) :], [turn]):
                raise UserError(
                    "policy.template: cuts what an assistant's turn says before the last; takes one answer, or a template that keeps it"
                )
            piece = self.piece(after[len(before) :], media_of([turn]))
            shown += [(len(completion), piece)] if piece.media else []
            completion += piece.ids
            trained += until_stop(piece.ids, self.stops) if own else [False] * len(piece)
            before = after
        return EncodedRow(prompt, completion, trained, tuple(shown))

    def _pieces_behind(self, text: str, after: str, turns: Sequence[Turn]) -> EncodedRow:
        ids = self.ids(after[len(text) :])
        return EncodedRow(self._with_media(text, turns), ids, until_stop(ids, self.stops))

    def _answer_ids(self, before: str, turn: Turn) -> list[int]:
        """An answer that the template would cut, behind the prompt as it was given, and the end of its turn."""
        words = "".join(texts_of(turn))
        ids = self.ids(words[overlap(before, words) :])
        end = self._end_of_turn() or [self.end]
        return [*ids, end[0] if end[0] in self.stops else self.end]

    def _marked(self, turns: list[Turn], added: Sequence[Turn]) -> EncodedRow:
        """By the template's own marks."""
        options: dict[str, Any] = {**self.options, "tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        encoding = self.tokenizer.apply_chat_template(as_text([*turns, *added]), **options)
        ids, marks = list(encoding["input_ids"]), [bool(mark) for mark in encoding["assistant_masks"]]
        prompt = list(self.prompt(turns).ids)
        split = len(prompt)
        if ids[:split] != prompt:
            earlier = sum(turn.get("role") == "assistant" for turn in turns)
            split = start_of_run(marks, earlier)
        marks = until_stops(ids, marks, self.stops)
        if not any(marks[split:]):
            raise UserError("policy.template: its {% generation %} marks are empty for this completion")
        return EncodedRow(Prompt(tuple(ids[:split])), ids[split:], marks[split:])
