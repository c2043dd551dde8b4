"""Tiny backbones of every library."""

import pytest
import torch
from families import save_families
from other_libraries import save_others
from tuning.tiny import save_backbones


@pytest.fixture(scope="session")
def backbones(tmp_path_factory) -> dict[str, str]:
    """Names of backbones by what they are of."""
    root = tmp_path_factory.mktemp("export_backbones")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            **save_families(root),
            **{f"deep_{name}": path for name, path in save_backbones(root / "deep").items()},
            **save_others(root),
            "tiny_clip": "tiny_clip",
        }
