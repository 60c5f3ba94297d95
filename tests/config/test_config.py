from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmalign import config
from mmalign.arguments import signatures
from mmalign.config import instantiate
from mmalign.types import Method, UserError

HOUSE = """
from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmalign.types import Adapter

if typing.TYPE_CHECKING:
    from nowhere import Unknown

ADAPTER = Adapter("token", frozenset({"old", "refs", "logits"}))
built = []


def pipeline(*, denoiser: Literal["dit", "unet"] = "dit", weights: Path | None = None) -> Any:
    built.append("pipeline")
    return ("pipeline", denoiser, weights)


def policy(pipeline: Any, *, kernel: Callable | None = None, rank: int = 4, lora: Mapping[str, Any] | None = None, odd: Unknown = None):
    built.append("policy")
    return ("policy", pipeline, kernel, rank, lora)


def reward(*, scale: float = 1.0, sizes: tuple[int, int] = (8, 8)):
    built.append("reward")
    return lambda outputs, prompts: (scale, sizes)


def total(parts: Sequence[Callable], *, weights: Mapping[str, float] | None = None):
    return lambda: list(parts)


def recipe(policy: Any, *, prompts: Sequence[str], rewards: Mapping[str, Callable], method: Any, steps: int = 10, rate: float = 1e-3,
           save: bool = True, name: str = "run", prompt_file: str | None = None, runs: Path = Path("runs"), judges: Any = None,
           resume: bool = False):
    return locals()


def open_ended(**anything):
    return anything


def refuses(*, low: float = 0.0):
    from mmalign.types import UserError

    raise UserError("low: got 2, takes 0..1")
"""


@pytest.fixture
def house(write_module):
    write_module("house.py", HOUSE)


def node(**changes):
    whole = {
        "use": "house.recipe",
        "policy": {"use": "house.policy", "pipeline": {"use": "house.pipeline"}, "kernel": {"use": "flow_sde", "noise_level": 0.7}},
        "prompts": ["a", "b"],
        "rewards": {"size": {"use": "house.reward", "scale": 2}},
        "method": {"use": "grpo", "clip": 0.1},
    }
    return {key: value for key, value in {**whole, **changes}.items() if value is not ...}


def checked(of):
    """A config's mistakes, with the house imported: it is outside of mmalign."""
    return config.check(of, trust=True)


# ---- what is right


def test_a_file_is_a_call(house):
    assert checked(node()) == []
    called = config.build(node(steps=3), resume=True)
    assert called["steps"] == 3 and called["resume"] is True and called["prompts"] == ["a", "b"]
    assert called["policy"][:2] == ("policy", ("pipeline", "dit", None)) and callable(called["policy"][2])
    assert called["rewards"]["size"](None, None) == (2.0, (8, 8))
    assert isinstance(called["method"], Method)


def test_nothing_is_built_while_there_is_a_mistake(house):
    import house as module

    with pytest.raises(UserError):
        config.build(node(stepz=3))
    assert checked(node()) == [] and module.built == []


def test_lists_and_mappings_inherit_their_keys_rooms(house):
    parts = [{"use": "house.reward"}, {"use": "house.reward", "scale": 3.0}]
    called = config.build(node(rewards={"total": {"use": "house.total", "parts": parts, "weights": {"a": 1}}}))
    assert [part(None, None)[0] for part in called["rewards"]["total"]()] == [1.0, 3.0]
    wrong = node(rewards={"total": {"use": "house.total", "parts": [{"use": "house.reward"}, {"use": "nowhere_to_be_found"}]}})
    (line,) = checked(wrong)
    assert line.startswith("rewards.total.parts[1].use: got 'nowhere_to_be_found', there is none in rewards or worlds")


def test_a_pipeline_may_be_a_hub_id_or_a_folder(house):
    policy = {"use": "house.policy", "pipeline": "some/hub-id"}
    assert checked(node(policy=policy)) == [] and config.build(node(policy=policy))["policy"][1] == "some/hub-id"
    (line,) = checked(node(policy={**policy, "pipeline": 3}))
    assert line.startswith("policy.pipeline: got 3, takes a node {use: NAME, ...}")


