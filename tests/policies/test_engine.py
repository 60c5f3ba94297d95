"""Sampling by a server: against one made here, that answers as vLLM does."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from mmalign.policies.settings import Lora, Train
from mmalign.policies.twins import visions
from mmalign.types import UserError
from tests.helpers import engine_server, tiny_text
from tests.helpers.engine_server import EngineServer
from tests.helpers.flat import transformers


@contextmanager
def server(answer):
    """A server whose ``answer(path, body)`` is sent as JSON, and what it was asked."""
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.append((self.path, body))
            reply = answer(self.path, body)
            self.send_response(200 if reply is not None else 500)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *args):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_address[1]}/v1", heard
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


def completions(path, body):
    if not path.endswith("completions"):
        return "Success"
    choices = []
    for number in range(body["n"]):
        ids = [10 + number, 11, 2] if number else [12] * body["max_tokens"]
        reason = "stop" if number else "length"
        choices.append(
            {
                "token_ids": ids,
                "prompt_token_ids": body["prompt"],
                "logprobs": {"token_logprobs": [-1.0] * len(ids)},
                "finish_reason": reason,
            }
        )
    return {"choices": choices}


def misread(change):
    """The same by a server that reads another prompt."""

    def answer(path, body):
        sent = completions(path, body)
        if isinstance(sent, str):
            return sent
        return {"choices": [{**choice, "prompt_token_ids": change(choice["prompt_token_ids"])} for choice in sent["choices"]]}

    return answer


def policy_of(url, folder, **more):
    given = {"engine": {"url": url, "model": "base", "folder": str(folder)}, "lora": {"rank": 2}}
    return transformers(tiny_text.model(), tiny_text.tokenizer(), max_completion=5, **{**given, **more})


def test_a_server_samples_and_old_is_the_policys_own(tmp_path):
    with server(completions) as (url, heard):
        policy = policy_of(url, tmp_path, temperature=0.5)
        rollout = policy.sample(["ab", "cd"], 2, torch.Generator().manual_seed(0))
        policy.sample(["ab"], 2, torch.Generator().manual_seed(1))  # by the same adapter, which stays
        with torch.no_grad():
            next(iter(policy.parameters().values())).add_(0.1)
        policy.sample(["ab"], 2, torch.Generator().manual_seed(2))
    assert rollout.held.lengths.tolist() == [5, 3, 5, 3] and rollout.held.cut.tolist() == [True, False] * 2
    steps = policy.steps(rollout, torch.arange(4))
    assert torch.allclose(steps.old, steps.log_probs, atol=1e-5)
    assert rollout.metrics["engine_difference"] == pytest.approx(float((rollout.log_probs + 1)[rollout.mask].abs().mean()))
    paths = [path for path, _ in heard]
    assert [place for place, path in enumerate(paths) if path == "/v1/load_lora_adapter"] == [0, 4] and paths[
        5
    ] == "/v1/unload_lora_adapter"
    bodies = [body for path, body in heard if path.endswith("completions")]
    assert sorted(body["prompt"] for body in bodies[:2]) == sorted([list(policy.chat.prompt("ab").ids), list(policy.chat.prompt("cd").ids)])
    assert bodies[0]["model"] == bodies[2]["model"] != bodies[3]["model"] and bodies[0]["temperature"] == 0.5 and bodies[0]["n"] == 2
    assert bodies[0]["stop_token_ids"] == [2] and "0" in bodies[0]["logit_bias"] and bodies[0]["seed"] != bodies[1]["seed"]
    assert [place.name for place in tmp_path.iterdir()] == [bodies[3]["model"]]


def test_the_adapter_that_is_handed_over_is_the_trained_one(tmp_path):
    from peft import PeftModel

    with server(completions) as (url, _):
        policy = policy_of(url, tmp_path)
        for p in policy.parameters().values():
            p.data += 0.1
        rollout = policy.sample(["ab"], 2, torch.Generator())
    fresh = PeftModel.from_pretrained(tiny_text.model(), str(next(tmp_path.iterdir()))).eval()
    ids = torch.cat([rollout.held.prompts[0], rollout.held.tokens[0]]).unsqueeze(0)
    with torch.no_grad():
        full = fresh(input_ids=ids).logits[0].index_fill(-1, torch.tensor([0, 1]), -1e9).log_softmax(-1)  # pad and bos are never said
    places = torch.arange(1, 6) + 1
    assert torch.allclose(full[places - 1, ids[0, places]].double(), rollout.log_probs[0], atol=1e-5)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda path, body: None, "answered 500"),
        (lambda path, body: {"choices": []}, "gave 0 completions"),
        (lambda path, body: {"choices": [{"text": "ab"}] * 2}, "no token ids"),
        (misread(lambda ids: None), "does not say what it read"),
        (misread(lambda ids: [ids[0], 9]), r"read a prompt of 2 tokens as 2: token 1 is 9 'd' there and 7 'b' here, behind 'a'"),
        (misread(lambda ids: [1, *ids]), r"read a prompt of 2 tokens as 3: token 0 is 1 '<bos>' there and 6 'a' here, behind ''"),
        (misread(lambda ids: ids[:1]), r"read a prompt of 2 tokens as 1: token 1 is none there and 7 'b' here"),
    ],
)
def test_a_server_that_answers_otherwise_is_one_line(answer, message, tmp_path):
    with server(answer) as (url, _), pytest.raises(UserError, match=message):
        policy_of(url, tmp_path).sample(["ab"], 2, torch.Generator())


def test_what_a_server_cannot_do_is_refused(tmp_path):
    with pytest.raises(UserError, match="no answer"):
        policy_of("http://127.0.0.1:9/v1", tmp_path).sample(["ab"], 2, torch.Generator())
    with pytest.raises(UserError, match=r"engine\.folder: got .*, takes the folder that the server was started on"):
        policy_of("http://127.0.0.1:9/v1", tmp_path, lora=None)
    with pytest.raises(UserError, match=r"engine\.update: got adapter, and more is trained than LoRA"):
        policy_of("http://127.0.0.1:9/v1", tmp_path, lora=None, engine={"url": "http://127.0.0.1:9/v1", "model": "a", "update": "adapter"})
    with pytest.raises(UserError, match=r"engine\.url"):
        policy_of("localhost", tmp_path)


VISIONS = ["Llava", "Qwen2VL", "Gemma3"]
PICTURE = torch.linspace(0, 1, 3 * 40 * 56).view(3, 40, 56)


def shown(*parts):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "hi"}]}]


def of_vision(name, server, folder, **more):
    engine = {"url": server.url, "model": "base", "folder": str(folder)}
    model = visions.twin(f"{name}ForConditionalGeneration")
    return transformers(*model, max_completion=4, engine=engine, **{"train": Train(language=Lora(rank=2)), **more})


@pytest.mark.parametrize("name", VISIONS)
def test_pictures_reach_a_server_as_the_policy_sees_them(name, tmp_path):
    prompts = [shown({"type": "image", "image": PICTURE}), [{"role": "user", "content": "hi"}]]
    with EngineServer(*visions.twin(f"{name}ForConditionalGeneration")) as server:
        policy = of_vision(name, server, tmp_path)
        with torch.no_grad():
            for p in policy.parameters().values():
                p += 0.1
        rollout = policy.sample(prompts, 2, torch.Generator().manual_seed(0))
    assert rollout.metrics["engine_difference_max"] < 1e-4
    paths = [path for path, _ in server.requests]
    assert sorted(paths) == ["/v1/chat/completions", "/v1/completions", "/v1/load_lora_adapter"]


def test_several_pictures_and_videos_in_their_order(tmp_path):
    parts = [
        {"type": kind, kind: value} for kind, value in (("image", PICTURE), ("video", torch.rand(4, 3, 32, 32)), ("image", 1 - PICTURE))
    ]
    with EngineServer(*visions.twin("Qwen2VLForConditionalGeneration")) as server:
        rollout = of_vision("Qwen2VL", server, tmp_path).sample([shown(*parts)], 2, torch.Generator().manual_seed(0))
    assert rollout.metrics["engine_difference_max"] < 1e-4
    sent = next(body for path, body in server.requests if path.endswith("chat/completions"))
    assert sent["media_io_kwargs"] == {"video": {"num_frames": -1}} and sent["n"] == 2


def test_a_picture_that_is_another_there_is_seen(tmp_path):
    """Of another size by its tokens, with the place; of other pixels by what the server says of its own tokens."""
    import numpy
    from PIL import Image

    real = engine_server.pictures
    picture = [shown({"type": "image", "image": PICTURE})]
    with EngineServer(*visions.twin("Qwen2VLForConditionalGeneration")) as server, pytest.MonkeyPatch.context() as patch:
        policy = of_vision("Qwen2VL", server, tmp_path)
        patch.setattr(engine_server, "pictures", lambda url: [image.resize((28, 84)) for image in real(url)])
        with pytest.raises(UserError, match=r"read a prompt of \d+ tokens as \d+: token \d+, in image 0 is \d+ '.*' there and"):
            policy.sample(picture, 2, torch.Generator())
        patch.setattr(engine_server, "pictures", lambda url: [Image.fromarray(255 - numpy.asarray(image)) for image in real(url)])
        assert policy.sample(picture, 2, torch.Generator()).metrics["engine_difference_max"] > 1e-3


def test_pictures_without_a_template_are_refused(tmp_path):
    with EngineServer(*visions.twin("LlavaForConditionalGeneration")) as server, pytest.raises(UserError, match="through no chat template"):
        of_vision("Llava", server, tmp_path, template=False).sample([shown({"type": "image", "image": PICTURE})], 2, torch.Generator())


@pytest.mark.parametrize("trained", [{"lora": None}, {"lora": {"rank": 2}, "update": "weights"}, {"lora": None, "vision": True}])
def test_whole_weights_are_handed_over(trained, tmp_path):
    sees = trained.pop("vision", False)
    model, reader = visions.twin("Qwen2VLForConditionalGeneration") if sees else (tiny_text.model(), tiny_text.tokenizer())
    model.save_pretrained(str(tmp_path), max_shard_size="20KB")  # as in the hub: several files and their index
    assert (tmp_path / "model.safetensors.index.json").exists()
    update = trained.pop("update", None)
    with EngineServer(type(model).from_pretrained(str(tmp_path)), reader, served=tmp_path) as server:
        engine = {"url": server.url, "model": "base", "folder": str(tmp_path), "update": update}
        if sees:
            trained = {"train": Train(vision="full", language=Lora(rank=2))}
        policy = transformers(model, reader, max_completion=5, engine=engine, **trained)
        prompts = [shown({"type": "image", "image": PICTURE})] if sees else ["ab"]
        for _ in range(2):
            with torch.no_grad():
                for p in policy.parameters().values():
                    p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
            for seed in range(2):
                rollout = policy.sample(prompts, 2, torch.Generator().manual_seed(seed))
                assert rollout.metrics["engine_difference_max"] < 1e-4
    assert [path for path, _ in server.requests if "completions" not in path] == ["/collective_rpc", "/reset_prefix_cache"] * 2
    assert sorted(place.name for place in tmp_path.iterdir()) == ["config.json", "generation_config.json", "model.safetensors"]
