"""Settings of guidance that cannot be are one line, before anything is sampled, in Python and from the command line alike."""

from __future__ import annotations

import math

import pytest

import mmalign as mm
from mmalign.commands._models import guidance_of
from mmalign.types import UserError

WRONG = [
    ("fk", {"particles": 2.5}, "fk.particles: got 2.5, takes int"),
    ("fk", {"particles": True}, "fk.particles: got True, takes int"),
    ("fk", {"scale": "strong"}, "fk.scale: got 'strong', takes float"),
    ("fk", {"start": 0.9, "stop": 0.1}, "fk: got start 0.9 and stop 0.1, takes 0 <= start <= stop <= 1"),
    ("svdd", {"stop": -1.0}, "svdd.stop: got -1.0, takes 0 to 1"),
    ("svdd", {"every": 0}, "svdd.every: got 0, takes 1 or more"),
    ("das", {"start": 5.0}, "das.start: got 5.0, takes 0 to 1"),
    ("das", {"limit": 0.0}, "das.limit: got 0.0, takes a number above 0"),
    ("fk", {"kernel": "ode"}, "fk.kernel: got 'ode', takes a kernel, such as mm.kernels.ddim(eta=1.0), or None"),
    ("tfg", {"limit": -1.0}, "tfg.limit: got -1.0, takes a number above 0"),
    ("dps", {"limit": -1.0}, "dps.limit: got -1.0, takes a number above 0"),
    ("mpgd", {"steps": 0}, "mpgd.steps: got 0, takes 1 or more"),
    ("universal", {"steps": 0}, "universal.steps: got 0, takes 1 or more"),
    ("nrg", {"scale": -1.0}, "nrg.scale: got -1.0, takes 0 or more"),
    ("nrg", {"limit": 0.0}, "nrg.limit: got 0.0, takes a number above 0"),
    ("cfg", {"rescale": 5.0}, "cfg.rescale: got 5.0, takes 0 to 1"),
    ("cfg", {"scale": math.inf}, "cfg.scale: got inf, takes a finite number"),
    ("apg", {"norm": 0.0}, "apg.norm: got 0.0, takes a number above 0"),
    ("apg", {"momentum": math.inf}, "apg.momentum: got inf, takes a finite number"),
    ("cfg_zero", {"scale": math.inf}, "cfg_zero.scale: got inf, takes a finite number"),
    ("npo", {"negative": "bad", "scale": math.inf}, "npo.scale: got inf, takes a finite number"),
    ("corrected_rlg", {"scale": math.inf}, "corrected_rlg.scale: got inf, takes a finite number"),
    ("rlg", {"scale": math.inf}, "rlg.scale: got inf, takes a finite number"),
    ("adapter_guidance", {"guidance_scale": math.inf}, "adapter_guidance.guidance_scale: got inf, takes a finite number"),
    ("contrastive", {"amateur": None, "scale": math.inf}, "contrastive.scale: got inf, takes a finite number"),
    ("best_of", {"count": 2.5}, "best_of.count: got 2.5, takes int"),
    ("reno", {"iterations": 2.5}, "reno.iterations: got 2.5, takes int"),
]


@pytest.mark.parametrize(("name", "settings", "line"), WRONG, ids=lambda value: value if isinstance(value, str) else None)
def test_a_setting_that_cannot_be_is_one_line(name, settings, line):
    with pytest.raises(UserError) as error:
        getattr(mm.guidance, name)(**settings)
    assert str(error.value) == line


@pytest.mark.parametrize("name", ["fk", "best_of"])
def test_by_name_it_is_the_same_line(pipe, name):
    settings, line = next((settings, line) for other, settings, line in WRONG if other == name)
    with pytest.raises(UserError) as error, mm.guide(pipe, lambda outputs, prompts: outputs.flatten(1).mean(1), guidance=name, **settings):
        pass
    assert str(error.value) == line
    words = " ".join(f"{key}={value}" for key, value in settings.items())
    with pytest.raises(UserError) as error:
        guidance_of(f"{name} {words}")
    assert str(error.value) == f"--guidance {name} {words}: {line}"


def test_what_can_be_is_made():
    assert mm.guidance.svdd(scale=math.inf).particles == 4 and mm.guidance.tfg(limit=None).name == "tfg"
    assert mm.guidance.apg(norm=2.5, momentum=-0.5).name == "apg" and mm.guidance.rlg(scale=lambda place: 2 * place).name == "rlg"
