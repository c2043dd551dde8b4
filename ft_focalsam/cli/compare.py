"""Compare methods over several seeds on one data set.

    ft-focalsam compare quickstart --output_dir runs/compare
    ft-focalsam compare CONFIG --output_dir DIR --methods none sam focal_sam focal_sam:rho=0.1,focal_gamma=0

Runs ft-focalsam train once per method and seed, with `--jobs N` up to N of them side by side on one device. A method
is a value of `--sharpness`, with other keys of the recipe behind a colon; further `--key value` pairs go to every run.
The first method is the one that the others are compared with. A run that is finished is not repeated: the command goes
on where it was stopped. Writes to `output_dir` a folder a run and, at the end, comparison.html, comparison.md and
comparison.json: accuracies over the seeds with intervals, paired differences, accuracy against the time of training.
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from accelerate import PartialState
from tqdm.auto import tqdm

from ..evaluation import (
    PREDICTIONS,
    EvalResult,
    MethodRuns,
    Predictions,
    file_name,
    read_train_counts,
    saved_counts,
    short_name,
    write_comparison,
)
from ..evaluation.report.method_names import method_title
from .arguments import TYPES
from .automatic import settings_of_folder
from .checks import refuse_several_classes
from .config import parse_config
from .finished_runs import FINISHED, describe, is_finished, run
from .parsers import command_parser

METHODS = ("none", "sam", "imbsam", "cc_sam", "focal_sam")
FURTHER = TYPES  # keys that go to every run
READS_CONFIG = True


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("compare", __doc__)
    parser.add_argument("config", metavar="FOLDER|CONFIG", help="as ft-focalsam train takes it")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the runs and the comparison go")
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD", help="NAME or NAME:key=value,...")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each in a process that logs to a file")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one run of every method with each")
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


def run_logged(folder: Path, command_line: list[str], options: dict) -> None:
    """`run` for a process of its own, with what it says in a log beside the folder of the run.

    Raises:
        ValueError: If it fails; names the log.
    """
    log = folder.with_name(f"{folder.name}_log.txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            run(folder, command_line, options)
        except (ValueError, OSError) as error:
            raise ValueError(f"The run in '{folder}' failed: {error} Its log is '{log}'.") from error


def run_side_by_side(runs: Iterable[tuple[Path, list[str], dict]], *, jobs: int) -> None:
    """Up to `jobs` runs at a time, each in a new process; where one fails, no further ones begin."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        waiting = [pool.submit(run_logged, *each) for each in runs]
        try:
            for done in tqdm(as_completed(waiting), total=len(waiting), desc="Runs"):
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def read_run(folder: Path, options: dict) -> tuple[EvalResult, float]:
    """The result on a finished run, and the seconds of its training."""
    predictions = Predictions.load(next((folder / PREDICTIONS).glob("*.safetensors")))
    counts = read_train_counts(saved_counts(folder), predictions.class_names)
    result = EvalResult(predictions, counts, many=options["many_shot_threshold"], few=options["few_shot_threshold"])
    return result, json.loads((folder / FINISHED).read_text(encoding="utf-8"))["seconds"]


def main(argv: list[str] | None = None) -> None:
    args, further = parse(argv)
    words, _ = settings_of_folder([args.config, *further])
    runs = {}  # (method, seed) -> folder, command line, options: all checked before the first run takes its time
    for seed in args.seeds:
        for method in args.methods:
            folder = args.output_dir / file_name(method) / f"seed_{seed}"
            own = [*method_options(method), "--seed", str(seed), "--output_dir", str(folder)]
            command_line = [*words, "--save_strategy", "no", "--overwrite", "true", *further, *own]
            options = parse_config(TYPES, command_line)
            refuse_several_classes(
                options[-1],
                "the intervals of a comparison are of accuracies; train and compare the mAP in metrics.json",
            )
            runs[method, seed] = folder, command_line, describe(options)
    left = [key for key, (folder, _, options) in runs.items() if not is_finished(folder, options)]
    if args.jobs > 1 and PartialState().num_processes > 1:
        raise ValueError(f"--jobs is {args.jobs} where the script has several processes; start it without a launcher.")
    PartialState().wait_for_everyone()
    say = print if PartialState().is_main_process else lambda *_: None
    if args.jobs > 1:
        run_side_by_side((runs[key] for key in left), jobs=args.jobs)
    else:
        for number, (method, seed) in enumerate(left, start=1):
            say(f"\n{method_name(method)}, seed {seed}: run {number} of {len(left)}")
            run(*runs[method, seed])
    if PartialState().is_main_process:
        methods = []
        for method in args.methods:
            found = {seed: read_run(*runs[method, seed][::2]) for seed in args.seeds}
            results, seconds = ({seed: each[part] for seed, each in found.items()} for part in (0, 1))
            methods.append(MethodRuns(method_name(method), results, seconds))
        data = short_name(runs[args.methods[0], args.seeds[0]][2]["dataset"])
        clock = "CPU time" if PartialState().device.type == "cpu" else "time"
        table = write_comparison(args.output_dir, methods, title=f"Methods on {data}", clock=clock)
        say(f"\n{table}\n\ncomparison.html, comparison.md and comparison.json are in {args.output_dir}.")
