"""Classify a folder of images, however deep they lie, into a CSV file.

    ft-focalsam predict runs/quickstart path/to/images --output predictions.csv
    ft-focalsam predict user/name path/to/images --output predictions.csv --top_k 3 --on_bad_image fail

MODEL is a folder or Hub repository of this package or of transformers. Columns: path (in the folder), label_1,
probability_1, label_2, ..., and error, which says why an image could not be read. Of a classifier for several classes
an image, the column labels comes first, with all classes of a probability of `--threshold` (0.5) or more, joined by
"|"; probabilities are those of each class by itself. Rows are written as they come, the
file gets its name at the end. A cell that a spreadsheet would run as a formula begins with an apostrophe.
"""

import argparse
import csv
import itertools
import sys
from pathlib import Path

from tqdm.auto import tqdm

from ..base.files import atomic_open, check_writable
from ..base.finding import did_you_mean
from ..data import BadImageError, find_images
from ..evaluation import to_cell
from ..models import ImageClassifier
from ..models.image_classifier import THRESHOLD, Predictions, choose_device
from .parsers import command_parser

SEPARATOR = "|"  # of the classes of an image


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("predict", __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="Folder or Hub repository of a classifier.")
    add("folder", metavar="FOLDER", type=Path, help="Folder of images; its sub-folders are looked through, too.")
    add("--output", required=True, type=Path, help="CSV file to write.")
    add("--top_k", type=int, default=5, help="Classes to name for each image.")
    add("--threshold", type=float, help="Least probability of the classes in the column labels; 0.5 by default.")
    add("--on_bad_image", choices=("skip", "fail"), default="skip", help="What to do about images that are broken.")
    add("--batch_size", type=int, default=32, help="Images at a time.")
    add("--num_workers", type=int, default=0, help="Processes that read images.")
    add("--revision", help="Branch, tag or commit of the Hub repository.")
    add("--backbone", help="Where the backbone is now, if not under the name it had in training.")
    add("--device", help="Where to run: cpu, cuda, ...; an accelerator by default, where there is one.")
    return parser


def check(args: argparse.Namespace) -> int:
    """Refuse what cannot work before the model is loaded; returns the number of images."""
    for name, least in (("top_k", 1), ("batch_size", 1), ("num_workers", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} is {getattr(args, name)}; set it to {least} or more.")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold is {args.threshold:g}; set it to a probability, from 0 to 1.")
    choose_device(args.device)
    if not args.folder.is_dir():
        if args.folder.exists():
            raise NotADirectoryError(f"'{args.folder}' is no folder; give the folder that holds the images.")
        guess = did_you_mean(args.folder)
        raise FileNotFoundError(f"The folder '{args.folder}' does not exist; check the path.{guess}")
    total = sum(1 for _ in find_images(args.folder))
    if not total:
        raise FileNotFoundError(f"There is no image in '{args.folder}' (.jpg, .png, .webp, ...); check the path.")
    if args.output.is_dir():
        raise IsADirectoryError(f"--output is '{args.output}', a folder; set it to a CSV file in it.")
    check_writable(args.output.parent, option="--output", make=False)
    return total


def joined_labels(predictions: Predictions, threshold: float) -> str:
    """The classes of an image as a cell, the most probable first; empty for none."""
    return to_cell(SEPARATOR.join(guess["label"] for guess in predictions if guess["score"] >= threshold))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the number of images that were classified."""
    args = make_parser().parse_args(argv)
    total = check(args)
    classify = ImageClassifier.from_pretrained(
        args.model, revision=args.revision, backbone=args.backbone, device=args.device
    )
    if args.threshold is not None and not classify.is_multi_label:
        raise ValueError(f"--threshold is for several classes an image, and '{args.model}' gives one; leave it out.")
    num_classes, top_k = len(classify.class_names), min(args.top_k, len(classify.class_names))
    wanted = num_classes if classify.is_multi_label else top_k
    paths, read = itertools.tee(find_images(args.folder))  # `read` is ahead by the batches under way
    results = classify.stream(read, top_k=wanted, batch_size=args.batch_size, num_workers=args.num_workers)
    broken = 0
    with atomic_open(args.output, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        header = [name for rank in range(1, top_k + 1) for name in (f"label_{rank}", f"probability_{rank}")]
        header = ["labels", *header] if classify.is_multi_label else header
        writer.writerow(["path", *header, "error"])
        for path, predictions in zip(paths, tqdm(results, total=total, unit=" images"), strict=True):
            cells, error = [""] * len(header), ""
            if isinstance(predictions, BadImageError):
                if args.on_bad_image == "fail":
                    raise predictions
                broken += 1
                error = str(predictions).partition("; replace")[0].partition("; shrink")[0]
                tqdm.write(f"Skipped: {error}", file=sys.stderr)
            else:
                cells = [
                    cell
                    for guess in predictions[:top_k]
                    for cell in (to_cell(guess["label"]), f"{guess['score']:.6f}")
                ]
                if classify.is_multi_label:
                    cells.insert(
                        0, joined_labels(predictions, THRESHOLD if args.threshold is None else args.threshold)
                    )
            writer.writerow([to_cell(Path(path).relative_to(args.folder).as_posix()), *cells, to_cell(error)])
    problem = f"; {broken:,} of them could not be read, see its column error" if broken else ""
    print(f"{total:,} images are in {args.output}{problem}.")
    return total - broken
