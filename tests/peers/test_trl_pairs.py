"""TRL's DPOTrainer, on the same model and the same batch: loss and gradient of each of its loss types, by our dialects of it."""

from __future__ import annotations

import os
from functools import cache
from types import SimpleNamespace

import pytest
import torch

import mmalign as mm
from mmalign.needs import MASK
from mmalign.types import Feedback, Steps
from tests.helpers.trl_models import kept_quiet, tokenizer_and_models

trl = pytest.importorskip("trl", minversion="1.16")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

PAIRS = [("a b", "c d e", "f"), ("b c d", "a", "e f a b"), ("f", "b b c", "d a c"), ("e a", "d c b a f", "c")]
CASES = [
    ("sigmoid", "dpo", "TRL 1.16", {}),
    ("sigmoid_norm", "dpo", "TRL 1.16 sigmoid_norm", {}),
    ("hinge", "hinge", "TRL 1.16", {}),
    ("ipo", "ipo", "TRL 1.16", {}),
    ("exo_pair", "exo", "TRL 1.16", {"label_smoothing": 1e-3}),
    ("nca_pair", "nca", "TRL 1.16", {}),
    ("robust", "rdpo", "TRL 1.16", {"label_smoothing": 0.1}),
    ("bco_pair", "bco_pair", "TRL 1.16", {}),
    ("sppo_hard", "sppo", "TRL 1.16", {"beta": 0.001}),
    ("aot", "aot", "TRL 1.16", {}),
    ("aot_unpaired", "aot", "TRL 1.16 aot_unpaired", {}),
    ("apo_zero", "apo_zero", "TRL 1.16", {}),
    ("apo_down", "apo_down", "TRL 1.16", {}),
    ("discopop", "discopop", "TRL 1.16", {}),
    ("sigmoid sft", "rpo", "TRL 1.16", {}),
    ("sigmoid bco_pair sft", "mpo", "TRL 1.16", {"loss_weights": [0.8, 0.2, 1.0]}),
    ("sigmoid", "wpo", "TRL 1.16", {"use_weighting": True}),
    ("sigmoid", "ld_dpo", "TRL 1.16", {"ld_alpha": 0.5}),
    ("sigmoid", "f_dpo", "TRL 1.16 forward_kl", {"f_divergence_type": "forward_kl"}),
    ("sigmoid", "f_dpo", "TRL 1.16 js_divergence", {"f_divergence_type": "js_divergence"}),
    ("sigmoid", "f_dpo", "TRL 1.16", {"f_divergence_type": "alpha_divergence"}),
]


def dialect(name, library):
    """The method of that name as the library computes it, by its docstring."""
    return mm.like(library, getattr(mm.methods, name))


@cache
def trainer():
    """A DPOTrainer of a tiny Llama in float64, whose reference is another one; settings are changed case by case."""
    from datasets import Dataset

    tokenizer, built = tokenizer_and_models(5, 4)
    rows = Dataset.from_list([{"prompt": p, "chosen": f" {w}", "rejected": f" {r}"} for p, w, r in PAIRS])
    # use_weighting: so that the fused head gives what WPO takes; settings are changed case by case
    args = trl.DPOConfig(**kept_quiet(disable_dropout=True, use_weighting=True))
    made = trl.DPOTrainer(model=built[0], ref_model=built[1], args=args, train_dataset=rows, processing_class=tokenizer)
    made.model.train()
    return made, made.data_collator(list(made.train_dataset))


def theirs(loss_types, rows=slice(None), **settings):
    """TRL's loss and flat gradient on some pairs of the batch."""
    made, batch = trainer()
    made.loss_types = loss_types.split()
    made.loss_weights = settings.pop("loss_weights", [1.0] * len(made.loss_types))
    plain = {"beta": 0.1, "label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5}
    for name, value in {**plain, "use_weighting": False, "ld_alpha": None, **settings}.items():
        assert name in vars(made), name
        setattr(made, name, value)
    picked = {name: torch.cat([half[rows] for half in table.chunk(2)]) for name, table in batch.items()}
    made.model.zero_grad()
    loss = made._compute_loss(made.model, picked, False)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in made.model.parameters() if p.grad is not None])


def tokens(model, batch):
    """Log-probabilities ``[2N, T]`` of the completions' tokens, chosen and rejected side by side, their mask and collision terms."""
    interleaved = torch.arange(len(batch["input_ids"])).view(2, -1).T.flatten()
    ids, mask = batch["input_ids"][interleaved], batch["completion_mask"][interleaved][:, 1:].bool()
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"][interleaved]).logits[:, :-1].log_softmax(-1)
    collision = (2 * logits).logsumexp(-1)
    return logits.gather(-1, ids[:, 1:, None]).squeeze(-1), mask, collision


def ours(method):
    """Our loss and flat gradient on the same batch."""
    made, batch = trainer()
    log_probs, mask, collision = tokens(made.model, batch)
    with torch.no_grad():
        ref = tokens(made.ref_model, batch)[0]
    steps = Steps(log_probs, mask, refs={"ref": ref}, terms={"collision": collision})
    count = len(log_probs)
    pairs = torch.arange(count).view(-1, 2)
    rewards = torch.full((count,), torch.nan, dtype=torch.float64)
    signal = method.signal(Feedback(rewards, torch.arange(count) // 2, pairs=pairs, tables={MASK: mask}))
    if method.survey is not None:
        with torch.no_grad():
            signal = method.survey(steps.each(torch.Tensor.detach), signal)
    made.model.zero_grad()
    loss = (method.weigh(mask) * method.loss(steps, signal).values).sum()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in made.model.parameters() if p.grad is not None])


def apart(first, second):
    """Relative distance of two gradients."""
    return float((first - second).norm() / second.norm())


