from .arguments import FocalSAMTrainingArguments as FocalSAMTrainingArguments
from .trainer import FocalSAMTrainer as FocalSAMTrainer
