"""TRL's GRPOTrainer, on the same model, batch and advantages: loss and gradient of each of its loss types, by our dialects of it.

The advantages that its loss is given are computed here as its trainer does; ours come from the same rewards by the method's own signal.
"""

from __future__ import annotations

import os
from functools import cache

import pytest
import torch

import mmalign as mm
from mmalign.needs import MASK, refs
from mmalign.types import Feedback, Steps
from tests.helpers.trl_models import kept_quiet, tokenizer_and_models

trl = pytest.importorskip("trl", minversion="1.16")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

GROUP = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
LENGTHS = torch.tensor([6, 2, 5, 3, 6, 6, 1, 4])
REWARDS = torch.tensor([1.0, 0.2, -0.5, 0.4, 2.0, 1.0, 0.0, 0.7], dtype=torch.float64)
LONGEST, PROMPT = 6, 3
PLAIN = {"beta": 0.1, "use_bias_correction_kl": False}
ROW = {"importance_sampling_level": "sequence"}
CASES = [
    ("grpo", "grpo", "TRL 1.16", {}, {}),
    ("grpo", "grpo", "TRL 1.16", {"beta": 0.1}, {"beta": 0.1}),
    ("grpo", "grpo", "TRL 1.16", PLAIN, {"beta": 0.1, "kl": "k3"}),
    ("grpo", "grpo", "TRL 1.16", {"delta": 1.3}, {"dual": 1.3}),
    ("grpo", "grpo", "TRL 1.16 sequence", ROW, {}),
    ("grpo", "gspo", "TRL 1.16", ROW, {}),
    ("grpo", "gspo", "TRL 1.16", {**ROW, **PLAIN, "epsilon_low": 3e-4, "epsilon_high": 4e-4}, {"low": 3e-4, "high": 4e-4, "beta": 0.1}),
    ("bnpo", "dapo", "TRL 1.16 bnpo", {"beta": 0.1}, {"beta": 0.1}),
    ("dr_grpo", "dr_grpo", "TRL 1.16", {"beta": 0.1}, {"length": LONGEST, "beta": 0.1}),
    ("dapo", "dapo", "TRL 1.16", {}, {}),
    ("dapo", "dapo", "TRL 1.16", {"epsilon_high": 0.28, "beta": 0.1}, {"high": 0.28, "beta": 0.1}),
    ("cispo", "cispo", "TRL 1.16", {}, {}),
    ("cispo", "cispo", "TRL 1.16", {"epsilon_high": 1.1, "beta": 0.1}, {"largest": 1.1, "beta": 0.1}),
    ("sapo", "sapo", "TRL 1.16", {"beta": 0.1}, {"beta": 0.1}),
    ("luspo", "luspo", "TRL 1.16", {**ROW, **PLAIN}, {"beta": 0.1}),
    ("vespo", "vespo", "TRL 1.16", {"beta": 0.1}, {"beta": 0.1}),
]


@cache
def trainer():
    """A trainer of a tiny Llama in float64, and a batch of two groups of four; settings are changed case by case."""
    from datasets import Dataset

    tokenizer, (model,) = tokenizer_and_models(7)
    settings = kept_quiet(num_generations=4, per_device_train_batch_size=8, max_completion_length=LONGEST, beta=0.0)
    rows = Dataset.from_list([{"prompt": "a b c"}, {"prompt": "d e f"}] * 4)
    made = trl.GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(**settings),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    made.args.steps_per_generation = 1
    rng = torch.Generator().manual_seed(3)
    completion = torch.randint(3, len(tokenizer), (8, LONGEST), generator=rng)
    mask = torch.arange(LONGEST) < LENGTHS[:, None]
    batch = {
        "prompt_ids": torch.randint(3, len(tokenizer), (2, PROMPT), generator=rng)[GROUP],
        "prompt_mask": torch.ones(8, PROMPT, dtype=torch.int64),
        "completion_ids": completion * mask,
        "completion_mask": mask.long(),
        "num_items_in_batch": mask.sum(),
    }
    now = scored(made.model, batch).detach()
    old, ref = (now + 0.4 * torch.randn(8, LONGEST, generator=rng, dtype=torch.float64) * mask for _ in range(2))
    return made, {**batch, "old_per_token_logps": old, "ref_per_token_logps": ref}