@pytest.mark.parametrize(
    "loss_types, name, library, settings", CASES, ids=[f"{case[0]}-{case[1]}-{number}" for number, case in enumerate(CASES)]
)
def test_loss_and_gradient(loss_types, name, library, settings):
    (loss, gradient), (wanted, slope) = ours(dialect(name, library)), theirs(loss_types, **settings)
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert slope.norm() > 1e-4 and apart(gradient, slope) < 1e-5


def test_every_loss_type_is_compared():
    allowed = trl.DPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    seen = {word for case in CASES for word in case[0].split()}
    named = {word.strip("'`\".,[]()") for word in allowed.split()}
    assert seen <= named and len(seen) == 15


def test_trl_ignores_label_smoothing_of_sigmoid():
    """What is called cDPO elsewhere, and was in older TRL, is plain DPO in TRL 1.16."""
    smooth = theirs("sigmoid", label_smoothing=0.3)[0]
    assert smooth == theirs("sigmoid")[0] == pytest.approx(ours(dialect("cdpo", "TRL 1.16"))[0], rel=1e-5)
    assert abs(ours(mm.methods.cdpo(smoothing=0.3))[0] - smooth) > 1e-3


def test_trl_s_aot_depends_on_the_micro_batch():
    """It sorts whatever is on the device: halves of a batch have another loss than the batch. Ours ranks the whole update."""
    halves = [theirs("aot", rows=slice(start, start + 2))[0] for start in (0, 2)]
    assert abs(sum(halves) / 2 - theirs("aot")[0]) > 1e-4


def test_trl_s_discopop_is_nan_far_away():
    """sigmoid(z / tau) * exp(-z) is 0 * inf; as one exponential it is finite."""
    loss, gradient = theirs("discopop", beta=1e4)
    assert not torch.tensor(loss).isfinite() and not gradient.isfinite().all()
    loss, gradient = ours(mm.methods.discopop(beta=1e4))
    assert torch.tensor(loss).isfinite() and gradient.isfinite().all()


def test_trl_s_forward_kl_overflows():
    """exp(-log-ratio) without a bound; both rows far away are inf - inf."""
    made, _ = trainer()
    try:
        made.ref_model.lm_head.weight.data.mul_(200)
        made.model.lm_head.weight.data.mul_(400)
        loss, gradient = theirs("sigmoid", f_divergence_type="forward_kl")
        assert not torch.tensor(loss).isfinite() or not gradient.isfinite().all()
        loss, gradient = ours(mm.methods.f_dpo(divergence="forward_kl"))
        assert torch.tensor(loss).isfinite() and gradient.isfinite().all()
    finally:
        made.ref_model.lm_head.weight.data.div_(200)
        made.model.lm_head.weight.data.div_(400)


# ---- trainers of trl.experimental: their loss functions alone


def table():
    """Two pairs ``[4, 2]`` of log-probabilities with a gradient, the first row of a pair chosen."""
    generator = torch.Generator().manual_seed(0)
    leaf = (-3 * torch.rand(4, 2, generator=generator, dtype=torch.float64)).requires_grad_()
    steps = Steps(leaf, torch.ones(4, 2, dtype=torch.bool))
    pairs, rewards = torch.tensor([[0, 1], [2, 3]]), torch.full((4,), torch.nan, dtype=torch.float64)
    return steps, Feedback(rewards, torch.tensor([0, 0, 1, 1]), pairs=pairs, tables={MASK: steps.mask})


def total(method, steps, said):
    return (method.weigh(steps.mask) * method.loss(steps, method.signal(said)).values).sum()


@pytest.mark.parametrize("name, mean, settings", [("simpo", True, {}), ("alphapo", True, {"alpha": 0.25}), ("cpo", False, {})])
def test_cpo_trainer(name, mean, settings):
    cpo = pytest.importorskip("trl.experimental.cpo")
    steps, feedback = table()
    scores = steps.log_probs.mean(1) if mean else steps.log_probs.sum(1)
    like = {"alpha": 0.0, "loss_type": "simpo" if mean else "sigmoid", "simpo_gamma": 0.5, "beta": 0.1, "label_smoothing": 0.0}
    wanted = cpo.CPOTrainer.cpo_loss(
        SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), **{**like, **settings}), scores[0::2], scores[1::2]
    )[0]
    likelihood = 0.0 if name == "alphapo" else -steps.log_probs[0::2].mean()  # cpo_alpha 1
    loss = total(dialect(name, "TRL 1.16"), steps, feedback)
    assert loss.item() == pytest.approx((wanted.mean() + likelihood).item(), rel=1e-10)


def test_orpo_trainer_and_its_dead_branch():
    orpo = pytest.importorskip("trl.experimental.orpo")
    steps, feedback = table()
    like = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    means = steps.log_probs.mean(1)
    odds = orpo.ORPOTrainer.odds_ratio_loss(like, means[0::2], means[1::2])[0]
    loss = total(dialect("orpo", "TRL 1.16"), steps, feedback)
    assert loss.item() == pytest.approx((-odds.mean() - steps.log_probs[0::2].mean()).item(), rel=1e-6)  # their odds are float32

    sure = torch.full((4, 1), -1e-8, dtype=torch.float64).requires_grad_()  # rows that are nearly certain
    orpo.ORPOTrainer.odds_ratio_loss(like, sure[0::2, 0], sure[1::2, 0])[0].sum().backward()
    assert not sure.grad.isfinite().all(), "TRL mended log1mexp: say so in orpo's docstring"
    sure = sure.detach().requires_grad_()
    total(mm.methods.orpo(), Steps(sure, torch.ones(4, 1, dtype=torch.bool)), feedback).backward()
    assert sure.grad.isfinite().all() and sure.grad.any()
