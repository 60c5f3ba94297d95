"""From a finished run to weights that load, through the command line; the code on the page is run as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mmalign.commands._own_code import own_code
from mmalign.config import build_part
from mmalign.files import write_json
from mmalign.policies.twins import pipelines
from mmalign.runs import checkpoint

MODULE = """
from mmalign.policies.twins import pipelines as twins
from mmalign.worlds.digits.base import untrained


def pipeline():
    pipe = untrained("dit")
    twins.shake_parameters(pipe, 0.05)
    return pipe


def flux():
    return twins.twin("FluxPipeline")


def bright():
    return lambda outputs, prompts: outputs.flatten(1).mean(1)
"""
CALL = {"height": 32, "width": 32, "max_sequence_length": 16}
POLICY = {"use": "diffusers", "pipeline": {"use": "mine.pipeline"}, "schedule": {"steps": 3}, "device": "cpu"}
CONFIG: dict[str, Any] = {
    "use": "online",
    "policy": POLICY,
    "method": {"use": "flow_grpo", "ratio": "per_step", "clip": 0.2, "beta": 0.05, "std": "none"},
    "prompts": ["a 7", "a 3"],
    "rewards": {"bright": {"use": "mine.bright"}},
    "steps": 2,
    "batch": {"prompts": 2, "group": 2},
    "optimizer": {"use": "adamw", "rate": 0.02, "ema": 0.5},
    "evaluation": {"every": 1, "samples": 2, "judges": {"gold": {"use": "mine.bright"}}},
    "run": {"name": "small", "trackers": []},
}
FLUX = {**POLICY, "pipeline": {"use": "mine.flux"}, "lora": {"rank": 2, "alpha": 4}, "call": CALL}
LORA = {**POLICY, "lora": {"rank": 2, "targets": "all-linear"}}


@pytest.fixture
def command(tmp_path: Path, write_module: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, mmalign: Any) -> Callable[..., Any]:
    write_module("mine.py", MODULE)
    monkeypatch.chdir(tmp_path)
    return mmalign


def trained(tmp_path: Path, command: Any, policy: dict[str, Any], **changes: Any) -> Path:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**CONFIG, "policy": policy, **changes}))
    code, _, err = command("train", "c.yaml")
    assert code == 0, err
    return tmp_path / "runs" / "small"


def test_a_card_names_no_folder_of_this_machine():
    words = import_module("mmalign.commands.export")._in_words  # the room has its function under that name
    assert words({"use": "texts", "path": "/home/me/pairs.jsonl", "schema": "hh"}) == "texts (path pairs.jsonl, schema hh)"


def code_on(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def live(run: Path, name: str) -> Any:
    policy = build_part(yaml.safe_load((run / "config.yaml").read_text()), "policy")
    tensors, _ = checkpoint.load(max((run / "checkpoints").iterdir()))
    policy.sets.load({key: value for key, value in tensors.items() if key != "optimizer"})
    with policy.using(name):
        return outputs(policy.pipe)


def outputs(pipe: Any) -> torch.Tensor:
    more = CALL if type(pipe).__name__ == "FluxPipeline" else {}
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return pipe(prompt="a 7", num_inference_steps=2, generator=rng, output_type="pt", return_dict=False, **more)[0]


@pytest.mark.parametrize(
    ("policy", "forms", "files"),
    [
        (POLICY, "full", {"model_index.json", "transformer"}),
        (LORA, "peft, full", {"peft", "merged"}),
        (FLUX, "diffusers, peft", {"pytorch_lora_weights.safetensors", "peft"}),
        ({**FLUX, "pipeline": "BASE"}, "diffusers, peft", {"pytorch_lora_weights.safetensors", "peft"}),
    ],
    ids=["full", "lora", "flux", "folder"],
)
def test_a_run_is_exported_and_the_code_on_its_page_loads_it(tmp_path, command, monkeypatch, policy, forms, files):
    if policy["pipeline"] == "BASE":
        pipelines.twin("FluxPipeline").save_pretrained(tmp_path / "base")
        policy = {**policy, "pipeline": str(tmp_path / "base")}
    run = trained(tmp_path, command, policy)
    code, out, err = command("export", "small", "--trust")
    assert code == 0 and f"export: runs/small/export (parameters: ema; forms: {forms})" in out, err
    assert ("has no load_lora_weights" in out) == (forms == "peft, full")
    assert files | {"README.md"} <= {path.name for path in (run / "export").iterdir()}
    expected, base = live(run, "ema"), live(run, "ref")
    assert float((expected - base).abs().max()) > 1e-4
    monkeypatch.chdir(run / "export")
    codes = code_on(run / "export" / "README.md")
    assert len(codes) == len(forms.split(", "))
    for text in codes:
        names: dict[str, Any] = {}
        exec(text, names)
        names["pipe"].set_progress_bar_config(disable=True)
        torch.testing.assert_close(outputs(names["pipe"]), expected, atol=1e-5, rtol=1e-4)


OWN = """
import torch
from diffusers import ModelMixin  # which diffusers looks for in the modules of components
from mmalign.policies.twins import pipelines as twins
from mmalign.worlds.digits.base import untrained
from mmalign.worlds.digits.model import DigitsTransformer


