"""Tiny backbones, as in tests/tuning."""

from tuning.conftest import tiny_backbones

__all__ = ["tiny_backbones"]
