from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True)
def garbage_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """``rounds`` collects garbage after each of its stages: here that of all other tests, which takes longer than a small stage."""
    monkeypatch.setattr(gc, "collect", lambda: 0)
