from __future__ import annotations

import json

import pytest
import torch

from mmalign.runs import checkpoint
from mmalign.training.optimizer_state import flatten_optimizer, restore_optimizer
from mmalign.types import UserError


def save(folder, step, value=1.0, **more):
    return checkpoint.save(folder, step, tensors={"trained": {"w": torch.full((3,), value)}}, state={"value": value}, **more)


def test_round_trip_is_exact(tmp_path):
    wide = torch.randn(4, 6, dtype=torch.float64)
    tied = torch.randn(5, dtype=torch.bfloat16)
    tensors = {
        "trained": {"a": tied, "b": tied, "t": wide.T, "part": wide[1:3, ::2], "row": wide[0], "flat": wide.view(-1)},
        "method": {
            "scalar": torch.tensor(7),
            "empty": torch.zeros(0, 3),
            "mask": torch.tensor([True, False]),
            "rng": torch.get_rng_state(),
        },
        "none": {},
    }
    state = {"seed": 3, "best": 0.1 + 0.2, "worst": float("-inf"), "words": ["a", None, True]}
    loaded, again = checkpoint.load(checkpoint.save(tmp_path, 40, tensors=tensors, state=state))
    assert again == state and loaded.keys() == tensors.keys()
    for group, named in tensors.items():
        assert loaded[group].keys() == named.keys()
        for name, tensor in named.items():
            assert loaded[group][name].dtype == tensor.dtype and torch.equal(loaded[group][name], tensor), name
    assert loaded["trained"]["a"] is loaded["trained"]["b"]


def test_a_parameter_loses_its_graph_and_nothing_else(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(3))
    loaded, _ = checkpoint.load(checkpoint.save(tmp_path, 1, tensors={"trained": {"w": parameter}}, state={}))
    assert torch.equal(loaded["trained"]["w"], parameter.detach()) and not loaded["trained"]["w"].requires_grad


def test_weights_are_as_readable_as_the_rest(tmp_path):
    path = save(tmp_path, 1)
    assert {file.stat().st_mode for file in path.iterdir()} == {(path / "state.json").stat().st_mode}


def test_keeps_the_newest(tmp_path):
    for step in (5, 10, 200_000, 1_000_000):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_1000000", "step_200000"]
    assert checkpoint.latest(tmp_path).name == "step_1000000"
    with pytest.raises(UserError, match="keep"):
        save(tmp_path, 6, keep=0)


def test_no_checkpoint(tmp_path):
    assert checkpoint.latest(tmp_path) is None and checkpoint.latest(tmp_path / "none") is None


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 5, 1.0)
    path = save(tmp_path, 5, 2.0)
    assert checkpoint.load(path)[1] == {"value": 2.0} and [p.name for p in tmp_path.iterdir()] == ["step_000005"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_older_ones(tmp_path, monkeypatch, moment):
    save(tmp_path, 5)

    def fail(*_):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, moment, fail)
        with pytest.raises(OSError, match="killed"):
            save(tmp_path, 6, 2.0)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000005"]
    assert checkpoint.load(checkpoint.latest(tmp_path))[1] == {"value": 1.0}


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def edit(without="", **changes):
    """What a hand does to state.json."""

    def harm(path):
        body = json.loads(path.read_text())
        body.pop(without, None)
        path.write_text(json.dumps({**body, **changes}))

    return harm


