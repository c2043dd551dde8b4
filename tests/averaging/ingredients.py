"""Classifiers of one architecture whose tuned weights differ, in folders of their own."""

import torch
from tuning.tiny import NAMES

from ft_focalsam import LongTailClassifier, TuningOptions, apply_tuning

LOHA = {"peft_type": "LOHA", "r": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"]}


def save(folder, backbone: str, tuning: str, *, seed: int = 0, head: str = "cosine", **options) -> LongTailClassifier:
    """A classifier off its start, saved; its random numbers depend on the seed."""
    torch.manual_seed(seed)
    model = LongTailClassifier.from_backbone(backbone, NAMES, head=head)
    apply_tuning(model, tuning, TuningOptions(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape)
    model.eval().save_pretrained(folder)
    return model


def save_several(root, backbone: str, tuning: str, *, count: int = 3, **options) -> list[str]:
    folders = [str(root / f"run{seed}") for seed in range(count)]
    for seed, folder in enumerate(folders):
        save(folder, backbone, tuning, seed=seed, **options)
    return folders
