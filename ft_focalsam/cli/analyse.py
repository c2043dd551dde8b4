"""Measure how sharp the loss of fine-tuned models is, class by class and by frequency of the classes.

    ft-focalsam analyse runs/quickstart --output_dir analyses/quickstart
    ft-focalsam analyse runs/plain runs/sam runs/focal_sam --output_dir analyses/methods

RUN is a folder that ft-focalsam train wrote. Of each class's mean loss L_i, on images of the run without
augmentation: the sharpness max over ||eps|| <= rho of L_i(w + eps) - L_i(w), by one SAM step (`first_order`) and by
projected gradient ascent from there (`ascent`, which tables and drawings show as the sharpness); the largest
eigenvalue of the Hessian (Lanczos) and its trace (Hutchinson, with its standard error); and loss landscapes along
filter-normalised directions. Several runs on the same images are compared with the first one, and rank correlations
say whether flatness goes with test accuracy. The classes of a group (many, medium, few) all count alike.

Writes to `output_dir`: analysis.html, the same as analysis.md, per_class.csv and analysis.json. Time grows with
`--max_images`, `--trace_probes` and the square of `--plane_points`; `--hessian false`, `--line_points 0` and
`--plane_points 0` leave the slow parts out. Lanczos keeps 20 vectors as large as what is perturbed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import HfArgumentParser

from ..analysis import (
    ImageOptions,
    Measurement,
    MeasureOptions,
    RunLosses,
    measure,
    read_runs,
    write_analysis,
)
from ..base.errors import printable
from ..base.files import check_writable
from ..models.image_classifier import choose_device
from ..sharpness.targets import TARGETS
from .config import DataclassParser

TYPES = (ImageOptions, MeasureOptions)


@dataclass(frozen=True)
class Arguments:
    """What the command line says.

    Args:
        runs (`list[str]`): Folders of runs; the others are compared with the first one.
        output_dir (`Path`): Where to write.
        device (`str`, *optional*): Where to run.
        images (`ImageOptions`): Which images and which loss.
        options (`MeasureOptions`): What to measure.
    """

    runs: Sequence[str]
    output_dir: Path
    device: str | None
    images: ImageOptions
    options: MeasureOptions


def make_parser() -> HfArgumentParser:
    parser = DataclassParser(TYPES, prog="ft-focalsam analyse", description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="Folder of a run; the others are compared with the first one.")
    add("--output_dir", "--output", type=Path, required=True, help="Where to write.")
    add("--device", help="Where to run: cpu, cuda, ...; an accelerator by default, where there is one.")
    return parser


def parse(argv: list[str] | None) -> Arguments:
    images, options, rest = make_parser().parse_args_into_dataclasses(argv)
    return Arguments(rest.runs, rest.output_dir, rest.device, images, options)


def main(argv: list[str] | None = None) -> list[Measurement]:
    """Run the command; returns what was measured of each run."""
    args = parse(argv)
    device = choose_device(args.device)
    check_writable(args.output_dir, make=False)
    runs = read_runs(args.runs, args.images)
    first, data = runs[0], runs[0].load_images(args.images)
    load = partial(RunLosses, data=data, options=args.images, seed=args.options.seed, device=device)
    for run in runs[1:]:  # what cannot be measured is told before the first one takes its time
        TARGETS[args.options.perturb](load(run).model)
    measured = []
    for run in runs:
        losses = load(run)
        target = TARGETS[args.options.perturb](losses.model)
        found = measure(
            target,
            partial(losses.of_class, target=target),
            images=losses.images,
            options=args.options,
            name=run.name,
            accuracies=run.result.class_accuracies,
            groups=run.result.outcomes.groups,
        )
        measured.append(found)
    loss = first.loss_settings(args.images.loss)["loss"]
    tables = write_analysis(
        args.output_dir,
        measured,
        class_names=first.class_names,
        class_counts=first.result.class_counts,
        options=args.options,
        about=f"Measured by the loss {loss} on {measured[0].images.sum():,} {args.images.split} images, at most "
        f"{args.images.max_images} of a class, without augmentation and dropout. Accuracies are of the test images.",
    )
    print(f"\n{printable_table(tables)}\n")
    print(printable(f"analysis.html, analysis.md, per_class.csv and analysis.json are in {args.output_dir}."))
    return measured


def printable_table(text: str) -> str:
    return "\n".join(map(printable, text.splitlines()))
