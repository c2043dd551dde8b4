"""Look at a data set before training on it: class counts, broken images, duplicates, extreme sizes.

    ft-focalsam inspect path/to/images
    ft-focalsam inspect image_folder/clip_vit_b16_lora --dataset path/to/images

Of a folder, the layout is found as ft-focalsam train FOLDER finds it: a fifth of each class is put aside for testing
where there is no test split. Otherwise takes the file and the keys of ft-focalsam train, and looks at exactly the
images that such a run would use; the keys of the data, and --output_dir and --dataloader_num_workers (processes) on
the command line count here. Prints a summary with a row per class and writes inspection.json (every case) and
class_counts.png to --output_dir, by default inspections/ and the name of the data set; where there is an inspection
already, to NAME-2, NAME-3, ... Pixels are compared, so that an image saved again under another name or in another
format without loss is found; `looks like` compares the gradients of 9 x 9 grey pixels and may be wrong.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from transformers import HfArgumentParser

from ..base.files import check_writable
from ..data import Inspection, frequency_groups, inspect_images, prepare_images
from ..evaluation import file_name, short_name
from .arguments import TYPES
from .automatic import settings_of_folder
from .config import config_parser, parse_config

READS_CONFIG = True
USAGE = "ft-focalsam inspect FOLDER|CONFIG [--key value ...]"

RESULT = "inspection.json"
GROUP_COLOURS = {"many": "tab:blue", "medium": "tab:orange", "few": "tab:red"}


def make_parser() -> HfArgumentParser:
    """The parser of its keys, for the index of keys."""
    return config_parser(TYPES)


def plot_class_counts(path: Path, inspection: Inspection, *, many: int, few: int) -> None:
    """Training images of each class, the most frequent first, coloured by group."""
    counts = np.sort(inspection.train_counts)[::-1]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for group, classes in frequency_groups(counts, many=many, few=few).items():
        axes.bar(classes, counts[classes], width=1.0, color=GROUP_COLOURS[group], label=f"{group} ({len(classes)})")
    axes.set(yscale="log", xlabel="class, by frequency", ylabel="training images")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def free_folder(argv: list[str] | None, dataset: str) -> Path:
    """Where the inspection goes: not to the folder of the run, unless the command line says so, and over no other."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output_dir", "--output-dir", type=Path)
    given = parser.parse_known_args(argv)[0].output_dir
    folder = Path("inspections", file_name(short_name(dataset))) if given is None else given.expanduser()
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([folder], numbered) if not (each / RESULT).exists())


def main(argv: list[str] | None = None) -> Inspection:
    """Inspect; returns what was found."""
    argv, reasons = settings_of_folder(sys.argv[1:] if argv is None else argv, data_only=True)
    print("\n".join(f"- {reason}" for reason in reasons))
    data_args, _, _, args = parse_config(TYPES, argv)
    data = prepare_images(dataclasses.replace(data_args, on_bad_image="unchecked"))
    inspection = inspect_images(data, num_workers=args.dataloader_num_workers or None)
    thresholds = {"many": args.many_shot_threshold, "few": args.few_shot_threshold}
    folder = free_folder(argv, data.name)
    print(f"\n{data.name}: {inspection.summary(**thresholds)}\n")

    check_writable(folder)
    content = {"dataset": data.name, **inspection.record()}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (folder / RESULT).write_text(text + "\n", encoding="utf-8")
    plot_class_counts(folder / "class_counts.png", inspection, **thresholds)
    print(f"{RESULT} (every case) and class_counts.png are in {folder}.")
    return inspection
