"""Who plays the user: another model, the policy as its reference is, or one on a server."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.commands._rehearsal_config import rehearsal_config
from mmalign.config import build_part, load
from mmalign.policies.settings import Lora, Turns
from mmalign.policies.twins import texts
from mmalign.serving.chat import ServerSettings
from mmalign.types import UserError
from tests.helpers.fake_server import FakeServer, written

TALK = [[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "5"}]]


@pytest.mark.parametrize("lora", [Lora(rank=2), None])
def test_the_policy_s_own_reference_answers_and_goes_on_as_it_began(lora: Lora | None) -> None:
    user: Any = mm.environments.simulated_user(words="You ask.", over=None, call={"max_completion": 6})
    with pytest.raises(UserError, match="simulated_user: got no policy and no server"):
        user(TALK)
    made = mm.policies.transformers(
        texts.twin("LlamaForCausalLM", ends=True),
        turns=Turns(environment=user, limit=3, max_turn=8),
        lora=lora,
        max_completion=256,
        device="cpu",
    )
    before = [user(TALK, seeds=[seed]) for seed in range(8)]
    asked = [{"role": "system", "content": "You ask."}, {"role": "assistant", "content": "2 + 2?"}, {"role": "user", "content": "5"}]
    alone = mm.policies.transformers(texts.twin("LlamaForCausalLM", ends=True), device="cpu", max_completion=256)
    said = [alone.generate([asked], [seed], max_completion=6)[0].strip() for seed in range(8)]
    assert before == [[words or None] for words in said] and len({words for [words] in before}) > 4
    rollout = made.sample(["hi", "and"], 4, torch.Generator().manual_seed(0))
    assert rollout.metrics["turns"] > 1.2 and {turn["role"] for talk in rollout.outputs for turn in talk} == {"assistant", "user"}
    with torch.no_grad():
        for p in made.parameters().values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    assert [user(TALK, seeds=[seed]) for seed in range(8)] == before
    changed = made.sample(["hi", "and"], 4, torch.Generator().manual_seed(0))
    assert [talk[0] for talk in changed.outputs] != [talk[0] for talk in rollout.outputs]


def test_a_server_s_model_plays_the_user_and_a_missing_answer_ends_the_conversation() -> None:
    server = FakeServer(lambda body: written(f"{len(body['messages'])} {body['messages'][-1]['content']}?"))
    server.misbehave = lambda number: (500, b"{}") if number == 2 else None
    settings = ServerSettings(url=server.url, model="m", retries=0, failures=1.0, at_once=1)
    user = mm.environments.simulated_user(server=settings, words="You ask.", call={"temperature": 0.5, "max_completion": 9})
    replies = user(TALK * 2)
    server.kill()
    assert replies == ["3 5?", None]
    sent = server.requests[0]
    assert sent["messages"][0] == {"role": "system", "content": "You ask."} and (sent["max_tokens"], sent["temperature"]) == (9, 0.5)


def test_what_cannot_be() -> None:
    class Model:
        def generate(self, prompts: list[Any], seeds: list[int], **call: Any) -> list[str]:
            return ["?"] * len(prompts)

    server = ServerSettings(url="http://localhost:1/v1", model="m")
    with pytest.raises(UserError, match=r"simulated_user\.server: got a policy too, takes one of them"):
        mm.environments.simulated_user(Model(), server=server)
    with pytest.raises(UserError, match=r"simulated_user\.call\.top_p: takes temperature and max_completion, for a server"):
        mm.environments.simulated_user(server=server, call={"top_p": 0.5})
    with pytest.raises(UserError, match=r"hindsight\.simulator: got no model of its own"):
        mm.rewards.hindsight(lambda outputs, prompts: torch.zeros(1), simulator=mm.environments.simulated_user())
    silent = mm.environments.simulated_user(Model())([[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}]])
    assert silent == ["?"]  # an assistant that says nothing is no error of the user's


def test_rehearsals_have_a_tiny_user() -> None:
    made = rehearsal_config(load("qwen25_0b/refuel"))
    rollout = build_part(made.node, "policy").sample(["2 + 2?", "3?"], 4, torch.Generator().manual_seed(0))
    assert rollout.metrics["turns"] > 1.5
    own = "policy.turns.environment="
    other = rehearsal_config(load("qwen25_0b/refuel", [own + "{use: simulated_user, policy: {use: transformers, model: Qwen/Qwen3-4B}}"]))
    assert other.node["policy"]["turns"]["environment"]["policy"]["model"]["kind"] == "Qwen3ForCausalLM"
    served = rehearsal_config(load("qwen25_0b/refuel", [own + "{use: simulated_user, server: {url: 'http://localhost:1/v1', model: m}}"]))
    assert "policy.turns.environment" in served.stand_ins and served.node["policy"]["turns"]["environment"]["use"] == "says"
    reward = build_part(rehearsal_config(load("qwen25_0b/rlhs")).node, "rewards")["believed"]
    assert reward(["Paris.", "Rome."], ["Where?", "Where?"]).shape == (2,)