def test_values_become_what_the_signature_says(house, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.touch()
    policy = {"use": "house.policy", "pipeline": {"use": "house.pipeline", "weights": str(file)}, "lora": {"rank": 4, "targets": ["q"]}}
    called = config.build(node(policy=policy, runs="some/where", rewards={"size": {"use": "house.reward", "sizes": [1, 2]}}))
    assert called["policy"][1][2] == file and called["runs"] == Path("some/where")
    assert called["policy"][4] == {"rank": 4, "targets": ["q"]}
    assert called["rewards"]["size"](None, None)[1] == (1, 2)


def test_files_that_come_with_mmalign_are_found_from_any_folder(house, tmp_path, monkeypatch):
    monkeypatch.setattr(instantiate, "resource", lambda name: tmp_path / name)
    (tmp_path / "words.txt").touch()
    assert config.build(node(prompt_file="words.txt"))["prompt_file"] == str(tmp_path / "words.txt")


def test_any_key_goes_where_a_signature_takes_any(house):
    assert config.build({"use": "house.open_ended", "a": 1, "b": {"c": 2}}) == {"a": 1, "b": {"c": 2}}


# ---- what is wrong: one line each, all at once


WRONG = [
    (
        {"stepz": 3},
        "stepz: unknown key of house.recipe; nearest: steps; takes policy, prompts, rewards, method, steps, rate, save, name, "
        "prompt_file, runs, judges, resume",
    ),
    ({"steps": "x"}, "steps: got 'x', takes int"),
    ({"steps": 1.0}, "steps: got 1.0, takes int"),
    ({"steps": True}, "steps: got True, takes int"),
    ({"steps": None}, "steps: got None, takes int"),
    ({"rate": "1e-4"}, "rate: got '1e-4', takes float"),
    ({"save": 1}, "save: got 1, takes bool"),
    ({"name": 3}, "name: got 3, takes str"),
    ({"prompts": "one prompt"}, "prompts: got 'one prompt', takes list of str"),
    ({"prompts": ["a", 3]}, "prompts: got ['a', 3], takes list of str"),
    ({"prompt_file": "not/there.txt"}, "prompt_file: no such file: not/there.txt"),
    ({"prompts": ...}, "prompts: missing, house.recipe needs it: {use: NAME of data or worlds, ...}"),
    ({"method": ...}, "method: missing, house.recipe needs it: {use: NAME of methods, ...}"),
    ({"rewards": ...}, "rewards: missing, house.recipe needs it: {name: {use: NAME of rewards or worlds, ...}}"),
    ({"method": {"use": "grpo", "clip": "x"}}, "method.clip: got 'x', takes float"),
    ({"method": {"clip": 0.1}}, "method.use: missing, takes a name of methods, or an import path"),
    ({"method": "g r"}, "method: got 'g r', takes a node {use: NAME, ...} with a name of methods"),
    ({"method": None}, "method: got None, takes a node {use: NAME, ...} with a name of methods"),
    (
        {"rewards": {"size": {"use": "gdpo"}}},
        "rewards.size.use: got 'gdpo', there is none in rewards or worlds; it is one that stands under method; an import path works too",
    ),
    ({"method": {"use": "grpoo"}}, "method.use: got 'grpoo', there is none in methods; nearest: grpo"),
    ({"method": {"use": 3}}, "method.use: got 3, takes a name of methods, or an import path"),
    ({"method": {"use": "no_package.at_all"}}, "method.use: no_package.at_all: no module called 'no_package'"),
    ({"method": {"use": "house.ADAPTER"}}, "method.use: got 'house.ADAPTER', which is of type Adapter; takes a function"),
    ({"method": {"use": "house.refuses"}}, "method: low: got 2, takes 0..1"),
    ({"rewards": {"size": {"scale": 1}}}, "rewards.size.use: missing, takes a name of rewards or worlds, or an import path"),
    ({"rewards": {"size": 3}}, "rewards.size: got 3, takes a node {use: NAME, ...}"),
    ({"rewards": {"a": {"use": "house.reward"}, "b": {}}}, "rewards.b.use: missing"),
    ({"rewards": {"size": {"use": "house.reward", "sizes": [1, 2, 3]}}}, "rewards.size.sizes: got [1, 2, 3], takes list of int and int"),
    ({"policy": {"use": "house.policy"}}, "policy.pipeline: missing, house.policy needs it: {use: NAME of worlds, ...}"),
    (
        {"policy": {"use": "house.policy", "pipeline": {"use": "house.pipeline", "denoiser": "mlp"}}},
        "policy.pipeline.denoiser: got 'mlp', takes 'dit' or 'unet'",
    ),
    (
        {"policy": {"use": "house.policy", "pipeline": {"use": "house.pipeline", "weights": "gone.pt"}}},
        "policy.pipeline.weights: no such file: gone.pt",
    ),
    (
        {"policy": {"use": "house.policy", "pipeline": {"use": "house.pipeline"}, "kernel": {"use": "flow_sda"}}},
        "policy.kernel.use: got 'flow_sda', there is none in samplers.kernels; nearest: flow_sde",
    ),
    # an annotation that cannot be resolved does not keep its neighbours from being checked
    ({"policy": {"use": "house.policy", "pipeline": {"use": "house.pipeline"}, "rank": "x"}}, "policy.rank: got 'x', takes int"),
    ({"use": ...}, "use: missing, takes the name of a recipe"),
    ({"use": "onlin_"}, "use: got 'onlin_', there is none in recipes"),
]


@pytest.mark.parametrize(("changes", "line"), WRONG, ids=[line[:60] for _, line in WRONG])
def test_a_mistake_is_one_line_that_begins_with_its_key(house, changes, line):
    errors = checked(node(**changes))
    assert len(errors) == 1 and errors[0].startswith(line) and "\n" not in errors[0], errors


def test_all_mistakes_at_once(house):
    errors = checked(node(stepz=1, rate="x", prompts=..., method={"use": "grpo", "clop": 1}, rewards={"size": {"use": "house.rewerd"}}))
    assert sorted(line.split(":")[0] for line in errors) == ["method.clop", "prompts", "rate", "rewards.size.use", "stepz"]


# ---- what a method needs and what a policy gives


def test_a_method_that_needs_what_the_policy_does_not_give(house, write_module):
    write_module(
        "wants.py",
        """
from mmalign.types import Method, Need

def method(*, needs: list[str], kinds: list[str] = ["token"]):
    return Method(signal=None, loss=None, weigh=None, needs=frozenset(Need(*need.split(":")) for need in needs), kinds=frozenset(kinds))
""",
    )
    assert checked(node(method={"use": "wants.method", "needs": ["old", "refs:ema"]})) == []
    (line,) = checked(node(method={"use": "wants.method", "needs": ["old", "std", "kls:ref"]}))
    assert line == "method: wants.method needs kls:ref, std; the policy house.policy gives logits, old, refs"
    (line,) = checked(node(method={"use": "wants.method", "needs": [], "kinds": ["transition", "bound"]}))
    assert line == "method: wants.method takes steps of kind bound, transition; the policy house.policy gives token"


# ---- files and overrides


def write(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_load_resolves_interpolations_and_numbers(tmp_path):
    file = write(tmp_path, "use: online\nclip: 1e-4\nagain: ${clip}\nrate: .7\nitems: [{a: 1}]\n")
    assert config.load(file) == {"use": "online", "clip": 1e-4, "again": 1e-4, "rate": 0.7, "items": [{"a": 1}]}


def test_overrides(tmp_path):
    file = write(tmp_path, "use: online\nmethod: {use: grpo, clip: .2}\nagain: ${method.clip}\nitems: [{a: 1}]\nkernel: null\n")
    loaded = config.load(file, ["method.clip=1e-4", "new.sub.key=[1, two]", "items[0].a=3", "kernel.use=ode", "flag=true", "method.kl=a=b"])
    assert loaded["method"] == {"use": "grpo", "clip": 1e-4, "kl": "a=b"} and loaded["again"] == 1e-4
    assert loaded["new"] == {"sub": {"key": [1, "two"]}} and loaded["items"] == [{"a": 3}]
    assert loaded["kernel"] == {"use": "ode"} and loaded["flag"] is True


LISTS = [
    ("run.trackers=[tensorboard, wandb]", {"trackers": ["tensorboard", "wandb"], "betas": [0.9, 0.99]}),
    ("run.trackers=[]", {"trackers": [], "betas": [0.9, 0.99]}),
    ("run.trackers[0]=aim", {"trackers": ["aim"], "betas": [0.9, 0.99]}),
    ("run.trackers[1]=aim", {"trackers": ["wandb", "aim"], "betas": [0.9, 0.99]}),
    ("run.betas.1=.5", {"trackers": ["wandb"], "betas": [0.9, 0.5]}),
    ("run.new[0]=a", {"trackers": ["wandb"], "betas": [0.9, 0.99], "new": ["a"]}),
    ("run.new[0].deep=a", {"trackers": ["wandb"], "betas": [0.9, 0.99], "new": [{"deep": "a"}]}),
    ("run={trackers: []}", {"trackers": []}),
    ("run={}", {}),
    ("run=[a, b]", ["a", "b"]),
]


@pytest.mark.parametrize(("word", "run"), LISTS)
def test_lists_can_be_set_and_replace_mappings(tmp_path, word, run):
    file = write(tmp_path, "use: online\nrun: {trackers: [wandb], betas: [0.9, 0.99]}\n")
    assert config.load(file, [word]) == {"use": "online", "run": run}


def test_another_use_replaces_the_node_wherever_it_is_said(tmp_path):
    file = write(tmp_path, "use: online\nmethod: {use: grpo, clip: 0.2}\nrewards: {a: {use: jpeg, want: large}}\n")
    assert config.load(file, ["method={use: kto}"])["method"] == {"use": "kto"}
    assert config.load(file, ["method={use: grpo, kl: x}"])["method"] == {"use": "grpo", "kl": "x"}  # as if the file had it
    assert config.load(file, ["method={kl: x}"])["method"] == {"use": "grpo", "clip": 0.2, "kl": "x"}
    assert config.load(file, ["rewards={b: {use: jpeg}}"])["rewards"] == {"b": {"use": "jpeg"}}
    assert config.load(file, ["rewards.b={use: jpeg}"])["rewards"] == {"a": {"use": "jpeg", "want": "large"}, "b": {"use": "jpeg"}}
    assert config.load(file, ["method.use=kto", "method.beta=0.1"])["method"] == {"use": "kto", "beta": 0.1}
    assert config.load(file, ["rewards={a: {use: novelty}, b: {use: jpeg}}"])["rewards"] == {"a": {"use": "novelty"}, "b": {"use": "jpeg"}}
    assert config.load(file, ["use=offline"])["method"] == {"use": "grpo", "clip": 0.2}


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("a: [1", [], "not readable as YAML"),
        ("a: 1\na: 2", [], "duplicate key a"),
        ("- 1\n- 2", [], "takes a mapping"),
        ("a: ${b.c}", [], "a: Interpolation key 'b.c' not found"),
        ("a:\n  b: ???", [], "a.b: Missing mandatory value"),
        ("a: 1", ["b"], "b: takes key.sub=value"),
        ("a: 1", ["=3"], "=3: takes key.sub=value"),
        ("a: 1", ["a.b=3"], "a.b=3: a holds 1, so it has no 'b'"),
        ("a: 1", ["a.b.c=3"], "a.b.c=3: a holds 1"),
        ("a: 1", ["a={b: 1, c"], "takes key.sub=value"),
        ("a: [1]", ["a[4]=3"], "a[4]=3: a is a list of 1, takes a[0] to a[1]"),
        ("a: [1]", ["a.b=3"], "a.b=3: a is a list of 1"),
        ("a: {b: 1}", ["a[0]=3"], "a[0]=3: a holds {'b': 1}, so it has no 0"),
        ("a: 1", ["a..b=3"], "a..b=3: takes key.sub=value"),
    ],
)
def test_an_unreadable_file_or_override_is_one_line(tmp_path, text, overrides, words):
    with pytest.raises(UserError) as caught:
        config.load(write(tmp_path, text), overrides)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_config_names_the_nearest(tmp_path, monkeypatch):
    (tmp_path / "configs" / "digits").mkdir(parents=True)
    (tmp_path / "configs" / "digits" / "flow_grpo.yaml").write_text("use: online\n", encoding="utf-8")
    monkeypatch.setattr(config, "resource", lambda name: tmp_path / name)
    assert config.load("digits/flow_grpo") == config.load("digits/flow_grpo.yaml") == {"use": "online"}
    with pytest.raises(UserError, match=r"digits/flow_grop: no such config; .*; nearest: digits/flow_grpo"):
        config.load("digits/flow_grop")
    with pytest.raises(UserError, match=r"^digits: is a folder of configs; takes one of digits/flow_grpo$"):
        config.load("digits")


