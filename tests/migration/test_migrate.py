"""Configs of 0.1.0 in the settings of 0.2.0: all that came with it, every rule by hand, and nothing lost on the way."""

import re
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import yaml

from mmalign import config
from mmalign.migration import migrate as module
from mmalign.migration.migrate import migrate
from mmalign.types import UserError

ARCHIVE = Path(__file__).parent / "configs_0.1.0.tar.xz"
"""Every config of the last commit of 0.1.0's settings, as it was."""


def old_configs():
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            if member.name.endswith(".yaml"):
                yield member.name, archive.extractfile(member).read().decode()


CONFIGS = dict(old_configs())


def migrated(tmp_path, text, **options):
    path = tmp_path / "old.yaml"
    path.write_text(text, encoding="utf-8")
    return migrate(path, **options)


def comments(text):
    return Counter(line[line.index("# ") :].strip() for line in text.splitlines() if re.search(r"(^|\s)# ", line))


def test_all_configs_are_there():
    assert len(CONFIGS) == 163


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_of_before_is_understood(tmp_path, name):
    old = CONFIGS[name]
    result = migrated(tmp_path, old, write=True)
    assert result.refused == [] and result.changed == ("make_rejected" not in old)  # which says nothing that has another name now
    path = tmp_path / "old.yaml"
    assert path.read_text(encoding="utf-8") == result.text
    assert config.check(config.load(path)) == []
    assert comments(result.text) == comments(old)
    assert not migrate(path).changed  # a second time finds nothing


def test_untouched_entries_are_written_as_they_were(tmp_path):
    old = CONFIGS["configs/sd35_medium/flow_grpo.yaml"]
    new = migrated(tmp_path, old).text.splitlines()
    kept = [
        line
        for line in old.splitlines()
        if re.match(r"#|use|policy|  (use|pipeline|dtype|lora|call)|method|prompts:|rewards|  pickscore:", line)
    ]
    assert len(kept) >= 15 and [line for line in kept if line not in new] == []


ONLINE = """use: online
policy: {use: transformers, model: {use: text}}
method: grpo
prompts: {use: text_prompts}
rewards: {plain: {use: text_plain}}
"""
OFFLINE = "use: offline\npolicy: {use: transformers, model: x}\nmethod: dpo\nrecords: {use: pairs, path: x}\n"


@pytest.mark.parametrize(
    "old, new",
    [
        ("learning_rate: 1.0e-3  # theirs\nwarmup: 3", {"optimizer": {"rate": 1e-3, "warmup": 3}}),
        ("steps: 70\ndecay_steps: 70", {"steps": 70, "optimizer": {"decay": "linear"}}),
        ("steps: 70\ndecay_steps: ${steps}", {"steps": 70, "optimizer": {"decay": "linear"}}),
        ("decay_steps: null", {}),
        ("prompts_per_step: 4\ngroup_size: ${prompts_per_step}", {"batch": {"prompts": 4, "group": "${batch.prompts}"}}),
        ("references: {dpo: runs/x}", {"references": {"dpo": {"from": "runs/x"}}}),
        ("refresh: {ref: 9}", {"references": {"ref": {"every": 9}}}),
        (
            "references: {ref: runs/x}\nrefresh:\n  ref: {every: 1, ref: 0.4, current: 0.6}",
            {"references": {"ref": {"from": "runs/x", "every": 1, "shares": {"ref": 0.4, "current": 0.6}}}},
        ),
        ("reward_weights: {plain: 2.0}", {"combine": {"use": "weighted_sum", "weights": {"plain": 2.0}}}),
        ("reward_weights: {}", {}),
        ("early_stop: {judge: plain, patience: 2}", {"evaluation": {"stop": {"judge": "plain", "patience": 2}}}),
        ("judges:\n  gold: {use: text_gold}", {"evaluation": {"judges": {"gold": {"use": "text_gold"}}}}),
        ("evaluation: null\nmetrics: {m: {use: text_readability}}", {"evaluation": {"metrics": {"m": {"use": "text_readability"}}}}),
        ("evaluation: {every: 3, call: {a: 1}}\njudges: null", {"evaluation": {"every": 3, "call": {"a": 1}, "judges": None}}),
        ("name: x\ntrackers: [wandb, aim]", {"run": {"name": "x", "trackers": ["wandb", "aim"]}}),
        ("seed: 3", {"run": {"seed": 3, "name": "online"}}),  # a record alone would be called "run"
        ("trackers:\n- wandb\n- aim\nname: x", {"run": {"trackers": ["wandb", "aim"], "name": "x"}}),
        ("name: a,b", {"run": {"name": "a,b"}}),
        ('name: "a # b"', {"run": {"name": "a # b"}}),
        ("name: ${oc.env:HOME}", {"run": {"name": "${oc.env:HOME}"}}),
        ("name: >-\n  long\n  name\nseed: 1", {"run": {"name": "long name", "seed": 1}}),
    ],
)
def test_each_setting_has_its_place(tmp_path, old, new):
    result = migrated(tmp_path, ONLINE + old)
    assert result.refused == []
    assert yaml.safe_load(result.text if result.changed else ONLINE + old) == {**yaml.safe_load(ONLINE), **new}


