"""Fine-tune vision foundation models on long-tailed images with Focal-SAM."""

from .losses import make_loss
from .models import LongTailClassifier, LongTailClassifierConfig
from .predicting import ImageClassifier
from .sharpness import ClassConditionalSAM, FocalSAM, class_weights, scheduled_rho
from .trainer import FocalSAMTrainer
from .training_args import FocalSAMTrainingArguments
from .tuning import TuningOptions, apply_tuning

__version__ = "0.1.0"

__all__ = [
    "ClassConditionalSAM",
    "FocalSAM",
    "FocalSAMTrainer",
    "FocalSAMTrainingArguments",
    "ImageClassifier",
    "LongTailClassifier",
    "LongTailClassifierConfig",
    "TuningOptions",
    "apply_tuning",
    "class_weights",
    "make_loss",
    "scheduled_rho",
]
