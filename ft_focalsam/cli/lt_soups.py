"""LT-Soups (Aminbeidokhti et al., arXiv 2511.10683): a soup over subsets of growing imbalance, then the head on all.

    ft-focalsam lt_soups recipes/configs/quickstart.yaml --output_dir runs/lt_soups

For each of `--factors` i, the training classes are cut to at most 2^i times the images of the rarest one, and
`--branches` runs of ft-focalsam train begin from the same start, each on a draw of its own; their averages are
merged into the start one after the other, by `--merge_rate` (`ft_focalsam/averaging/lt_soups.py` has the formula).
Then the head alone is trained on all images. By default the factors are all whose subset is less imbalanced than the
images themselves, as the authors take them. They train all weights (`--tuning full`) with `--loss logit_adjusted` and
`--ema_decay 0.99`; any tuning goes that is nothing at the start. Unlike in their code, the branches of one factor draw
different images, and a head that starts from class means or a linear probe starts from those of its subset.

Further `--key value` pairs go to every run. A run that is finished is not repeated: the command goes on where it was
stopped. Writes to `output_dir`: start/, factor_I/branch_J/, soup/ (before the head was trained) and lt_soup/, each as
ft-focalsam train writes a run.
"""

import argparse
import dataclasses
import math
from pathlib import Path

from accelerate import PartialState

from ..averaging.average import average
from ..averaging.ingredients import read_ingredients
from ..averaging.lt_soups import lt_soup_weights
from ..averaging.wise_ft import check_start_is_known, read_with_start
from ..data import label_array, prepare_images
from ..data.long_tail import class_counts
from ..evaluation import format_table
from ..hub.run_file import RUN_NAME
from ..models import LongTailClassifier
from ..trainer import FocalSAMTrainer
from ..tuning import apply_tuning
from . import train
from .arguments import TYPES
from .automatic import settings_of_folder
from .checks import refuse_several_classes
from .config import parse_config
from .finished_runs import describe, is_finished
from .finished_runs import run as run_once
from .parsers import command_parser
from .run_folders import evaluate_on, options_of_run, write_average

FURTHER = TYPES  # keys that go to every run
READS_CONFIG = True


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("lt_soups", __doc__)
    add = parser.add_argument
    add("config", metavar="FOLDER|CONFIG", help="as ft-focalsam train takes it")
    add("--output_dir", type=Path, required=True, help="where the runs and the soups go")
    add("--factors", nargs="+", type=int, help="i of each subset, in the order of merging; by default 0, 1, 2, ...")
    add("--branches", type=int, default=2, help="runs on each subset; 2 by default")
    add("--merge_rate", type=float, default=0.7, help="share that each subset's average is merged with; 0.7")
    return parser


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    args, further = make_parser().parse_known_args(argv)
    for factor in args.factors or ():
        if not 0 <= factor < 32:
            raise ValueError(f"--factors has {factor}; a factor i stands for 2^i, set it from 0 to 31.")
    lt_soup_weights(1, merge_rate=args.merge_rate, branches=args.branches)
    return args, further


def default_factors(counts) -> list[int]:
    """All i with 2^i below the ratio of the most frequent to the rarest class; [0] where classes are balanced."""
    return list(range(max(1, math.ceil(math.log2(counts.max() / counts.min())))))


class HeadStage:
    """The second stage: builds the soup for ft-focalsam train with its head alone to train."""

    def __init__(self, soup: Path):
        self.soup = soup
        self.tuned: set[str] = set()  # what trained in the first stage, and has to be saved again

    def build(self, data, plain, collate, options) -> tuple[LongTailClassifier, None]:
        """As `build_model`."""
        model = LongTailClassifier.from_pretrained(self.soup).to(options[-1].device)
        self.tuned = {name for name, p in model.named_parameters() if p.requires_grad}
        model.requires_grad_(False)
        model.head.requires_grad_(True)
        return model, None

    def trainer_type(stage) -> type[FocalSAMTrainer]:
        """A trainer that marks, when it has trained, what of the model is to be saved."""

        class HeadTrainer(FocalSAMTrainer):
            def train(self, *args, **kwargs):
                output = super().train(*args, **kwargs)
                for name, parameter in self.model.named_parameters():
                    parameter.requires_grad_(name in stage.tuned)
                return output

        return HeadTrainer


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Run the command; returns the records of the start, the soup and the soup with its head trained."""
    args, further = parse(argv)
    say = print if PartialState().is_main_process else lambda *_: None
    words, _ = settings_of_folder([args.config, *further])
    common = [*words, "--save_strategy", "no", "--overwrite", "true", *further]
    options = parse_config(TYPES, [*common, "--output_dir", str(args.output_dir)])
    data_args, model_args, tuning_options, run_args = options
    refuse_several_classes(run_args, "LT-Soups takes images away class by class; average runs by ft-focalsam soup")
    with PartialState().main_process_first():
        data = prepare_images(data_args, say=say)
    counts = class_counts(label_array(data.train), data.num_classes)
    factors = args.factors or default_factors(counts)
    plain = {field.name: getattr(data_args, field.name) for field in dataclasses.fields(data_args)}
    if plain["max_imbalance"] is not None:
        raise ValueError(f"max_imbalance is {plain['max_imbalance']:g}, which the factors choose; leave it out.")
    probe = LongTailClassifier.from_backbone(model_args.backbone, data.class_names, head=model_args.head)
    apply_tuning(probe, model_args.tuning, tuning_options)
    check_start_is_known(probe, model_args.tuning)
    start = args.output_dir / "start"
    if not (start / RUN_NAME).is_file():
        train.main([*common, "--tuning", "zero_shot", "--output_dir", str(start)])
    runs = {}
    for factor in factors:
        for branch in range(args.branches):
            folder = args.output_dir / f"factor_{factor}" / f"branch_{branch}"
            own = ["--max_imbalance", str(2**factor), "--max_imbalance_seed", str(branch)]
            own += ["--data_seed", str(branch), "--output_dir", str(folder)]
            command_line = [*common, *own]
            runs[folder] = command_line, describe(parse_config(TYPES, command_line))
    for number, (folder, (command_line, options)) in enumerate(runs.items(), start=1):
        if not is_finished(folder, options):
            say(f"\n{folder}: run {number} of {len(runs)}")
            run_once(folder, command_line, options)
    names = [str(folder) for folder in runs]
    weights = lt_soup_weights(len(factors), merge_rate=args.merge_rate, branches=args.branches)
    template, ingredients = read_ingredients(names, say=say)
    _, (before, _) = read_with_start(names[0], start=str(start), say=say)
    model, _ = average(template, [before, *ingredients], weights)
    soup = args.output_dir / "soup"
    result = evaluate_on(model, data, "test", options_of_run(str(start), batch_size=64))
    if PartialState().is_main_process:
        described = {"kind": "LT-Soup", "factors": factors, "branches": args.branches, "merge_rate": args.merge_rate}
        write_average(soup, model, names=names, description=described, data=data, results={"soup": result})
    PartialState().wait_for_everyone()
    say(f"\nThe soup is in {soup}; its head is trained on all images.")
    stage = HeadStage(soup)
    last = str(args.output_dir / "lt_soup")
    metrics = train.main(
        [*common, "--output_dir", last], trainer_type=stage.trainer_type(), build=stage.build, before="soup"
    )
    say(f"\n{format_table(metrics)}\n\nThe classifier is in {last}.")
    return metrics
