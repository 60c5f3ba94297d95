"""Data sets of a hub by branch, tag or commit, against a stand-in of it: what was read is known by its commit, and held to at a resume."""

from __future__ import annotations

import json

import pytest

import mmalign as mm
from mmalign.training.rollouts.same_records import SameRecords
from mmalign.types import UserError
from tests.helpers import hub

OLD, NEW = "a" * 40, "b" * 40


def rows(word: str) -> bytes:
    return b"".join(json.dumps({"prompt": "p", "chosen": word, "rejected": "no"}).encode() + b"\n" for _ in range(3))


@pytest.fixture
def there(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    import huggingface_hub.constants as constants

    with hub.running(monkeypatch) as running:
        for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
            monkeypatch.setattr(datasets.config, name, str(tmp_path / name))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", running.address)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        running.publish("lab/pairs", OLD, {"train.jsonl": rows("one")})
        running.publish("lab/pairs", NEW, {"train.jsonl": rows("two")}, branch="next")
        yield running


def test_a_revision_is_the_commit_that_it_is_now(there):
    first = mm.data.hub_texts("lab/pairs", streaming=False)
    assert (first.first(1)[0].first, first.digest()) == ("one", f"lab/pairs  train at commit {OLD}")
    for revision in ("next", NEW):
        other = mm.data.hub_texts("lab/pairs", streaming=False, revision=revision)
        assert (other.first(1)[0].first, other.digest()) == ("two", f"lab/pairs  train at commit {NEW}")


def test_a_run_is_not_resumed_on_another_commit(there):
    began = SameRecords(mm.data.hub_texts("lab/pairs", streaming=False)).dump()
    there.publish("lab/pairs", NEW, {"train.jsonl": rows("two")})
    with pytest.raises(UserError, match=f"lab/pairs .* is at commit {NEW}, and this run began with {OLD}; takes records.revision={OLD}$"):
        SameRecords(mm.data.hub_texts("lab/pairs", streaming=False)).load(began)
    SameRecords(mm.data.hub_texts("lab/pairs", streaming=False, revision=OLD)).load(began)


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"name": "lab/none"}, "records.name: 'lab/none': "),
        ({"name": "lab/pairs", "revision": "v9"}, "records.name: 'lab/pairs', revision 'v9': "),
        ({"name": ".", "revision": "v9"}, "records.revision: got 'v9' of the folder ., takes one of a data set on the hub"),
    ],
)
def test_what_is_not_there_is_a_line(there, asked, line):
    with pytest.raises(UserError) as error:
        mm.data.hub_texts(**asked)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
