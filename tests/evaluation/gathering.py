"""What each process of `test_gathering.py` runs, `gathering.py output_dir`: predictions, by a loop and a Trainer."""

import json
import os
import sys
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator, PartialState
from PIL import Image
from transformers import Trainer, TrainingArguments

from ft_focalsam import LongTailClassifier
from ft_focalsam.data import TransformedImages
from ft_focalsam.evaluation import METRICS, LongTailMetrics, predict, view_transform
from ft_focalsam.models import load_image_processor

CLASS_COUNTS = [200, 100, 60, 30, 10, 8, 5]
IMAGES, BATCH = 23, 4  # two processes of 4 take 8, 8 and 7: the last batch is filled up with one that was there


def run(folder: Path) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)) for _ in range(IMAGES)]
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.ClassLabel(num_classes=7)})
    columns = {"image": images, "labels": [index % 7 for index in range(IMAGES)]}
    images = datasets.Dataset.from_dict(columns, features=features)
    torch.manual_seed(0)
    model = LongTailClassifier.from_backbone("tiny_clip", [str(index) for index in range(7)])
    views = TransformedImages(images, view_transform(load_image_processor("tiny_clip"), "flip"))
    logits = predict(model, views, batch_size=BATCH, accelerator=Accelerator(cpu=True))
    plain = TransformedImages(images, lambda image: view_transform(load_image_processor("tiny_clip"))(image)[0])
    args = TrainingArguments(
        str(folder), use_cpu=True, per_device_eval_batch_size=BATCH, report_to=[], disable_tqdm=True
    )
    prediction = Trainer(model, args, compute_metrics=LongTailMetrics(CLASS_COUNTS)).predict(plain)
    report = {
        "processes": PartialState().num_processes,
        "logits": logits.tolist(),
        "trainer_logits": prediction.predictions.tolist(),
        "trainer_labels": prediction.label_ids.tolist(),
        "metrics": {name: prediction.metrics[f"test_{name}"] for name in METRICS},
    }
    (folder / f"{PartialState().process_index}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
    PartialState().wait_for_everyone()
    os._exit(0)  # past torch's own clean-up over gloo