def test_a_missing_file_is_told_from_its_neighbours_and_not_from_all_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("use: online\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"^mien.yaml: no such file in {re.escape(str(tmp_path))}; nearest: mine$"):
        config.load("mien.yaml")
    with pytest.raises(UserError, match=r"zzz: no such config; .*; `mmalign list configs` has them all$"):
        config.load("zzz")
    with pytest.raises(UserError, match="is a folder, takes a YAML file"):
        config.load(tmp_path)


def test_shipped_configs_have_no_mistakes():
    files = sorted(config.resource("configs").rglob("*.yaml"))
    assert {str(file): config.check(config.load(file)) for file in files} == {str(file): [] for file in files}


# ---- signatures


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int | None, "int or null"),
        (dict[str, float], "mapping of str to float"),
        (list[int] | str, "list of int or str"),
        (tuple[float, ...], "list of float"),
        (Path, "path"),
        (dict, "mapping"),
    ],
)
def test_annotations_in_words(annotation, words):
    assert signatures.plain(annotation) and signatures.show(annotation) == words


@pytest.mark.parametrize("annotation", [Method, list[Method], Method | None, "text"])
def test_objects_are_not_plain(annotation):
    assert not signatures.plain(annotation)


def test_signatures_of_classes_and_builtins():
    class Thing:
        def __init__(self, size: int, *, name: str = "x") -> None: ...

    known, any_key = signatures.parameters(Thing)
    assert known == {"size": signatures.Parameter("size", int, True), "name": signatures.Parameter("name", str, False)} and not any_key
    assert signatures.parameters(dict) == ({}, True)


