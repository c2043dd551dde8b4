"""Arguments of the Trainer, a file a family."""

from .training import FocalSAMTrainingArguments

__all__ = ["FocalSAMTrainingArguments"]