@pytest.mark.parametrize(
    ("file", "harm", "word"),
    [
        ("trained.safetensors", shorten, "bytes"),
        ("trained.safetensors", flip, "changed"),
        ("trained.safetensors", lambda path: path.unlink(), "cannot be read"),
        ("state.json", lambda path: path.unlink(), "cannot be read"),
        ("state.json", shorten, "state.json is damaged"),
        ("state.json", lambda path: path.write_text("[]"), "state.json is damaged"),
        ("state.json", lambda path: path.write_text("[" * 9999), "state.json is damaged"),
        ("state.json", lambda path: path.write_bytes(b"\xff"), "state.json is damaged"),
        ("state.json", edit(step=5), "state.json has changed"),
        ("state.json", edit(state={"value": 3.0}), "state.json has changed"),
        ("state.json", edit(files={}), "state.json has changed"),
        ("state.json", edit(crc32=0), "state.json has changed"),
        ("state.json", edit(more=1), "state.json is damaged"),
        ("state.json", edit(without="crc32"), "state.json is damaged, or was written before 0.2.0"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_line(tmp_path, file, harm, word):
    save(tmp_path, 5)
    harm(save(tmp_path, 6) / file)
    path, lines = checkpoint.newest(tmp_path)
    assert path is not None and path.name == "step_000005" and len(lines) == 1 and word in lines[0]
    with pytest.raises(UserError, match=word):
        checkpoint.load(tmp_path / "step_000006")


def test_who_uses_a_run_is_told_of_the_checkpoint_that_was_passed_over(tmp_path):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    assert checkpoint.newest_sound(tmp_path) == newer and checkpoint.newest_sound(tmp_path / "none") is None
    (newer / "trained.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"step_000002: damaged .*step_000001 is used in its place"):
        assert checkpoint.newest_sound(tmp_path) == older
    (older / "trained.safetensors").unlink()
    with pytest.raises(UserError, match=r"step_000002: damaged .*and there is no other; takes a run with a whole checkpoint"):
        checkpoint.newest_sound(tmp_path)


def test_a_checkpoint_under_another_step_s_name_is_damaged(tmp_path):
    save(tmp_path, 5).rename(tmp_path / "step_000009")
    path, lines = checkpoint.newest(tmp_path)
    assert path is None and "step_000009: damaged (it holds step 5), skipped" in lines[0]
    (tmp_path / "step_000009").rename(tmp_path / "kept")  # a name of the user's own says nothing
    assert checkpoint.load(tmp_path / "kept")[1] == {"value": 1.0}


def test_a_damaged_future_does_not_push_out_what_is_sound(tmp_path):
    for step in (2, 4, 6):
        shorten(save(tmp_path, step, keep=9) / "trained.safetensors") if step > 2 else save(tmp_path, step)
    save(tmp_path, 3)
    assert checkpoint.latest(tmp_path).name == "step_000003" and (tmp_path / "step_000002").is_dir()


def test_the_order_of_its_keys_is_nothing(tmp_path):
    path = save(tmp_path, 5)
    body = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(dict(reversed(body.items()))))
    assert checkpoint.damage(path) is None


def test_numbers_that_are_not_finite_come_back(tmp_path):
    path = checkpoint.save(tmp_path, 1, tensors={}, state={"a": float("nan"), "b": [float("inf"), -0.0, 1e-320, 2**70], 3: None})
    assert str(checkpoint.load(path)[1]) == "{'a': nan, 'b': [inf, -0.0, 1e-320, 1180591620717411303424], '3': None}"


def model(seed: int = 0):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    frozen = torch.nn.Parameter(torch.ones(2))  # in the optimiser, never stepped: it has no state
    return net, {**dict(net.named_parameters()), "frozen": frozen}


def train(net, optimizer, first, last):
    for step in range(first, last):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


MAKERS = {
    "adamw": lambda p: torch.optim.AdamW(
        [{"params": p[:2], "lr": 0.01}, {"params": p[2:], "lr": 0.03, "weight_decay": 0.5}], betas=(0.8, 0.9), amsgrad=True
    ),
    "adamw_tensor_lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), foreach=False),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_an_optimiser_continues_bit_for_bit(tmp_path, maker):
    net, names = model()
    straight = MAKERS[maker](list(names.values()))
    train(net, straight, 0, 3)
    tensors, state = flatten_optimizer(straight, names)
    weights = {name: p.detach() for name, p in names.items()}
    path = checkpoint.save(tmp_path, 3, tensors={"trained": weights, "optimizer": tensors}, state={"optimizer": state})
    train(net, straight, 3, 6)

    other, fresh = model(seed=9)
    optimizer = MAKERS[maker](list(fresh.values()))
    train(other, optimizer, 50, 52)  # dirty state, to be replaced
    for group in optimizer.param_groups:
        group["weight_decay"], group["lr"] = 9.0, torch.tensor(9.0) if isinstance(group["lr"], torch.Tensor) else 9.0
    loaded, saved = checkpoint.load(path)
    with torch.no_grad():
        for name, parameter in fresh.items():
            parameter.copy_(loaded["trained"][name])
    restore_optimizer(optimizer, fresh, loaded["optimizer"], saved["optimizer"])
    train(other, optimizer, 3, 6)
    for name in names:
        assert torch.equal(names[name], fresh[name]), name
    before, after = straight.state_dict(), optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"] and before["state"].keys() == after["state"].keys()
    for index, entries in before["state"].items():
        for key, value in entries.items():
            same = (
                torch.equal(value, after["state"][index][key]) if isinstance(value, torch.Tensor) else value == after["state"][index][key]
            )
            assert same, (index, key)


def test_optimiser_state_keeps_its_own_dtype(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([parameter])
    optimizer.state[parameter] = {"step": torch.tensor(1.0), "exp_avg": torch.full((3,), 1 / 3), "exp_avg_sq": torch.full((3,), 1 / 7)}
    tensors, state = flatten_optimizer(optimizer, {"w": parameter})
    fresh = torch.optim.AdamW([parameter])
    restore_optimizer(fresh, {"w": parameter}, tensors, json.loads(json.dumps(state)))
    assert torch.equal(fresh.state[parameter]["exp_avg"], torch.full((3,), 1 / 3))


def test_an_optimiser_over_other_parameters_is_refused():
    net, names = model()
    optimizer = torch.optim.SGD(list(names.values()), lr=0.1)
    tensors, state = flatten_optimizer(optimizer, names)
    renamed = {f"x.{name}" if name == "frozen" else name: p for name, p in names.items()}
    with pytest.raises(UserError, match=r"frozen, x.frozen"):
        restore_optimizer(optimizer, renamed, tensors, state)
    with pytest.raises(UserError, match="without a name"):
        flatten_optimizer(optimizer, dict(net.named_parameters()))


def test_those_of_every_so_many_steps_are_kept_before_others(tmp_path):
    for step in (2, 4, 5):
        save(tmp_path, step, every=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000004", "step_000005"]
    save(tmp_path, 6, every=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000004", "step_000006"]
    save(tmp_path, 7, every=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000006", "step_000007"]
