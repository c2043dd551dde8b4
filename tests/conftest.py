"""Fixtures that several test folders share."""

import gc
import os
from pathlib import Path

import pytest

# Two test processes, and what they start, on two cores: before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data and models, from FT_FOCALSAM_SHARED or beside the repository; skips where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("FT_FOCALSAM_SHARED", default))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set FT_FOCALSAM_SHARED to the folder that holds it")
    return path


@pytest.fixture(scope="session", autouse=True)
def _imported_modules_are_no_garbage():
    """A Trainer collects garbage when it starts; looking through all of transformers takes longer than it trains."""
    gc.collect()
    gc.freeze()
