"""Judges on a real server of chat completions: ``transformers serve``, started and stopped here."""

from __future__ import annotations

import pytest
import torch
from transformers.utils.import_utils import is_openai_available, is_uvicorn_available

import mmalign as mm
from tests.helpers.transformers_serve import TransformersServe, write_judge

pytestmark = pytest.mark.skipif(
    not (is_openai_available() and is_uvicorn_available()), reason="transformers serve needs uvicorn and openai (the extras serve and dev)"
)
PROMPTS = ["which?"] * 4
ANSWERS = ["good", "a bad one", "good but bad , bad", "good good"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    write_judge(folder)
    serving = TransformersServe(folder)
    yield {"url": serving.url, "model": serving.model, "retries": 0, "failures": 1}
    serving.stop()
    assert "Traceback" not in serving.log.read_text()


def test_a_judge_and_a_judge_of_pairs(server):
    scores = mm.rewards.judge(server=server, read="written")(ANSWERS, PROMPTS)
    assert scores.tolist() == [5.0, 1.0, 1.0, 5.0]
    wins = mm.rewards.judge_pairs(server=server, read="written")(ANSWERS, PROMPTS, torch.tensor([0, 0, 1, 1]))
    first = torch.full((4, 4), torch.nan)
    first[0, 1] = first[1, 0] = first[2, 3] = first[3, 2] = 0.5  # A in both orders: it prefers what it reads first
    assert torch.equal(wins.isnan(), first.isnan()) and torch.equal(wins[~wins.isnan()], first[~first.isnan()].double())


def test_it_gives_no_log_probabilities_and_knows_no_other_model(server):
    judge = mm.rewards.judge(server=server)
    with pytest.warns(UserWarning, match="1 x no log-probabilities"):
        assert judge(ANSWERS[:1], PROMPTS[:1]).isnan().all()
    other = mm.rewards.judge(server={**server, "model": server["model"] + "-other"}, read="written")
    with pytest.warns(UserWarning, match="1 x HTTP"):
        assert other(ANSWERS[:1], PROMPTS[:1]).isnan().all()
