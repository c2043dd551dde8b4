"""Tiny random backbones of every family, saved the way transformers saves them."""

import pytest
import torch
from tuning.tiny import save_backbones


@pytest.fixture(scope="session")
def tiny_backbones(tmp_path_factory) -> dict[str, str]:
    """Folders by name, see `FAMILIES`."""
    with torch.random.fork_rng():
        return save_backbones(tmp_path_factory.mktemp("tiny_backbones"))
