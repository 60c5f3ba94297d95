from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for tiny_models, whichever import mode pytest runs in


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny random models in the published formats."""
    from tiny_models import build

    folder = tmp_path_factory.mktemp("models")
    build(folder)
    return folder
