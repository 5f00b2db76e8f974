from pathlib import Path

import pytest

from app.storage.places import LocalFolder


@pytest.fixture
def storage(tmp_path: Path) -> LocalFolder:
    return LocalFolder(tmp_path)
