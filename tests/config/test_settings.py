"""Settings are records: every leaf of every config is known, and a wrong one is one line, in YAML and in Python."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import mmalign as mm
from mmalign.arguments import renamed, signatures
from mmalign.arguments.renamed import POLICY, RECIPE
from mmalign.config import build_part, check, load
from mmalign.lookup import catalogue
from mmalign.types import UserError

CONFIGS = catalogue.configs()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key of a config, at any depth."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield (*path, key)
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from places(item, (*path, number))


def misspelled(config: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """The config with one key spelled wrong: its second letter left out, or one more where there is none."""
    wrong = copy.deepcopy(config)
    node: Any = wrong
    for key in path[:-1]:
        node = node[key]
    key = str(path[-1])
    node[key[0] + key[2:] if len(key) > 2 else key + "x"] = node.pop(path[-1])
    return wrong


def free(config: dict[str, Any], path: tuple[Any, ...]) -> bool:
    """Whether a key is the user's own word: a reward's name, a reference's, a column's, of a server's or a library's own settings."""
    if path[-3:-1] == ("records", "of"):  # sources of a mixture, by name
        return True
    if len(path) > 3 and path[-3] == "by_round" and path[-4] == "rewards":
        return True
    names = {
        "rewards",
        "judges",
        "metrics",
        "references",
        "weights",
        "limits",
        "transforms",
        "criteria",
        "contrasts",
        "columns",
        "scheduler",
        "vocabulary",
        "parts",
        "kept",
        "scales",
        "agree",
        "critics",
        "tools",
        "stages",
        "samplers",
        "corner",
    }
    if path[-3:-2] == ("first",) or ("world" in path[:-2] and path[-3:-2] == ("rewards",)):
        return True  # weights in a list, and what letters of a map are paid
    return len(path) > 1 and (path[-2] in names or not {"vocabulary", "architecture"}.isdisjoint(path[:-1]))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_misspelled_key_of_every_config_is_found(name: str) -> None:
    config = load(CONFIGS[name])
    assert check(config) == []
    missed = [".".join(map(str, path)) for path in places(config) if not free(config, path) and not check(misspelled(config, path))]
    assert missed == []


def changed(config_name: str, /, **changes: Any) -> list[str]:
    """What `check` says of a config after changes, ``policy__lora={...}``."""
    config = load(CONFIGS[config_name])
    for key, value in changes.items():
        *parts, last = key.split("__")
        node = config
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = value
    return check(config)


MISTAKES = {
    "held out": ("reward_models/text", {"evaluation": {"every": 5}}, "evaluation.records: missing; a reward model is evaluated"),
    "lora": ("digits/lora", {"policy__lora": {"rnk": 8}}, "policy.lora.rnk: unknown key of lora; nearest: rank; takes rank, alpha"),
    "call": ("sd35_medium/flow_grpo", {"policy__call": {"hight": 512}}, "policy.call.hight: no argument of this policy's calls; near"),
    "evaluation": ("digits/demo", {"evaluation": {"evry": 5}}, "evaluation.evry: unknown key of evaluation; nearest: every; takes every"),
    "stop": ("digits/demo", {"evaluation__stop": {"jdge": "gold"}}, "evaluation.stop.jdge: unknown key of stop; nearest: judge"),
    "early_stop": ("digits/demo", {"early_stop": {"jdge": "gold"}}, "early_stop: is evaluation.stop since 0.2.0"),
    "references": ("digits/demo", {"references": {"ref": {"evry": 3}}}, "references.ref.evry: unknown key of ref; nearest: every"),
    "train": ("digit_scenes/grpo", {"policy__train": {"langage": "full"}}, "policy.train.langage: unknown key of train; nearest: language"),
    "media": ("digit_scenes/grpo", {"policy__media": {"pxels": 4}}, "policy.media.pxels: unknown key of media; nearest: pixels"),
    "engine": ("digit_scenes/grpo", {"policy__engine": {"ur": "x"}}, "policy.engine.ur: unknown key of engine; nearest: url"),
    "trackers": ("digits/demo", {"run__trackers": ["wandbb"]}, "run.trackers: got ['wandbb'], takes list of 'tensorboard' or 'wandb'"),
    "old trackers": ("digits/demo", {"trackers": ["wandbb"]}, "trackers: is run.trackers since 0.2.0"),
    "a combination": ("digits/demo", {"rewards": {"a": {"use": "worst"}}}, "rewards.a.use: got 'worst', there is none"),
    "prompts": ("digits/demo", {"rewards": {"a": {"use": "digit_prompts"}}}, "rewards.a.use: got 'digit_prompts', which is none"),
    "a reward as oracle": ("digits/demo", {"oracle": {"use": "jpeg"}}, "oracle.use: got 'jpeg', which is none of the oracles"),
    "a reward as metric": ("digits/demo", {"evaluation__metrics": {"a": {"use": "digits_gold"}}}, "evaluation.metrics.a.use: got"),
    "a type": ("digits/lora", {"policy__lora__rank": "x"}, "policy.lora.rank: got 'x', takes int"),
    "a node": ("digits/demo", {"batch__prompts": {"use": "digit_prompts"}}, "batch.prompts: got a node, takes int"),
    "no mapping": ("digits/demo", {"batch": 3}, "batch: got 3, takes a mapping of prompts, group"),
    "a range": ("digits/demo", {"batch__micro_rows": 0}, "batch.micro_rows: got 0, takes 1 or more"),
    "betas": ("digits/demo", {"optimizer__betas": [1, 2]}, "optimizer.betas: got [1, 2], takes a number from 0 to below 1"),
    "ema": ("digits/demo", {"optimizer__ema": 1.5}, "optimizer.ema: got 1.5, takes a number from 0 to below 1"),
    "ema, deep": ("digits/demo", {"optimizer__ema": {"decy": 0.9}}, "optimizer.ema.decy: unknown key of ema; nearest: decay"),
    "optimizer": ("digits/demo", {"optimizer__use": "adamm"}, "optimizer.use: got 'adamm', there is none in training.optimizers; near"),
    "shares": ("digits/demo", {"references": {"ref": {"shares": {"ref": 0.5}}}}, "references.ref.shares: got {'ref': 0.5}"),
    "an empty reference": ("digits/demo", {"references": {"ref": {}}}, "references.ref.from: missing; takes from"),
    "sampler": ("text/grpo", {"evaluation__call": {"temprature": 0}}, "evaluation.call.temprature: no argument of this policy's calls"),
    "a source": (
        "text/dpo",
        {"records": {"use": "mixture", "of": {"a": {"usx": "text_pairs"}}}},
        "records.of.a.use: missing, takes a node",
    ),
    "old kernel": ("digits/demo", {"policy__kernel": {"use": "ddim"}}, "policy.kernel: is schedule.kernel since 0.2.0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str) -> None:
    name, changes, line = MISTAKES[mistake]
    lines = changed(name, **changes)
    assert lines and lines[0].startswith(line) and all("\n" not in one for one in lines)


@pytest.mark.parametrize("key", RECIPE)
def test_every_old_key_of_a_recipe_names_the_new_one(key: str) -> None:
    assert f"{key}: is {RECIPE[key]} since 0.2.0" in changed("digits/demo", **{key: 1})


@pytest.mark.parametrize("key", POLICY)
def test_every_old_key_of_a_policy_names_the_new_one(key: str) -> None:
    name = "text/grpo" if key in ("logits_at_once", "shared_prefixes") else "digits/demo"
    assert f"policy.{key}: is {POLICY[key]} since 0.2.0" in changed(name, **{f"policy__{key}": 1})


GATED = {"use": "gated", "gates": {"prox": 0.5}, "otherwise": 0.0}
AMONG = {"use": "among", "reward": "gold", "eligible": {"proxy": 0.5}}
RANGES = {
    "max_norm": ("optimizer__max_norm", -1, "optimizer.max_norm: got -1, takes a number above 0"),
    "no norm": ("optimizer__max_norm", 0, "optimizer.max_norm: got 0, takes a number above 0"),
    "warmup": ("optimizer__warmup", -5, "optimizer.warmup: got -5, takes 0 or more"),
    "rate": ("optimizer__rate", -1, "optimizer.rate: got -1, takes a number above 0"),
    "no rate": ("optimizer__rate", float("nan"), "optimizer.rate: got nan, takes a number above 0"),
    "a rate without end": ("optimizer__rate", float("inf"), "optimizer.rate: got inf, takes a number above 0, and finite"),
    "ema": ("optimizer__ema", 2, "optimizer.ema: got 2, takes a number from 0 to below 1"),
    "ema, deep": ("optimizer__ema", {"decay": 1.0}, "optimizer.ema.decay: got 1.0, takes a number from 0 to below 1"),
    "weight decay": ("optimizer__weight_decay", -0.1, "optimizer.weight_decay: got -0.1, takes 0 or more"),
    "group": ("batch__group", 0, "batch.group: got 0, takes 1 or more"),
    "group, huge": ("batch__group", 10**12, "batch.group: got 1000000000000, takes 1 to 1,000,000"),
    "updates": ("batch__updates", -3, "batch.updates: got -3, takes 1 or more"),
    "more than 64 bits": ("batch__micro_rows", 10**30, "batch.micro_rows: got 1000000000000000000000000000000, takes 1 to 1,000,000"),
    "steps": ("steps", 0, "steps: got 0, takes 1 or more"),
    "steps without end": ("steps", 10**15, "steps: got 1000000000000000, takes 1 to 1,000,000,000"),
    "dtype": ("policy__dtype", "bf16", "policy.dtype: got 'bf16', takes 'float32' or 'bfloat16' or 'float16'"),
    "device": ("policy__device", "cudaa", "policy.device: got 'cudaa', takes a device of torch: cpu, cuda"),
    "schedule": ("policy__schedule__steps", 0, "policy.schedule.steps: got 0, takes 1 or more"),
    "guidance": ("policy__schedule__guidance", float("nan"), "policy.schedule.guidance: got nan, takes a finite number"),
    "alpha": ("policy__lora", {"alpha": 0.0}, "policy.lora.alpha: got 0.0, takes a number above 0"),
    "dropout": ("policy__lora", {"dropout": 1.0}, "policy.lora.dropout: got 1.0, takes a number from 0 to below 1"),
    "rows": ("policy__memory__rows_at_once", -1, "policy.memory.rows_at_once: got -1, takes 1 or more"),
    "samples": ("evaluation__samples", 0, "evaluation.samples: got 0, takes 1 or more"),
    "samples, huge": ("evaluation__samples", 10**9, "evaluation.samples: got 1000000000, takes 1 to 1,000,000"),
    "no step of a call": ("evaluation__call__num_inference_steps", 0, "evaluation.call.num_inference_steps: got 0, takes 1 or more"),
    "guidance of a call": ("evaluation__call__guidance_scale", float("nan"), "evaluation.call.guidance_scale: got nan, takes a finite"),
    "patience": ("evaluation__stop", {"judge": "gold", "patience": 0}, "evaluation.stop.patience: got 0, takes 1 or more"),
    "a judge that is none": ("evaluation__stop", {"judge": "rad"}, "evaluation.stop.judge: got 'rad', takes one of proxy, novelty, gold"),
    "a judge, nearly": ("evaluation__stop", {"judge": "gld"}, "evaluation.stop.judge: got 'gld', takes one of proxy, novelty, gold; near"),
    "a judge twice": ("evaluation__judges__proxy", {"use": "digits_gold"}, "evaluation.judges.proxy: a reward has that name too"),
    "a weight of none": ("combine__weights__noveltie", 1.0, "combine.weights.noveltie: no reward has this name; nearest: novelty; takes"),
    "a gate of none": ("combine", GATED, "combine.gates.prox: no reward has this name; nearest: proxy; takes proxy, novelty"),
    "the worst of none": ("combine", {"use": "worst", "of": ["proxy", "gold"]}, "combine.of.gold: no reward has this name"),
    "one of none": ("combine", AMONG, "combine.reward.gold: no reward has this name; takes proxy, novelty"),
    "seed": ("run__seed", -1, "run.seed: got -1, takes 0 or more"),
    "checkpoints": ("run__checkpoint_every", 0, "run.checkpoint_every: got 0, takes 1 or more"),
    "shares": ("references", {"ref": {"shares": {"ref": -0.5, "current": 1.5}}}, "references.ref.shares: got {'ref': -0.5, 'current'"),
    "kernel": ("policy__schedule__kernel", {"use": "flow_sde", "noise_level": -1}, "policy.schedule.kernel.noise_level: got -1"),
    "prompts": ("prompts", {"a": {"use": "digit_prompts"}}, "prompts.use: missing, takes a name of data or worlds"),
    "a dot": ("method", {"use": "."}, "method.use: got '.', there is none in methods"),
    "dots": ("rewards__proxy", {"use": "a..b"}, "rewards.proxy.use: got 'a..b', there is none in rewards or worlds"),
}


@pytest.mark.parametrize("name", RANGES)
def test_a_number_or_name_that_is_not_taken_is_one_line(name: str) -> None:
    key, value, line = RANGES[name]
    lines = changed("digits/demo", **{key: value})
    assert len(lines) == 1 and lines[0].startswith(line) and "\n" not in lines[0], lines


@pytest.mark.parametrize(
    ("name", "call", "line"),
    [
        ("text/grpo", {"temperature": "None"}, "temperature: got 'None', takes a number"),
        ("text/grpo", {"temperature": None}, "temperature: got None, takes a number"),
        ("text/grpo", {"top_p": True}, "top_p: got True, takes a number"),
        ("text/grpo", {"top_k": 1.5}, "top_k: got 1.5, takes a whole number"),
        ("text/grpo", {"max_completion": [4]}, "max_completion: got [4], takes a whole number"),
        ("text/grpo", {"hidden_media": 2}, "hidden_media: got 2, takes 0 to 1"),
        ("digits/demo", {"num_inference_steps": "20"}, "num_inference_steps: got '20', takes a whole number"),
        ("digits/demo", {"guidance_scale": "high"}, "guidance_scale: got 'high', takes a number"),
    ],
)
def test_what_a_call_is_asked_for_has_its_type(name: str, call: dict[str, Any], line: str) -> None:
    assert changed(name, evaluation__call=call) == [f"evaluation.call.{line}"]
    assert changed("digits/demo", evaluation__call={"num_inference_steps": 2, "guidance_scale": None}) == []


@pytest.mark.parametrize(
    ("place", "key"), [("rewards", "rewards.x"), ("evaluation", "judges.x"), ("evaluation", "metrics.x"), ("evaluation", "mark")]
)
def test_what_is_called_in_a_run_can_be(place: str, key: str) -> None:
    node: Any = {"use": "digit_prompts" if key == "mark" else "collections.Counter"}
    for name in reversed(key.removeprefix("rewards.").split(".")):
        node = {name: node}
    whole = key if place == "rewards" else f"evaluation.{key}"
    with pytest.raises(UserError, match=rf"^{whole}\.use: got '.*', which gives a (list|Counter); takes what gives a function of"):
        build_part({place: node}, place)


@pytest.mark.parametrize("key", ["optimizer", "batch", "evaluation", "run", "devices"])
def test_null_is_no_setting_where_nothing_stands_for_it(key: str) -> None:
    (line,) = check({**load("digits/lora"), key: None})
    assert line.startswith(f"{key}: got ") and "takes a" in line
    assert check({**load("digits/lora"), "combine": None, "oracle": None, "references": None}) == []


def test_what_has_no_end_on_purpose_may_be_without_one() -> None:
    assert changed("digits/demo", optimizer__max_norm=float("inf")) == []  # clips nothing
    assert changed("digits/demo", evaluation__stop={"judge": "gold"}) == [] == changed("digits/demo", policy__device="cuda:1")


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: mm.Batch(prmpts=3), "Batch.prmpts: unknown key of Batch; nearest: prompts; takes prompts, group, epochs, updates"),
        (lambda: mm.Lora(r=8), "Lora.r: unknown key of Lora; takes rank, alpha, targets, dropout, seed, from"),
        (lambda: mm.Evaluation(judge={}), "Evaluation.judge: unknown key of Evaluation; nearest: judges; takes every"),
        (lambda: mm.RunSettings(seed=-1), "seed: got -1, takes 0 or more"),
        (lambda: mm.Schedule(steps=0), "steps: got 0, takes 1 or more"),
        (lambda: mm.Lora(dropout=1.5), "dropout: got 1.5, takes a number from 0 to below 1"),
        (lambda: mm.Memory(rows_at_once=0), "rows_at_once: got 0, takes 1 or more"),
        (lambda: mm.Reference(every=0), "every: got 0, takes 1 or more"),
        (lambda: mm.online(None, ["a"], {}, mm.methods.grpo(), stps=3), "online.stps: unknown key of online; nearest: steps"),
        (lambda: mm.methods.grpo(klip=1), "grpo.klip: unknown key of grpo; nearest: clip, kl; takes clip, dual"),
        (lambda: mm.rewards.novelty(scle=1), "novelty.scle: unknown key of novelty; nearest: scale; takes"),
        (lambda: mm.prompts(pth="x"), "prompts.pth: unknown key of prompts; nearest: path; takes"),
        (lambda: mm.adamw(lr=1e-4), "adamw.lr: "),
        (lambda: mm.kernels.ddim(etaa=1.0), "ddim.etaa: unknown key of ddim; nearest: eta"),
    ],
)
def test_a_wrong_keyword_of_python_lists_the_right_ones(make: Any, line: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


PYTHON = {
    "unknown": (lambda: mm.Batch(prompts=0), "prompts: got 0, takes 1 or more"),
    "deep": (lambda: mm.policies.diffusers(None, lora={"rnk": 8}), "diffusers.lora.rnk: unknown key of lora; nearest: rank"),
    "deeper": (lambda: mm.policies.diffusers(None, memory={"compile": {"bakend": "x"}}), "diffusers.memory.compile.bakend: unknown key"),
    "type": (lambda: mm.policies.diffusers(None, schedule={"steps": "many"}), "diffusers.schedule.steps: got 'many', takes int"),
    "old": (lambda: mm.policies.diffusers(None, num_inference_steps=3), "diffusers.num_inference_steps: is schedule.steps since 0.2.0"),
    "recipe": (lambda: mm.online(None, ["a"], {}, mm.methods.grpo(), batch={"prmpts": 3}), "online.batch.prmpts: unknown key of batch"),
    "old setting": (lambda: mm.online(None, ["a"], {}, mm.methods.grpo(), learning_rate=1), "online.learning_rate: is optimizer.rate"),
    "method": (lambda: mm.online(None, ["a"], {}, "grpo"), "online.method: got 'grpo', takes what a function that gives Method made"),
}


@pytest.mark.parametrize("mistake", PYTHON)
def test_python_says_the_same_line(mistake: str) -> None:
    call, line = PYTHON[mistake]
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_a_record_and_a_mapping_are_the_same() -> None:
    reader = signatures.Reader(lambda path, value, parameter: value, lambda record, given, path: signatures.make(record, given), [])
    parameter = signatures.parameters(mm.online)[0]["references"]
    made = signatures.read({"ref": {"from": "runs/x", "every": 3}}, parameter, "references", reader)
    assert made == {"ref": mm.Reference(from_="runs/x", every=3)} and reader.errors == []


def test_a_recipe_has_at_most_thirteen_keys() -> None:
    keys = {name: signatures.parameters(getattr(mm, name))[0].keys() - {"resume"} for name in ("online", "offline")}  # no key of a config
    assert {name: len(own) for name, own in keys.items()} == {"online": 13, "offline": 11}


def test_names_that_have_to_be_somebody_s() -> None:
    line = "references.ref.shares.rf: is no set of parameters; nearest: ref; takes current, ref, previous"
    assert line in "\n".join(changed("selftest/online", references={"ref": {"every": 2, "shares": {"rf": 0.5, "current": 0.5}}}))
    assert not changed("selftest/online", references={"a": {"every": 2}, "ref": {"every": 2, "shares": {"a": 0.5, "current": 0.5}}})
    line = "combine.transforms.plain.use: missing, takes a name of combinations.transforms, or an import path"
    assert changed("selftest/online", combine__transforms={"plain": {"ue": "z_score"}}) == [line]


@pytest.mark.parametrize(("folder", "most"), [("text", 28), ("digits", 40), ("sd35_medium", 48)])
def test_configs_are_no_longer_than_they_were(folder: str, most: int) -> None:
    def leaves(value: Any) -> int:
        inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) and value else ()
        return sum(map(leaves, inside)) if inside else 1

    lengths = sorted(leaves(load(path)) for name, path in CONFIGS.items() if name.startswith(f"{folder}/"))
    assert lengths[len(lengths) // 2] <= most


def test_a_changed_use_on_the_command_line_replaces_the_node() -> None:
    config = load(CONFIGS["digits/demo"], ["policy.schedule.kernel.use=ddim"])
    assert config["policy"]["schedule"]["kernel"] == {"use": "ddim"}
    config = load(CONFIGS["digits/demo"], ["policy.schedule.kernel.use=flow_sde"])
    assert config["policy"]["schedule"]["kernel"] == {"use": "flow_sde", "noise_level": 1.0}


def test_paths_are_relative_to_the_config(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a\nb\n")
    (tmp_path / "c.yaml").write_text(Path(CONFIGS["digits/demo"]).read_text())
    config = load(tmp_path / "c.yaml", ["prompts={use: prompts, path: mine.txt}"])
    assert config["prompts"]["path"] == str(tmp_path / "mine.txt") and check(config) == []


SYNONYMS = {
    "optimizer": ({"optimizer__lr": 1e-4}, "optimizer.lr: is called rate"),
    "lr_scheduler": ({"lr_scheduler": "cosine"}, "lr_scheduler: is called optimizer.decay"),
    "inside": ({"optimizer__lr_scheduler": "cosine"}, "optimizer.lr_scheduler: is called decay and warmup"),
    "accumulation": ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps: is called batch.micro_rows"),
    "resolution": ({"policy__resolution": 512}, "policy.resolution: is called call.height and call.width"),
    "negative prompt": ({"negative_prompt": "blurry"}, "negative_prompt: is called policy.call.negative_prompt"),
    "images": ({"num_images_per_prompt": 4}, "num_images_per_prompt: is called batch.group"),
    "images of a policy": ({"policy__num_images_per_prompt": 4}, "policy.num_images_per_prompt: is called batch.group"),
    "generations": ({"batch__num_generations": 4}, "batch.num_generations: is called group"),
    "rank": ({"policy__lora": {"r": 4}}, "policy.lora.r: is called rank"),
    "targets": ({"policy__lora": {"target_modules": ["q"]}}, "policy.lora.target_modules: is called targets"),
    "trackers": ({"report_to": "wandb"}, "report_to: is called run.trackers"),
}


@pytest.mark.parametrize("name", SYNONYMS)
def test_other_libraries_words_are_answered(name: str) -> None:
    changes, line = SYNONYMS[name]
    lines = changed("digits/demo", **changes)
    assert len(lines) == 1 and lines[0].startswith(line)


def test_a_synonym_is_no_setting_of_ours_and_names_one() -> None:
    """Where the table says ``batch.group``, there is one; and what it answers is nothing that is taken."""
    takes = set(signatures.parameters(mm.online)[0]) | set(signatures.parameters(mm.offline)[0])
    assert {key for key in renamed.SYNONYMS if key in takes} == set()
    firsts = {word.split(",")[0].split(" ")[0].split(":")[0].split(".")[0] for word in renamed.SYNONYMS.values()}
    assert firsts <= takes | {"steps"}
    for place, record in {
        "batch": mm.Batch,
        "lora": mm.Lora,
        "evaluation": mm.Evaluation,
        "run": mm.RunSettings,
        "optimizer": mm.adamw,
    }.items():
        assert {key for key in renamed.WITHIN[place] if key in signatures.parameters(record)[0]} == set(), place
