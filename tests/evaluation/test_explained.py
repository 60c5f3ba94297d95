"""What is offered for measuring says what every one of its keywords is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

from mmalign import evaluation, media
from mmalign.evaluation import suites
from mmalign.lookup import dialects
from mmalign.lookup.docstrings import explanation

MODULES = [
    module.name for room in (evaluation, suites) for module in pkgutil.iter_modules(room.__path__, f"{room.__name__}.") if not module.ispkg
]


def offered(module):
    names = vars(module).get("__all__", [name for name in vars(module) if not name.startswith("_")])
    values = [getattr(module, name) for name in names]
    own = [value for value in values if str(getattr(value, "__module__", "")).startswith(module.__name__) and callable(value)]
    return [value for value in own if inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, Exception))]


@pytest.mark.parametrize("name", [*MODULES, dialects.__name__, "mmalign.media.images", "mmalign.media.videos", "mmalign.media.sources"])
def test_every_keyword_has_a_meaning(name):
    module = importlib.import_module(name)
    public = {"picture", "image", "footage", "video", "Footage", "read_bytes", "read_whole"}
    functions = [value for value in offered(module) if not name.startswith(media.__name__) or value.__name__ in public]
    assert functions
    assert {value.__name__: explanation(value).unexplained for value in functions if explanation(value).unexplained} == {}
