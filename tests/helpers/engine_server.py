"""A small server on loopback that samples from a model of transformers and answers as vLLM does: completions of token ids, chats with
pictures and videos, adapters by folder, whole weights read again. Nothing of it is mmalign's: prompts are rendered, tokenized and put
through the processor by transformers alone."""

from __future__ import annotations

import base64
import copy
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch


class EngineServer:
    """``change``: (number of the request, path, answer) -> what is sent instead, or None: the server dies, with all that is under way.

    served: the folder that whole weights are read from again.
    """

    def __init__(self, model: Any, processor: Any, *, served: Path | None = None, change: Callable[[int, str, Any], Any] = lambda *a: a[2]):
        self.model, self.processor, self.served, self.change = model.eval(), processor, served, change
        self.adapters: dict[str, Any] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.lock, owner = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
                with owner.lock:
                    owner.requests.append((self.path, body))
                    number = len(owner.requests)
                    status, answer = owner.answer(self.path, body)
                    answer = owner.change(number, self.path, answer)
                if answer is None:
                    owner.kill()
                    self.close_connection = True
                    return
                sent = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def __enter__(self) -> EngineServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()

    def kill(self) -> None:
        """Nobody listens any more."""
        self.change = lambda number, path, answer: None

        def close() -> None:
            self.server.shutdown()
            self.server.server_close()

        threading.Thread(target=close, daemon=True).start()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/load_lora_adapter":
            from peft import PeftModel

            if body["lora_name"] in self.adapters:
                return 400, {"error": f"The lora adapter '{body['lora_name']}' has already been loaded."}
            self.adapters[body["lora_name"]] = PeftModel.from_pretrained(copy.deepcopy(self.model), body["lora_path"]).eval()
            return 200, f"Success: LoRA adapter '{body['lora_name']}' added successfully."
        if path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            return 200, "Success"
        if path == "/collective_rpc" and body == {"method": "reload_weights"}:
            self.model = type(self.model).from_pretrained(str(self.served)).eval()
            return 200, {"results": [None]}
        if path == "/reset_prefix_cache":
            return 200, ""
        if path not in ("/v1/completions", "/v1/chat/completions"):
            return 404, {"error": "not found"}
        model = self.adapters.get(body["model"], self.model)
        return 200, self._chat(model, body) if path.endswith("chat/completions") else self._completions(model, body)

    def _completions(self, model: Any, body: dict[str, Any]) -> dict[str, Any]:
        choices = []
        for number in range(body["n"]):
            ids, values, reason = sampled(model, torch.tensor([body["prompt"]]), {}, body, number)
            choices.append({
                "index": number, "token_ids": ids, "prompt_token_ids": body["prompt"], "finish_reason": reason,
                "logprobs": {"token_logprobs": values},
            })  # fmt: skip
        return {"choices": choices}

    def _chat(self, model: Any, body: dict[str, Any]) -> dict[str, Any]:
        turns, media = opened(body["messages"])
        text = self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        named: dict[str, Any] = {name: value for name, value in media.items() if value}
        if "videos" in named:
            named |= {"videos": [[as_array(frame) for frame in clip] for clip in named["videos"]]}
            named["videos_kwargs"] = {"do_sample_frames": False, "do_convert_rgb": False}
        inputs = self.processor(text=[text], return_tensors="pt", add_special_tokens=body.get("add_special_tokens", False), **named)
        ids = inputs.pop("input_ids")
        inputs.pop("attention_mask", None)
        choices = []
        for number in range(body["n"]):
            tokens, values, reason = sampled(model, ids, dict(inputs), body, number)
            content = [{"token": f"token_id:{token}", "logprob": value} for token, value in zip(tokens, values, strict=True)]
            choices.append({"index": number, "token_ids": tokens, "finish_reason": reason, "logprobs": {"content": content}})
        return {"prompt_token_ids": ids[0].tolist(), "choices": choices}


def opened(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """Turns as a processor's template takes them, and their media, read from ``data:`` addresses by Pillow alone."""
    turns, images, videos = [], [], []
    for message in messages:
        content = message["content"]
        parts = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "image_url":
                images += pictures(part["image_url"]["url"])
                parts.append({"type": "image"})
            elif part["type"] == "video_url":
                videos.append(pictures(part["video_url"]["url"]))
                parts.append({"type": "video"})
            else:
                parts.append(part)
        turns.append({**message, "content": parts})
    return turns, {"images": images, "videos": videos}


def pictures(address: str) -> list[Any]:
    from PIL import Image

    assert address.startswith("data:")
    made = [Image.open(io.BytesIO(base64.b64decode(piece))) for piece in address.split(",")[1:]]
    for picture in made:
        picture.load()
    return made


def as_array(picture: Any) -> Any:
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3).permute(2, 0, 1)


@torch.no_grad()
def sampled(model: Any, ids: torch.Tensor, extras: dict[str, Any], body: dict[str, Any], number: int) -> tuple[list[int], list[float], str]:
    """A completion, with a seed of its own, and its processed log-probabilities."""
    rng, tokens, values = torch.Generator().manual_seed(body["seed"] + 7919 * number), list[int](), list[float]()
    prompt = ids.shape[1]
    for _ in range(body["max_tokens"]):
        width = ids.shape[1] - prompt
        more = {
            name: torch.nn.functional.pad(value, (0, width)) if name.endswith("token_type_ids") else value for name, value in extras.items()
        }
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits[0, -1].double()
        for token, bias in body["logit_bias"].items():
            logits[int(token)] += bias
        log_probs = (logits / body["temperature"]).log_softmax(-1)
        token = int(torch.multinomial(log_probs.exp(), 1, generator=rng))
        tokens.append(token)
        values.append(float(log_probs[token]))
        if token in body["stop_token_ids"]:
            return tokens, values, "stop"
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return tokens, values, "length"
