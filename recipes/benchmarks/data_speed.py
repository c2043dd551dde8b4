"""How fast images become tensors on one core, a plain PIL pipeline against ours, and batches on the device.

    OMP_NUM_THREADS=1 python recipes/benchmarks/data_speed.py --dataset $IMAGENET_SAMPLE

Plain: PIL decodes the whole image, crops and resizes it, and it is made a float tensor and normalised. Ours:
torchvision decodes the same pixels, JPEGs are decoded at 1/2, 1/4 or 1/8 where a training crop allows it, and bytes
are resized before they become floats. `cached` trains from images that --cache_resized made smaller once. Prints the
CPU time of an image (the median of interleaved repeats, in one process and one thread) and the mean difference of the
pixels from the plain pipeline's for the same crop; for `cached` it is that of evaluation. --enlarge 4 makes images
as cameras do of those of the data set. A second table has the images a second of a DataLoader by number of worker
processes (the median of interleaved passes, wall-clock time): normalised by the transform and shipped as floats, and
shipped as bytes and normalised on the device, as recipes/finetune.py does.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from transformers import CLIPImageProcessor, default_data_collator

from ft_focalsam.data import (
    ByteCollator,
    StoredImage,
    TransformedImages,
    eval_transform,
    read_preprocessing,
    train_transform,
)
from ft_focalsam.data.batches import finished
from ft_focalsam.data.columns import find_image_column
from ft_focalsam.data.resized_cache import resize_into_cache

BICUBIC = Image.Resampling.BICUBIC


class PlainPipeline:
    """Full decode and PIL resize, in training with the random crop and flip of `crop_flip`."""

    def __init__(self, processor: CLIPImageProcessor, *, size: int, training: bool):
        self.size = size
        self.crop = v2.RandomResizedCrop(size, scale=(0.08, 1.0)) if training else None
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))

    def __call__(self, stored: StoredImage) -> torch.Tensor:
        image = Image.open(io.BytesIO(stored.content)).convert("RGB")
        size = (self.size, self.size)
        if self.crop is not None:
            box = self.crop.make_params([torch.empty((1, image.height, image.width), device="meta")])
            left, top = box["left"], box["top"]
            image = image.crop((left, top, left + box["width"], top + box["height"])).resize(size, BICUBIC)
            if torch.rand(1) < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        else:
            scale = self.size / min(image.size)
            image = image.resize((int(image.width * scale + 1e-6), int(image.height * scale + 1e-6)), BICUBIC)
            left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
            image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return (pixels.float() / 255 - self.mean) / self.std


def load_images(path: str, *, limit: int, enlarge: int) -> datasets.Dataset:
    """The first `limit` images of a parquet folder, an image folder or a Hub name."""
    dataset = next(iter(datasets.load_dataset(path).values()))
    dataset = dataset.select(range(min(limit, len(dataset))))
    column = find_image_column(dataset.features)
    records = dataset.cast_column(column, datasets.Image(decode=False))[column]
    contents = [StoredImage.read(record, row=row).content for row, record in enumerate(records)]
    if enlarge > 1:
        contents = [enlarged(content, enlarge) for content in contents]
    columns = {"image": [{"bytes": c, "path": None} for c in contents], "labels": [0] * len(contents)}
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.Value("int64")})
    return datasets.Dataset.from_dict(columns, features=features).cast_column("image", datasets.Image(decode=False))


def enlarged(content: bytes, factor: int) -> bytes:
    """A JPEG of `factor` times the sides."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    buffer = io.BytesIO()
    image.resize((image.width * factor, image.height * factor), BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def run(pipeline: Callable, images: list[StoredImage]) -> tuple[list[torch.Tensor], float]:
    """Tensors, and CPU seconds an image."""
    torch.manual_seed(0)
    start = time.process_time()
    tensors = [pipeline(image) for image in images]
    return tensors, (time.process_time() - start) / len(images)


def loader_speed(
    dataset: datasets.Dataset, processor: CLIPImageProcessor, *, as_bytes: bool, num_workers: int, batch_size: int
) -> float:
    """Images a second that reach the device as normalised batches."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    images = TransformedImages(dataset, train_transform(processor, as_bytes=as_bytes))
    collate = ByteCollator(read_preprocessing(processor)) if as_bytes else default_data_collator
    start = time.perf_counter()
    for batch in DataLoader(images, batch_size, num_workers=num_workers, collate_fn=collate):
        batch = finished({name: value.to(device) for name, value in batch.items()}, collate)
        batch["pixel_values"].sum().item()  # waits for the device
    return len(images) / (time.perf_counter() - start)


def report_loaders(dataset: datasets.Dataset, processor: CLIPImageProcessor, options: argparse.Namespace) -> None:
    """The table of the loaders."""
    dataset = dataset.select([row % len(dataset) for row in range(options.loader_images)])
    rows = [(as_bytes, workers) for workers in range(options.num_workers + 1) for as_bytes in (False, True)]
    found = {row: [] for row in rows}
    for _ in range(options.repeats):
        for as_bytes, workers in rows:
            speed = loader_speed(
                dataset, processor, as_bytes=as_bytes, num_workers=workers, batch_size=options.batch_size
            )
            found[as_bytes, workers].append(speed)
    print("\n| worker processes | images a second, as floats | as bytes |")
    print("|---|---|---|")
    for workers in range(options.num_workers + 1):
        floats, as_bytes = (statistics.median(found[kind, workers]) for kind in (False, True))
        print(f"| {workers} | {floats:,.0f} | {as_bytes:,.0f} |")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="Parquet folder, image folder or Hub name.")
    parser.add_argument("--image_size", type=int, default=224, help="Side that the model sees, in pixels.")
    parser.add_argument("--images", type=int, default=120, help="Images to measure on, the first ones.")
    parser.add_argument("--enlarge", type=int, default=1, help="Factor of the images' sides.")
    parser.add_argument("--cache_side", type=int, default=256, help="Shorter side of the cached images.")
    parser.add_argument("--repeats", type=int, default=5, help="Times that each pipeline is run.")
    parser.add_argument("--num_workers", type=int, default=2, help="Most worker processes of the loaders.")
    parser.add_argument("--batch_size", type=int, default=128, help="Images of a batch of the loaders.")
    parser.add_argument("--loader_images", type=int, default=512, help="Images of a pass of the loaders.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = options.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    dataset = load_images(options.dataset, limit=options.images, enlarge=options.enlarge)
    with tempfile.TemporaryDirectory() as folder:
        cached = resize_into_cache(dataset, folder, side=options.cache_side)
        records = {name: undecoded["image"] for name, undecoded in (("stored", dataset), ("cached", _raw(cached)))}
        images = {n: [StoredImage.read(r, row=i) for i, r in enumerate(rows)] for n, rows in records.items()}
    full, fast = (train_transform(processor, fast_decode=fast) for fast in (False, True))
    evaluation = eval_transform(processor)
    # name -> (pipeline, its images, the row it is compared with)
    rows = {
        "evaluation, plain": (PlainPipeline(processor, size=size, training=False), "stored", "evaluation, plain"),
        "evaluation, ours": (evaluation, "stored", "evaluation, plain"),
        "training, plain": (PlainPipeline(processor, size=size, training=True), "stored", "training, plain"),
        "training, ours, full decode": (full, "stored", "training, plain"),
        "training, ours": (fast, "stored", "training, plain"),
        "training, ours, cached": (fast, "cached", "training, plain"),
    }
    seconds, tensors = {name: [] for name in rows}, {}
    for _ in range(options.repeats):
        for name, (pipeline, source, _) in rows.items():
            tensors[name], taken = run(pipeline, images[source])
            seconds[name].append(taken)
    tensors["training, ours, cached"], _ = run(evaluation, images["cached"])
    report(rows, seconds, tensors, std=torch.tensor(processor.image_std)[:, None, None] * 255)
    report_loaders(dataset, processor, options)


def _raw(dataset: datasets.Dataset) -> datasets.Dataset:
    return dataset.cast_column("image", datasets.Image(decode=False))


def report(rows: dict, seconds: dict, tensors: dict, *, std: torch.Tensor) -> None:
    """The table of times and differences."""
    print("| pipeline | ms an image | images a second | times plain | difference of 255 |")
    print("|---|---|---|---|---|")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, (_, source, plain) in rows.items():
        compared = "evaluation, plain" if source == "cached" else plain
        pairs = zip(tensors[name], tensors[compared], strict=True)
        difference = statistics.mean(((a - b) * std).abs().mean().item() for a, b in pairs)
        taken = medians[name]
        speed = f"{1e3 * taken:.2f} | {1 / taken:,.0f} | {medians[plain] / taken:.2f}"
        print(f"| {name} | {speed} | {difference:.2f} |")


if __name__ == "__main__":
    main()