def test_comments_inside_of_braces_come_above(tmp_path):
    result = migrated(tmp_path, ONLINE + "evaluation: {every: 3,  # seldom\n  samples: 2}\njudges: {a: {use: length}}\nseed: 1")
    assert "# seldom\nevaluation: {every: 3, samples: 2, judges: {a: {use: length}}}\n" in result.text


def test_policies_of_commands_too(tmp_path):
    result = migrated(tmp_path, "use: make_rejected\npolicy: {use: transformers, model: x, rows_at_once: 4}\n")
    assert yaml.safe_load(result.text)["policy"] == {"use": "transformers", "model": "x", "memory": {"rows_at_once": 4}}


def test_rewards_without_a_weight_counted_one(tmp_path):
    two = ONLINE.replace("{plain: {use: text_plain}}", "{plain: {use: text_plain}, brief: {use: length}, told: {use: text_demonstration}}")
    result = migrated(tmp_path, f"{two}reward_weights: {{plain: 0.5, told/gap: 0.0}}")
    assert yaml.safe_load(result.text)["combine"]["weights"] == {"plain": 0.5, "brief": 1.0}
    assert result.notes == [
        "reward_weights: parts of told without a weight counted 1 in 0.1.0 and count nothing now; combine.weights takes them"
    ]


def test_a_policy_inside_of_another_one(tmp_path):
    old = CONFIGS["configs/digits/diffusion_dpo.yaml"]
    policy = yaml.safe_load(migrated(tmp_path, old).text)["policy"]
    assert policy["of"] == {"use": "diffusers", "pipeline": {"use": "digits", "denoiser": "dit"}, "schedule": {"steps": 20}}


def test_what_offline_took_by_default(tmp_path):
    result = migrated(
        tmp_path, "use: offline\npolicy: {use: transformers, model: x}\nmethod: dpo\nrecords: {use: pairs, path: x}\nwarmup: 3\n"
    )
    after = yaml.safe_load(result.text)
    assert after["optimizer"] == {"warmup": 3, "rate": 1e-5}  # of a mapping it would be 1e-4
    assert after["run"] == {"name": "offline", "checkpoint_every": 200}  # and 50


def test_files_of_rewards(tmp_path):
    own = ONLINE.replace("{use: text_prompts}", "{use: prompts, path: a.jsonl, key: question}")
    same = migrated(tmp_path, f"{own}judges: {{a: {{use: math_answer, path: a.jsonl, key: question}}}}")
    assert same.refused == [] and yaml.safe_load(same.text)["evaluation"] == {"judges": {"a": {"use": "math_answer"}}}
    other = migrated(tmp_path, f"{own}judges: {{a: {{use: math_answer, path: b.jsonl, key: question}}}}")
    assert len(other.refused) == 1 and other.refused[0].startswith("judges.a.path: got 'b.jsonl'")


@pytest.mark.parametrize(
    "old, line",
    [
        ("steps: 70\ndecay_steps: 35", "decay_steps: got 35, takes the number of steps, 70"),
        ("group_size: 8\nbatch: {group: 4}", "group_size: batch.group is there too"),
        ("group_size: 8\nbatch: ${mine}", "batch: got '${mine}'"),
        ("reward_weights: {plain: 2}\ncombine: {use: worst}", "reward_weights: combine is there too"),
        ("reward_weights: ${mine}", "reward_weights: got '${mine}'"),
        ("refresh: 3", "refresh: got 3"),
        ("base: &b {seed: 1}\n<<: *b\nname: x", "*b: stands for what is written elsewhere"),
    ],
)
def test_what_cannot_be_said_is_named_and_not_written(tmp_path, old, line):
    result = migrated(tmp_path, ONLINE + old, write=True)
    assert len(result.refused) == 1 and result.refused[0].startswith(line), result.refused
    assert (tmp_path / "old.yaml").read_text(encoding="utf-8") == ONLINE + old


def test_a_value_that_is_lost_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "written", lambda head, entries, tail: "use: online\n")
    assert any(
        line.startswith("learning_rate: got 0.001, which could not be moved")
        for line in migrated(tmp_path, f"{ONLINE}learning_rate: 1.0e-3").refused
    )


def test_a_new_config_is_left_alone(tmp_path):
    text = f"{ONLINE}batch: {{prompts: 4}}  # mine\n"
    result = migrated(tmp_path, text, write=True)
    assert not result.changed and result.diff == "" and (tmp_path / "old.yaml").read_text(encoding="utf-8") == text


def test_what_is_no_config_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"old\.yaml: not readable as YAML"):
        migrated(tmp_path, "a: [")
    with pytest.raises(UserError, match="not readable"):
        migrate(tmp_path / "none.yaml")


def test_the_command(tmp_path, mmalign):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(f"{ONLINE}learning_rate: 1.0e-3\n", encoding="utf-8")
    bad.write_text(f"{ONLINE}decay_steps: 3\n", encoding="utf-8")

    shown = mmalign("migrate", str(good))
    assert shown.code == 0 and "-learning_rate: 1.0e-3\n+optimizer: {rate: 1.0e-3}" in shown.out
    assert "learning_rate" in good.read_text()
    wrote = mmalign("migrate", str(good), str(bad), "--write")
    assert wrote.code == 2 and f"{good}: written" in wrote.err and f"{bad}: decay_steps: got 3" in wrote.err
    assert "optimizer: {rate: 1.0e-3}" in good.read_text() and "decay_steps" in bad.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
