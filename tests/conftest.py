"""Shared by all tests: one thread, and where real data lies."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data():
    """The data root with real sets; tests that need it are skipped where there is none."""

    def need(folder: str) -> Path:
        root = os.environ.get("COMPANION_DATA", "")
        if not root or not (Path(root) / folder).is_dir():
            pytest.skip(f"real data not here: set COMPANION_DATA to a folder with {folder}/")
        return Path(root)

    return need
