"""What stands between two turns of the policy's: the end of one, what an environment says, and what asks for the next.

A chat template writes all of it. It is rendered behind a conversation that stands for any other, so that what the policy said before is
neither rendered nor tokenized again: templates that rewrite earlier turns (and take their reasoning out) change nothing of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmalign.conversations import Turn, media_of, texts_of
from mmalign.policies.language.prompts.chat import Chat
from mmalign.policies.language.prompts.encoded_prompts import Prompt
from mmalign.policies.language.prompts.templates import PROBE
from mmalign.types import UserError

SAID = "assistant-said-this"  # what stands for a turn of the policy's


def read_reply(chat: Chat, replies: Sequence[Turn]) -> tuple[Prompt, list[Turn]]:
    """What stands from behind the end of a turn of the policy's to where it answers again, and the replies as they were written.

    Tools' turns get the ids that some templates ask for (nine letters, by their places). A template that refuses them is given them as the
    user's. Without a template it is the words alone.
    Pictures go through the processor, as those of a prompt do.
    Errors: UserError where the template refuses or drops a reply, for pictures that cannot be read or that the model does not see, videos.
    """
    _refuse_media(chat, replies)
    if not chat.template:
        return chat.piece("".join(text for turn in replies for text in texts_of(turn)), ()), list(replies)
    before: list[Turn] = [*PROBE, {"role": "assistant", "content": SAID}]
    as_users = [{**turn, "role": "user"} if turn.get("role") == "tool" else turn for turn in replies]
    numbered = [{"tool_call_id": f"{place:09d}", **turn} if turn.get("role") == "tool" else turn for place, turn in enumerate(replies)]
    for given, added in ((numbered, list(replies)), (as_users, as_users)):
        text, why = chat.tried([*before, *given])
        if text is not None and SAID in text:
            piece = chat.piece(text[text.find(SAID) + len(SAID) :], media_of(replies))
            end = next((place for place, token in enumerate(piece.ids) if token in chat.stops), -1)
            return piece.window(end + 1, len(piece)), added
    raise UserError(f"policy.turns.environment: the chat template {why or 'leaves out what the assistant says'}")


def _refuse_media(chat: Chat, replies: Sequence[Turn]) -> None:
    media = media_of(replies)
    if any(medium.kind != "image" for medium in media):
        raise UserError("policy.turns.environment: replied with a video; takes words and images")
    if media and chat.vision is None:
        raise UserError("policy.turns.environment: replied with an image, and the policy is a language model without eyes; takes words")
    if media and not chat.template:
        raise UserError("policy.turns.environment: replied with an image, and without a chat template a reply is its words; takes one")
