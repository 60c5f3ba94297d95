"""Kinds 4 to 6: prompts that are read from the wrong columns, special tokens, media."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
from typing import Any

from PIL import Image
from torch import Tensor
from user import OFFLINE, User, fault

import mmalign as mm


def png(size: tuple[int, int] = (32, 32), kind: str = "PNG", **more: Any) -> bytes:
    place = io.BytesIO()
    Image.new("RGB", size, "red").save(place, kind, **more)
    return place.getvalue()


URL = "data:image/png;base64," + base64.b64encode(png()).decode()
HUMAN, MODEL = {"from": "human", "value": "What is 2+2?"}, {"from": "gpt", "value": "4."}
ASK, RIGHT, BAD = ({"role": role, "content": text} for role, text in (("user", "What is 2+2?"), ("assistant", "4."), ("assistant", "5.")))
TALK = "\n\nHuman: What is 2+2?\n\nAssistant: "
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
QA = {"chosen": "4.", "rejected": "5."}
TEXTS: dict[str, tuple[dict[str, Any], str]] = {
    "question beside answers that begin alike": (
        {"question": "What is 2+2?", "chosen": "The answer is 4.", "rejected": "The answer is 5."},
        "'What is 2",
    ),
    "system and question (orca)": ({"system": "Be brief.", "question": "What?", **QA}, "Be brief.*What"),
    "instruction and input (LLaMA-Factory)": ({"instruction": "Translate:", "input": "good morning", **QA}, "good morning"),
    "ShareGPT": ({"conversations": [HUMAN], "chosen": MODEL, "rejected": {**MODEL, "value": "5."}}, "What is 2"),
    "ms-swift": ({"messages": [ASK, RIGHT], "rejected_response": "5."}, "What is 2.*'5.'"),
    "Anthropic": ({"chosen": TALK + "4.", "rejected": TALK + "5."}, "What is 2"),
    "roles in capitals": ({"prompt": [{**ASK, "role": "USER"}], "chosen": [{**RIGHT, "role": "ASSISTANT"}], "rejected": [BAD]}, "'user'"),
    "tool calls": (
        {
            "prompt": [ASK],
            "chosen": [{"role": "assistant", "content": "", "tool_calls": [CALL]}],
            "rejected": [BAD],
        },
        "add",
    ),
    "one-turn objects": ({"prompt": ASK, "chosen": RIGHT, "rejected": BAD}, "What is 2"),
    "plain supervised rows": ({"instruction": "What is 2+2?", "output": "4."}, "What is 2"),
    "an unknown column": ({"prompt": "What?", "chosen": "4.", "rejected": "5.", "notes": "x"}, "notes"),
}


def table(what: str, row: dict[str, Any], shows: str) -> None:
    @fault(4, what, shows)
    def act(user: User) -> str:
        user.write("rows.jsonl", [row])
        return user.python(f"mm.data.texts(rows.jsonl).first(1)  # {json.dumps(row)}", lambda: mm.data.texts("rows.jsonl").first(1))


for _what, (_row, _shows) in TEXTS.items():
    table(_what, _row, _shows)


@fault(4, "a file whose prompt cannot be told", "exit 2")
def untold(user: User) -> str:
    user.write("pairs.jsonl", [{"better": "The answer is 4.", "worse": "The answer is 5."}])
    return user.train(OFFLINE)


def pictured(what: str, row: dict[str, Any], shows: str = r"32") -> None:
    @fault(4, what, shows)
    def act(user: User) -> str:
        (user.folder / "a.png").write_bytes(png())
        (user.folder / "b.png").write_bytes(png())
        user.write("rows.jsonl", [row])
        if "chosen" in row or "conversations" in row:
            line, read = "mm.data.picture_texts('rows.jsonl').first(1)", lambda: mm.data.picture_texts("rows.jsonl").first(1)
        else:
            line, read = "mm.data.pairs('rows.jsonl').first(1)", lambda: mm.data.pairs("rows.jsonl").first(1)
        return user.python(f"{line}  # {json.dumps(row)[:160]}", lambda: shortly(read()))


def shortly(records: Any) -> str:
    """Records with the sizes of their pictures in place of these."""
    parts = {key: list(value.shape) if isinstance(value, Tensor) else value for key, value in records[0]._asdict().items()}
    return f"{type(records[0]).__name__} {parts}"


PART = {"type": "image_url", "image_url": {"url": URL}}
pictured(
    "OpenAI's parts with image_url and data:",
    {"prompt": [{"role": "user", "content": [PART, {"type": "text", "text": "What?"}]}], "chosen": [RIGHT], "rejected": [BAD]},
    "What.",
)
pictured("LLaVA", {"image": "a.png", "conversations": [{**HUMAN, "value": "<image>\nWhat?"}, MODEL]}, "What")
pictured("HPDv2 as published", {"prompt": "p", "image_path": ["a.png", "b.png"], "human_preference": [0, 1]})
pictured("HPDv3 as published", {"prompt": "p", "path1": "a.png", "path2": "b.png", "confidence": 0.9})
pictured("ImageReward's", {"prompt": "p", "generations": ["a.png", "b.png"], "ranking": [1, 2]})
pictured("ImageRewardDB's", {"prompt_id": "7", "prompt": "p", "image_path": ["a.png", "b.png"], "rank": [1, 2]})
pictured("thumbs about pictures", {"prompt": "p", "image": "a.png", "label": True})
pictured(
    "pictures under another key dropped without a word", {"prompt": "What?", "photo": "a.png", "chosen": "4.", "rejected": "5."}, "a.png"
)


# ---- 5


@fault(5, "ids that are trained: compared with transformers' own, token by token", "the same .* tokens as")
def inspected(user: User) -> str:
    return user.mmalign("inspect", "LlamaForCausalLM")


@fault(5, "a vision-language prompt", r"the same \d+ tokens as LlavaProcessor.apply_chat_template")
def seeing(user: User) -> str:
    return " ".join(user.mmalign("inspect", "LlavaForConditionalGeneration").replace("│", " ").split())


@fault(5, "a template that cuts reasoning out of assistant turns", "with reasoning")
def reasoning(user: User) -> str:
    return user.mmalign("inspect", "Qwen3ForCausalLM")


# ---- 6


def medium(what: str, data: bytes, name: str, shows: str) -> None:
    @fault(6, what, shows)
    def act(user: User) -> str:
        (user.folder / name).write_bytes(data)
        return user.python(f"mmalign.media.picture({name!r})", lambda: picture(name))


def picture(name: str) -> str:
    from mmalign.media import Broken, Limits
    from mmalign.media import picture as read

    try:
        return str(read(name, Limits()).size)
    except Broken as error:
        return f"Broken: {error}"


medium("a phone's JPEG (MPO)", png((40, 30), "MPO", save_all=True, append_images=[Image.new("RGB", (20, 15))]), "a.jpg", r"\(40, 30\)")
medium("a TIFF of several pages", png((40, 30), "TIFF", save_all=True, append_images=[Image.new("RGB", (40, 30))]), "a.tiff", r"\(40, 30\)")


def words(what: str, row: dict[str, Any], shows: str) -> None:
    @fault(6, what, shows)
    def act(user: User) -> str:
        (user.folder / "inner").mkdir()
        (user.folder / "inner" / "a.png").write_bytes(png())
        user.write("inner/rows.jsonl", [row])
        return user.python(
            f"mm.data.picture_texts('inner/rows.jsonl').first(1)  # {json.dumps(row)[:200]}",
            lambda: mm.data.picture_texts("inner/rows.jsonl").first(1)[0],
        )


words("a text that equals a file's name", {"prompt": "What?", "image": "a.png", "chosen": "a.png", "rejected": "b"}, "first='a.png'")
words(
    "relative paths inside of messages",
    {
        "prompt": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "?"}]}],
        "chosen": "x",
        "rejected": "y",
    },
    "inner/a.png",
)
words("literal <image> in words", {"prompt": "What is the tag <image> for?", "chosen": "x", "rejected": "<image> too"}, "<image>")
words("a list of images", {"prompt": "What?", "images": [URL, URL], "chosen": "x", "rejected": "y"}, "'type': 'image'.*'type': 'image'")


TURNS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
"""Degrees that the picture is turned by, to the right, and the display matrix that asks for it."""


def turned(degrees: int, shape: str, red: str) -> None:
    @fault(6, f"a video whose display matrix turns it by {degrees} degrees lies on its side", rf"^{re.escape(shape)}, red {red}$")
    def act(user: User) -> str:
        import av
        import numpy

        from mmalign.media import Limits, footage

        with av.open("a.mp4", "w") as file:
            stream = file.add_stream("libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            pixels = numpy.zeros((48, 64, 3), numpy.uint8)
            pixels[:24], pixels[24:] = (255, 0, 0), (0, 0, 255)
            for _ in range(8):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            file.mux(stream.encode())
        data = bytearray((user.folder / "a.mp4").read_bytes())
        at = data.find(b"tkhd") + 4 + 4 + 20 + 16  # of the track's header: the nine numbers of its matrix
        a, b, c, d = (0x10000 * number for number in TURNS[degrees])
        across, down = (48 if b < 0 or a < 0 else 0), (48 if c < 0 or d < 0 else 0)
        data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, across << 16, down << 16, 0x40000000)
        (user.folder / "a.mp4").write_bytes(bytes(data))

        def read() -> str:
            frame = footage("a.mp4", Limits(frames=2)).frames[0]
            halves = {"left": frame[0, :, :10], "right": frame[0, :, -10:], "above": frame[0, :10], "below": frame[0, -10:]}
            return f"{list(frame.shape)}, red {max(halves, key=lambda name: float(halves[name].float().mean()))}"

        return user.python("media.footage('a.mp4', ...).frames[0]  # 64 x 48 as it is stored, red above", read)


turned(90, "[3, 64, 48]", "right")
turned(180, "[3, 48, 64]", "below")
turned(270, "[3, 64, 48]", "left")
