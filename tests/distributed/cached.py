"""What recipes/finetune.py does on each of the processes of tests/test_cached_runs.py:

python cached.py FILE CACHE ARGUMENTS
"""

import json
import sys
from pathlib import Path

import datasets
import torch
from accelerate import PartialState

from ft_focalsam import FocalSAMTrainer
from ft_focalsam.cli import building, train
from ft_focalsam.models import feature_cache

SEEN = {"encoded": 0}


class NotingTrainer(FocalSAMTrainer):
    """Keeps the head as training finds it, and what was logged."""

    def train(self, *args, **kwargs):
        SEEN["head"] = self.model.head.weight.detach().flatten().tolist()
        output = super().train(*args, **kwargs)
        SEEN["losses"] = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        return output


def noting_encode(model, dataset, **options):
    """`encode_images`, counting the images that this process gives to the backbone."""

    def count(module, args, kwargs, output):
        SEEN["encoded"] += len(output[0])

    hook = model.backbone.register_forward_hook(count, with_kwargs=True)
    try:
        yield from encode_images(model, dataset, **options)
    finally:
        hook.remove()


encode_images = feature_cache.encode_images
feature_cache.encode_images = building.encode_images = noting_encode

if __name__ == "__main__":
    torch.set_num_threads(1)
    path, datasets.config.HF_DATASETS_CACHE, *arguments = sys.argv[1:]
    SEEN["metrics"] = train.main(arguments, trainer_type=NotingTrainer)
    Path(f"{path}{PartialState().process_index}.json").write_text(json.dumps(SEEN))
    PartialState().destroy_process_group()
