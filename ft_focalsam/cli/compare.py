"""Compare methods over several seeds on one data set.

    ft-focalsam compare quickstart --output_dir runs/compare
    ft-focalsam compare CONFIG --output_dir DIR --methods none sam focal_sam focal_sam:rho=0.1,focal_gamma=0

Runs ft-focalsam train once per method and seed, with `--jobs N` up to N of them side by side on one device. A method
is a value of `--sharpness`, with other keys of the recipe behind a colon; further `--key value` pairs go to every run.
The first method is the one that the others are compared with. A run that is finished is not repeated: the command goes
on where it was stopped, with `--record FILE` also on another machine. Writes to `output_dir` a folder a run and, at
the end, comparison.html, comparison.md and comparison.json: accuracies over the seeds with intervals, paired
differences, accuracy against the time of training.
"""

import argparse
import json
import multiprocessing
import shlex
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState
from tqdm.auto import tqdm

from ..evaluation import (
    PREDICTIONS,
    EvalResult,
    MethodRuns,
    Predictions,
    RunRecord,
    file_name,
    read_train_counts,
    saved_counts,
    short_name,
    write_comparison,
)
from ..evaluation.report.method_names import method_title
from ..hub.run_file import RUN_NAME
from .arguments import TYPES
from .automatic import settings_of_folder
from .checks import refuse_several_classes
from .config import parse_config
from .finished_runs import FINISHED, describe, is_finished, run
from .parsers import command_parser

Key = tuple[str, int]  # method and seed
NO_INTERVALS = "the intervals of a comparison are of accuracies; train and compare the mAP in metrics.json"
METHODS = ("none", "sam", "imbsam", "cc_sam", "focal_sam")
FIXED = ("--save_strategy", "no", "--overwrite", "true")
FURTHER = TYPES  # keys that go to every run
READS_CONFIG = True


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("compare", __doc__)
    parser.add_argument("config", metavar="FOLDER|CONFIG", help="as ft-focalsam train takes it")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the runs and the comparison go")
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD", help="NAME or NAME:key=value,...")
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


def method_options(method: str) -> list[str]:
    """`focal_sam:rho=0.1` as the arguments of the recipe."""
    name, _, settings = method.partition(":")
    options = ["--sharpness", name]
    for setting in settings.split(",") if settings else ():
        key, equals, value = setting.partition("=")
        if not (key and equals and value):
            raise ValueError(f"'{setting}' in the method '{method}' is no setting; write NAME:key=value,key=value.")
        options += [f"--{key}", value]
    return options


def method_name(method: str) -> str:
    """As the tables show it."""
    name, _, settings = method.partition(":")
    title = "plain" if name == "none" else method_title(name)
    return ", ".join([title, *(settings.replace("=", " ").split(",") if settings else ())])


@dataclass(frozen=True)
class Planned:
    """One run of the comparison.

    Args:
        name (`str`): Of its folder below the output folder, and in a record.
        folder (`Path`): Where it goes.
        command_line (`list[str]`): For ft-focalsam train.
        options (`dict`): All of them, of `describe`.
        command (`list[str]`): What was asked for, without the folders of this machine, for a record.
    """

    name: str
    folder: Path
    command_line: list[str]
    options: dict
    command: list[str]


def run_logged(plan: Planned) -> Planned:
    """`run` for a process of its own, with what it says in a log beside the folder of the run.

    Raises:
        ValueError: If it fails; names the log.
    """
    log = plan.folder.with_name(f"{plan.folder.name}_log.txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            run(plan.folder, plan.command_line, plan.options)
        except (ValueError, OSError) as error:
            raise ValueError(f"The run in '{plan.folder}' failed: {error} Its log is '{log}'.") from error
    return plan


def run_side_by_side(plans: Iterable[Planned], *, jobs: int, keep: Callable[[Planned], object]) -> None:
    """Up to `jobs` runs at a time, each in a new process; where one fails, no further ones begin."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        waiting = [pool.submit(run_logged, plan) for plan in plans]
        try:
            for done in tqdm(as_completed(waiting), total=len(waiting), desc="Runs"):
                keep(done.result())
        finally:
            pool.shutdown(cancel_futures=True)


def read_run(folder: Path) -> tuple[Predictions, np.ndarray, dict]:
    """Predictions of a finished run, its training images per class, and how it was made."""
    predictions = Predictions.load(next((folder / PREDICTIONS).glob("*.safetensors")))
    counts = read_train_counts(saved_counts(folder), predictions.class_names)
    made = {"seconds": json.loads((folder / FINISHED).read_text(encoding="utf-8"))["seconds"]}
    described = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
    return predictions, counts, made | {name: described[name] for name in ("versions", "git")}


def portable(words: Sequence[str]) -> list[str]:
    """A command line without the folders of this machine: the last part of what is a path here."""
    return [Path(word).name if "/" in word and Path(word).expanduser().exists() else word for word in words]


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
    words, _ = settings_of_folder([args.config, *further])
    plans = {}
    for seed in args.seeds:
        for method in args.methods:
            name = f"{file_name(method)}/seed_{seed}"
            own = [*method_options(method), "--seed", str(seed)]
            folder = args.output_dir / name
            line = [*words, *FIXED, *further, *own, "--output_dir", str(folder)]
            command = portable([*words, *own])
            options = parse_config(TYPES, line)
            refuse_several_classes(options[-1], NO_INTERVALS)
            plans[method, seed] = Planned(name, folder, line, describe(options), command)
    return plans


def keep(plan: Planned, record: RunRecord | None) -> None:
    """Put a finished run into the record, if there is one that has it not."""
    if record is not None and plan.name not in record:
        predictions, counts, made = read_run(plan.folder)
        record.add(plan.name, predictions, counts, {"command": plan.command, **made})


def result_of(plan: Planned, record: RunRecord | None) -> tuple[EvalResult, float]:
    """The result on a finished run, from the record if there is one, and the seconds of its training."""
    if record is None:
        predictions, counts, made = read_run(plan.folder)
    else:
        keep(plan, record)
        predictions, counts, made = record.predictions(plan.name), record.train_images, record.made(plan.name)
    thresholds = {name: plan.options[f"{name}_shot_threshold"] for name in ("many", "few")}
    return EvalResult(predictions, counts, **thresholds), made["seconds"]


def main(argv: list[str] | None = None) -> None:
    args, further = parse(argv)
    plans = plan_runs(args, further)
    record = None if args.record is None else RunRecord(args.record)
    left = {
        key: plan
        for key, plan in plans.items()
        if not is_recorded(plan, record) and not is_finished(plan.folder, plan.options)
    }
    if args.jobs > 1 and PartialState().num_processes > 1:
        raise ValueError(f"--jobs is {args.jobs} where the script has several processes; start it without a launcher.")
    PartialState().wait_for_everyone()
    is_main = PartialState().is_main_process
    say = print if is_main else lambda *_: None

    if args.jobs > 1:
        run_side_by_side(left.values(), jobs=args.jobs, keep=lambda plan: keep(plan, record))
    else:
        for number, ((method, seed), plan) in enumerate(left.items(), start=1):
            say(f"\n{method_name(method)}, seed {seed}: run {number} of {len(left)}")
            run(plan.folder, plan.command_line, plan.options)
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
