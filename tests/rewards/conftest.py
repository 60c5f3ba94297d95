from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny random models in the published formats."""
    from tests.helpers.tiny_models import build

    folder = tmp_path_factory.mktemp("models")
    build(folder)
    return folder