class Transformer(DigitsTransformer):
    pass


def pipeline():
    pipe = untrained("dit")
    pipe.register_modules(transformer=Transformer.from_config(pipe.transformer.config))
    torch.manual_seed(0)
    twins.shake_parameters(pipe, 0.05)
    return pipe
"""


def test_the_code_on_the_page_works_elsewhere_for_a_model_of_ones_own(tmp_path, command, write_module):
    """In a process that knows mmalign, and nothing of the folder that the runs were trained in."""
    write_module("theirs.py", OWN)
    program, shown = (
        ["import os, sys, torch"],
        "print(type(pipe.transformer if isinstance(pipe.transformer, torch.nn.Module) else 0).__module__)",
    )
    for name, more in {"full": {}, "lora": {"lora": {"rank": 2, "targets": "all-linear"}}}.items():
        policy = {**POLICY, "pipeline": {"use": "theirs.pipeline"}, **more}
        run = trained(tmp_path, command, policy, rewards={"jpeg": {"use": "jpeg"}}, evaluation={})
        code, out, err = command("export", "small", "--trust")
        assert code == 0 and "with code of yours, which its page needs: theirs.py" in out, err
        elsewhere = (run / "export").rename(tmp_path / name)
        shutil.rmtree(run)
        codes = code_on(elsewhere / "README.md")
        assert len(codes) == (2 if more else 1) and (elsewhere / "theirs.py").read_text() == OWN
        program += [f"os.chdir({str(elsewhere)!r})", "sys.modules.pop('theirs', None)", *(f"{text}\n{shown}\ndel pipe" for text in codes)]
    (tmp_path / "theirs.py").unlink()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, "-c", "\n".join(program)]
    done = subprocess.run(words, cwd=tmp_path / "full", env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "theirs\n" * 3), done.stderr


TOLD = """
import sys, torch
pipe.set_progress_bar_config(disable=True)
more = dict(height=32, width=32, num_inference_steps=1, output_type="latent", generator=torch.Generator().manual_seed(0))
print(round(float(pipe("a 7", **more).images.double().norm()), 3))
assert "mmalign" not in sys.modules
"""


def test_the_code_of_every_form_of_a_pipeline_runs_where_nobody_knows_mmalign(tmp_path, command):
    pipelines.twin("StableDiffusionPipeline").save_pretrained(tmp_path / "base")
    policy = {**POLICY, "pipeline": str(tmp_path / "base"), "call": {"height": 32, "width": 32}, "lora": {"rank": 2}}
    trained(tmp_path, command, policy, rewards={"jpeg": {"use": "jpeg"}}, evaluation={}, optimizer={"rate": 0.3})
    codes = {"base": f"from diffusers import DiffusionPipeline\npipe = DiffusionPipeline.from_pretrained({str(tmp_path / 'base')!r})\n"}
    for option, forms in {"--comfyui": ("diffusers", "peft", "comfyui"), "--merge": ("full",)}.items():
        code, out, err = command("export", "small", option, "--out", option[2:])
        assert code == 0 and f"forms: {', '.join(forms)})" in out, err
        on_page = code_on(tmp_path / option[2:] / "README.md")
        codes |= {form: text.replace('folder = "."', f"folder = {option[2:]!r}") for form, text in zip(forms, on_page, strict=True)}
    run = [sys.executable, "-I", "-c", "".join(f"{text}\n{TOLD}" for text in codes.values())]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = dict(zip(codes, done.stdout.split(), strict=True))
    assert answers.pop("base") not in answers.values() and len(answers) == 4 and len(set(answers.values())) == 1, answers
    assert command("export", "small", "--merge", "--comfyui").err == (
        "export: got --merge and --comfyui, which is a file of LoRA; takes one of them\n"
    )


def test_packages_that_a_model_is_made_of_are_named(write_module):
    write_module("mypackage/__init__.py", "def pipe():\n    pass\n")
    node = {"pipeline": {"use": "mypackage.pipe", "head": {"use": "mine.bright"}}, "lora": {"use": "no.base"}}
    write_module("mine.py", MODULE)
    own = own_code(node, torch.nn.Linear(1, 1))
    assert own.packages == ("mypackage",) and [file.name for file in own.files] == ["mine.py"]
    twin = {"pipeline": {"use": "policies.twins.pipelines.twin", "name": "FluxPipeline"}}  # mmalign's own, as rehearsals write it
    assert own_code(twin, torch.nn.Linear(1, 1)) == ((), (), ())
    assert own_code({"pipeline": "some/id"}, torch.nn.Linear(1, 1)) == ((), (), ())


def test_a_module_that_is_called_like_a_folder_of_mmalign_is_the_users(write_module):
    write_module("evaluation.py", "def pipe():\n    pass\n")
    own = own_code({"pipeline": {"use": "evaluation.pipe"}}, torch.nn.Linear(1, 1))
    assert [file.name for file in own.files] == ["evaluation.py"]


def test_the_page_says_what_was_done_and_what_changed(tmp_path, command):
    run = trained(tmp_path, command, POLICY)
    write_json(run / "evaluations" / "pope" / "results.json", {"values": {"f1": {"value": 0.875, "low": 0.8, "high": 0.95}}})
    assert command("export", "small", "--trust", "--set", "trained", "--out", "there")[0] == 0
    page = (tmp_path / "there" / "README.md").read_text()
    _, state = checkpoint.load(max((run / "checkpoints").iterdir()))
    first, last = state["evaluations"][0]["bright"], state["evaluations"][-1]["bright"]
    assert (
        re.search(rf"\| bright \| reward, trained on \| {first:.3f}.* \| {last:.3f}", page) and "| gold | judge, not trained on |" in page
    )
    assert "Measured on the parameters `ema`, which are not those of this export" in page and "| seed | 0 |" in page
    assert "# license: yours to choose" in page and "flow_grpo (beta 0.05, clip 0.2" in page and "- torch " in page and "nats" in page
    assert str(tmp_path) not in page and "| pope | f1 | 0.875 | 0.800 to 0.950 |" in page


def test_an_offline_run_is_exported_through_the_policy_that_it_wraps(tmp_path, command):
    from mmalign.commands.export import base_node

    assert base_node({"use": "forward", "of": POLICY}) == POLICY and base_node({"use": "mine"}) is None


def test_what_cannot_be_exported_is_one_line(tmp_path, command):
    run = trained(tmp_path, command, POLICY, steps=1)
    assert command("export", "nowhere")[::2] == (
        2,
        "nowhere: no run there (no config.yaml); takes the folder of a run, or a name under runs/\n",
    )
    assert command("export", "small", "--trust", "--set", "moon")[::2] == (2, "--set: got 'moon', this run has trained, ref, ema\n")
    assert command("export", "small", "--trust")[0] == 0
    code, _, err = command("export", "small", "--trust")
    assert code == 2 and err == "runs/small/export exists: takes a folder that is not there yet (--out)\n"
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "policy": {"use": "mine.own"}}))
    code, _, err = command("export", "small", "--trust", "--out", "other")
    assert code == 2 and err.count("\n") == 1


def test_a_number_of_one_sample_has_no_error():
    from mmalign.commands.export import _with_error

    assert [_with_error({"gold_se": error}, "gold", 0.5) for error in (0.25, float("nan"))] == ["0.500 ± 0.250", "0.500"]
