"""Compare methods over several seeds on one data set.

    ft-focalsam compare quickstart --output_dir runs/compare
    ft-focalsam compare CONFIG --output_dir DIR --methods none sam focal_sam focal_sam:rho=0.1,focal_gamma=0

Runs ft-focalsam train once per method and seed, with `--jobs N` up to N of them side by side on one device. A method
is a value of `--sharpness`, with other keys of the recipe behind a colon; behind a plus, a second stage of ft-focalsam
retrain, as in `focal_sam+crt` or `none+cc_sam:epochs=20`. Further `--key value` pairs go to every run.
The first method is the one that the others are compared with. A run that is finished is not repeated: the command goes
on where it was stopped, with `--record FILE` also on another machine. Writes to `output_dir` a folder a run and, at
the end, comparison.html, comparison.md and comparison.json: accuracies over the seeds with intervals, paired
differences, accuracy against the time of training.
"""

import argparse
import json
import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from accelerate import PartialState

from ..evaluation import (
    PREDICTIONS,
    MethodRuns,
    Predictions,
    RunRecord,
    make_result,
    read_train_counts,
    saved_counts,
    short_name,
    write_comparison,
)
from ..evaluation.multi_label_result import Result
from ..hub.run_file import RUN_NAME
from ..losses import is_multi_label
from .arguments import TYPES
from .finished_runs import FINISHED, is_finished
from .parsers import command_parser
from .planned_runs import Planned, Plans, method_name, run_side_by_side

Key = tuple[str, int]  # method and seed
METHODS = ("none", "sam", "imbsam", "cc_sam", "focal_sam")
FURTHER = TYPES  # keys that go to every run
READS_CONFIG = True


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("compare", __doc__)
    parser.add_argument("config", metavar="FOLDER|CONFIG", help="as ft-focalsam train takes it")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the runs and the comparison go")
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, metavar="METHOD", help="NAME[:key=value,...][+STAGE...]"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each in a process that logs to a file")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one run of every method with each")
    parser.add_argument(
        "--record",
        type=Path,
        help="file that keeps what the tables need of each finished run, 2 bytes per test image; a run that it holds "
        "is not repeated, also where its folder is gone",
    )
    return parser


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    args, further = make_parser().parse_known_args(argv)
    for name in ("methods", "seeds"):
        values = getattr(args, name)
        if len(set(values)) < len(values):
            raise ValueError(f"--{name} has {' '.join(map(str, values))}; name each once.")
    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}; set it to 1 or more.")
    return args, further


def read_run(folder: Path) -> tuple[Predictions, np.ndarray, dict]:
    """Predictions of a finished run, its training images per class, and how it was made."""
    predictions = Predictions.load(next((folder / PREDICTIONS).glob("*.safetensors")))
    counts = read_train_counts(saved_counts(folder), predictions.class_names)
    made = {"seconds": json.loads((folder / FINISHED).read_text(encoding="utf-8"))["seconds"]}
    described = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
    return predictions, counts, made | {name: described[name] for name in ("versions", "git")}


def is_recorded(plan: Planned, record: RunRecord | None) -> bool:
    """Whether a run is in the record.

    Raises:
        ValueError: If one of another command line is.
    """
    if record is None or plan.name not in record:
        return False
    before = record.made(plan.name)["command"]
    if before != plan.command:
        raise ValueError(
            f"The run '{plan.name}' in '{record.path}' was made by '{shlex.join(before)}', not "
            f"'{shlex.join(plan.command)}'; choose another --record."
        )
    return True


def plan_runs(args: argparse.Namespace, further: list[str]) -> dict[Key, Planned]:
    """All runs, checked before the first takes its time, the seeds outermost."""
    plans = Plans([args.config, *further], args.output_dir)
    planned = {(method, seed): plans.plan(method, seed) for seed in args.seeds for method in args.methods}
    if args.record is not None and any(is_multi_label(plan.options["loss"]) for plan in planned.values()):
        raise ValueError(
            f"--record is '{args.record}', which keeps one predicted class an image, and these images have several; "
            "leave it out."
        )
    return planned


def steps_left(plans: Iterable[Planned], record: RunRecord | None) -> tuple[list[Planned], list[Planned]]:
    """The runs that are still to be made: those that train, then the second stages, whose first runs are among the
    former where they have no folder."""
    left = [plan for plan in plans if not is_recorded(plan, record) and not is_finished(plan.folder, plan.options)]
    needed = {plan.name: plan for plan in left if plan.first is None}
    second = [plan for plan in left if plan.first is not None]
    for first in (plan.first for plan in second):
        if not is_finished(first.folder, first.options):
            needed.setdefault(first.name, first)
    return list(needed.values()), second


def keep(plan: Planned, record: RunRecord | None) -> None:
    """Put a finished run into the record, if there is one. A run that is there already was repeated for its second
    stage; if it predicts other classes, as it may on another machine, that is told."""
    if record is None:
        return
    predictions, counts, made = read_run(plan.folder)
    if plan.name not in record:
        record.add(plan.name, predictions, counts, {"command": plan.command, **made})
        return
    before, now = (each.outcomes().predicted for each in (record.predictions(plan.name), predictions))
    if changed := int((before != now).sum()):
        print(
            f"{plan.title} was repeated for its second stage, and predicts another class for {changed:,} of "
            f"{len(now):,} images than the recorded run, which the table shows."
        )


def result_of(plan: Planned, record: RunRecord | None) -> tuple[Result, float]:
    """The result on a finished run, from the record if there is one, and the seconds of its training."""
    if record is None:
        predictions, counts, made = read_run(plan.folder)
    else:
        if plan.name not in record:
            keep(plan, record)
        predictions, counts, made = record.predictions(plan.name), record.train_images, record.made(plan.name)
    thresholds = {name: plan.options[f"{name}_shot_threshold"] for name in ("many", "few")}
    return make_result(predictions, counts, **thresholds), made["seconds"]


def main(argv: list[str] | None = None) -> None:
    args, further = parse(argv)
    plans = plan_runs(args, further)
    record = None if args.record is None else RunRecord(args.record)
    if args.jobs > 1 and PartialState().num_processes > 1:
        raise ValueError(f"--jobs is {args.jobs} where the script has several processes; start it without a launcher.")
    PartialState().wait_for_everyone()
    is_main = PartialState().is_main_process
    say = print if is_main else lambda *_: None

    for left in steps_left(plans.values(), record):
        if args.jobs > 1 and left:
            run_side_by_side(left, jobs=args.jobs, keep=lambda plan: keep(plan, record))
            continue
        for number, plan in enumerate(left, start=1):
            say(f"\n{plan.title}: run {number} of {len(left)}")
            plan.make()
            if is_main:
                keep(plan, record)
    if is_main:
        methods = []
        for method in args.methods:
            found = {seed: result_of(plans[method, seed], record) for seed in args.seeds}
            results, seconds = ({seed: each[part] for seed, each in found.items()} for part in (0, 1))
            methods.append(MethodRuns(method_name(method), results, seconds))
        data = short_name(plans[args.methods[0], args.seeds[0]].options["dataset"])
        clock = "CPU time" if PartialState().device.type == "cpu" else "time"
        table = write_comparison(args.output_dir, methods, title=f"Methods on {data}", clock=clock)
        say(f"\n{table}\n\ncomparison.html, comparison.md and comparison.json are in {args.output_dir}.")