# ---- words in place of nodes


def test_a_word_stands_for_a_node(house, tmp_path):
    (tmp_path / "asked.txt").write_text("a\nb\n")
    demo = config.load("digits/demo")
    short = {
        **demo,
        "method": "flow_grpo",
        "combine": "weighted_sum",
        "optimizer": "sgd",
        "rewards": {"a": "digits_proxy", "b": "house.reward"},
    }
    short["prompts"], short["evaluation"] = str(tmp_path / "asked.txt"), {"judges": {"gold": "digits_gold"}, "prompts": "digit_prompts"}
    short["policy"] = {**demo["policy"], "schedule": {"kernel": "ddim"}}
    assert config.check(short) == [] and [one.name for one in config.external_code(short)] == ["house.reward"]
    kept = instantiate.as_node(instantiate.plan(short, instantiate.Review(trust=False)))
    assert kept["method"] == {"use": "flow_grpo"} and kept["rewards"] == {"a": {"use": "digits_proxy"}, "b": {"use": "house.reward"}}
    assert kept["prompts"] == {"use": "prompts", "path": str(tmp_path / "asked.txt")} and kept["optimizer"] == {"use": "sgd"}
    assert kept["evaluation"] == {"judges": {"gold": {"use": "digits_gold"}}, "prompts": {"use": "digit_prompts"}}
    assert config.build_part({"prompts": str(tmp_path / "asked.txt")}, "prompts") == ["a", "b"]
    assert [one.name for one in config.external_code({"rewards": {"b": "house.reward"}})] == ["house.reward"]
    assert config.build_part({"rewards": {"b": "house.reward"}}, "rewards")["b"](None, None) == (1.0, (8, 8))
    assert config.check({**short, "method": "flow_grop"}) == [
        "method.use: got 'flow_grop', there is none in methods; nearest: flow_grpo, tempflow_grpo, flow_dpo; an import path works too"
    ]
    assert config.check({**short, "prompts": "gone.txt"}) == ["prompts.path: no such file: gone.txt"]


