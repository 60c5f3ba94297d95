"""Sampling by a server: against one made here, that answers as vLLM does."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from mmalign.policies.settings import Lora, Train
from mmalign.types import UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers


@contextmanager
def server(answer):
    """A server whose ``answer(path, body)`` is sent as JSON, and what it was asked."""
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.append((self.path, body))
            said = answer(self.path, body)
            self.send_response(200 if said is not None else 500)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

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
    engine = {"url": url, "model": "base", "folder": str(folder)}
    return transformers(tiny_text.model(), tiny_text.tokenizer(), max_completion=5, engine=engine, **{"lora": {"rank": 2}, **more})


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
    asked = [body for path, body in heard if path.endswith("completions")]
    assert sorted(body["prompt"] for body in asked[:2]) == sorted([list(policy.chat.prompt("ab").ids), list(policy.chat.prompt("cd").ids)])
    assert asked[0]["model"] == asked[2]["model"] != asked[3]["model"] and asked[0]["temperature"] == 0.5 and asked[0]["n"] == 2
    assert asked[0]["stop_token_ids"] == [2] and "0" in asked[0]["logit_bias"] and asked[0]["seed"] != asked[1]["seed"]
    assert [place.name for place in tmp_path.iterdir()] == [asked[3]["model"]]


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
    with pytest.raises(UserError, match="takes lora"):
        policy_of("http://127.0.0.1:9/v1", tmp_path, lora=None)
    with pytest.raises(UserError, match=r"engine\.url"):
        policy_of("localhost", tmp_path)


def test_a_server_is_sent_no_pictures(tmp_path):
    from mmalign.policies.twins import visions

    engine = {"url": "http://127.0.0.1:9/v1", "model": "base", "folder": str(tmp_path)}
    policy = transformers(
        *visions.twin("LlavaForConditionalGeneration"), max_completion=4, engine=engine, train=Train(language=Lora(rank=2))
    )
    shown = [{"role": "user", "content": [{"type": "image", "image": torch.zeros(3, 8, 8)}, {"type": "text", "text": "hi"}]}]
    with pytest.raises(UserError, match="token ids alone"):
        policy.sample([shown], 2, torch.Generator())