def scored(model, batch):
    """Log-probabilities ``[8, T]`` of the completions' tokens."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, PROMPT - 1 : -1].log_softmax(-1)
    return logits.gather(-1, batch["completion_ids"][..., None]).squeeze(-1)


def flat(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def theirs(loss_type, advantages, rows=slice(None), **settings):
    """TRL's loss and flat gradient on some rows of the batch."""
    made, batch = trainer()
    plain = {
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "importance_sampling_level": "token",
        "delta": None,
        "use_bias_correction_kl": True,
    }
    for name, value in {**plain, **settings, "loss_type": loss_type}.items():
        place = made.args if name in ("delta", "use_bias_correction_kl") else made
        assert name in vars(place), name
        setattr(place, name, value)
    picked = {name: table if name == "num_items_in_batch" else table[rows] for name, table in batch.items()}
    made.model.zero_grad()
    loss = made._compute_loss(made.model, {**picked, "advantages": advantages[rows]})
    loss.backward()
    return loss.item(), flat(made.model)


def normalised(rewards=REWARDS, std=True):
    """Advantages as TRL's trainer computes them from rewards: by group, with an unbiased standard deviation plus 1e-4."""
    grouped = rewards.view(2, 4)
    centred = grouped - grouped.mean(1, keepdim=True)
    return (centred / (grouped.std(1, keepdim=True) + 1e-4) if std else centred).flatten()


def ours(method):
    """Our loss and flat gradient on the same batch."""
    made, batch = trainer()
    mask = batch["completion_mask"].bool()
    reference = {"ref": batch["ref_per_token_logps"]} if refs("ref") in method.needs else {}
    steps = Steps(scored(made.model, batch), mask, batch["old_per_token_logps"], reference)
    signal = method.signal(Feedback(REWARDS, GROUP, tables={MASK: mask}))
    made.model.zero_grad()
    loss = (method.weigh(mask) * method.loss(steps, signal).values).sum()
    loss.backward()
    return loss.item(), flat(made.model)


def apart(first, second):
    """Relative distance of two gradients."""
    return float((first - second).norm() / second.norm())


@pytest.mark.parametrize("loss_type, name, library, settings, changes", CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_loss_and_gradient(loss_type, name, library, settings, changes):
    method = mm.like(library, getattr(mm.methods, name), **changes)
    (loss, gradient), (wanted, slope) = ours(method), theirs(loss_type, normalised(), **settings)
    assert loss == pytest.approx(wanted, rel=1e-5, abs=1e-6)  # TRL's log-probabilities are float32 whatever the model is
    assert slope.norm() > 1e-4 and apart(gradient, slope) < 1e-5


def test_every_loss_type_is_compared():
    from trl.trainer import grpo_config

    named = {case[0] for case in CASES}
    settings = grpo_config.GRPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    assert {word for word in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo") if f"'{word}'" in settings} == named


def test_dr_grpo_of_the_paper_is_trl_s_without_its_division():
    """TRL divides by the standard deviation unless `scale_rewards` is off; the paper's point is not to."""
    (loss, gradient), (wanted, slope) = ours(mm.methods.dr_grpo(length=LONGEST)), theirs("dr_grpo", normalised(std=False))
    assert loss == pytest.approx(wanted, rel=1e-5) and apart(gradient, slope) < 1e-5
    assert apart(gradient, theirs("dr_grpo", normalised())[1]) > 0.1


def test_bnpo_of_trl_is_another_loss_for_every_split():
    """A mean over the tokens of each half, averaged over halves, is not the mean over all tokens; ours weighs the whole batch at once."""
    halves = [theirs("bnpo", normalised(), rows=rows)[0] for rows in (slice(0, 4), slice(4, 8))]
    assert abs(sum(halves) / 2 - theirs("bnpo", normalised())[0]) > 1e-3


def test_cispo_of_trl_multiplies_every_gradient_by_its_bound():
    """`epsilon_high` bounds the weight itself and inherits .2: almost every weight is .2, and the gradient a fifth of REINFORCE's."""
    made, batch = trainer()
    ratio = (scored(made.model, batch) - batch["old_per_token_logps"]).exp()[batch["completion_mask"].bool()]
    assert (ratio > 0.2).all()
    free = ours(mm.methods.cispo(smallest=1.0, largest=1.0 + 1e-12))
    assert apart(5 * ours(mm.like("TRL", mm.methods.cispo))[1], free[1]) < 1e-6