def test_prompts_beside_a_config_are_found(tmp_path, monkeypatch):
    (tmp_path / "asked.txt").write_text("a\nb\n")
    write(tmp_path, "use: online\nprompts: asked.txt\n")
    monkeypatch.chdir("/")
    assert config.load(tmp_path / "c.yaml")["prompts"] == str(tmp_path / "asked.txt")


def test_a_word_that_is_too_long_for_a_files_name_is_no_file(tmp_path):
    long = "x" * 3000
    config.load(write(tmp_path, f"use: online\nprompts: {long}\n"))
    (line,) = config.check({**config.load("digits/demo"), "prompts": f"{long} {long}"})
    assert line.startswith("prompts: got 'xxx") and len(line) < 400


def test_given_images_want_a_policy_of_finished_outputs():
    diffusers = {"use": "diffusers", "pipeline": {"use": "digits"}}
    run = {"use": "offline", "records": {"use": "digits_pairs", "pipeline": {"use": "digits"}}, "steps": 2, "run": {"name": "x"}}
    line = "policy: diffusers learns from steps that it samples itself, and records hold finished outputs; takes policy: {use: forward"
    (mistake,) = config.check({**run, "policy": diffusers, "method": {"use": "dpo"}})
    assert mistake.startswith(line)
    assert config.check({**run, "policy": {"use": "forward", "of": diffusers}, "method": {"use": "flow_dpo"}}) == []
    online = {"use": "online", "prompts": {"use": "digit_prompts"}, "rewards": {"r": {"use": "jpeg"}}, "steps": 2, "run": {"name": "x"}}
    (mistake,) = config.check({**online, "policy": diffusers, "method": {"use": "flow_dpo"}})
    assert mistake.endswith(
        "gives transition; takes policy: {use: forward, of: {use: diffusers, ...}}, in Python mm.policies.forward(policy)"
    )
