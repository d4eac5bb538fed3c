"""What the tests of the corpus share: a user without rights."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def as_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs the test in tmp_path without the rights of root, whom no permission stops."""
    monkeypatch.chdir(tmp_path)
    if os.geteuid() != 0:
        yield
        return
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:  # a lock goes by the whole path
        parent.chmod(0o711)
    os.setresuid(65534, 65534, 0)
    yield
    os.setresuid(0, 0, 0)
