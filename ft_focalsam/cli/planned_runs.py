"""The runs of a comparison: what a method's words mean, and how each run is made."""

import dataclasses
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from tqdm.auto import tqdm

from ..base.errors import unknown
from ..data import DataArguments
from ..evaluation import file_name
from ..evaluation.report.method_names import method_title
from ..hub.run_file import RUN_NAME
from ..models.heads import make_head
from ..retraining import RETRAINING, Retraining
from ..retraining.heads import TEXTS_ALONE
from ..tuning.registry import CONTEXT, TEXT, choose_methods
from . import retrain
from .arguments import TYPES, ModelArguments
from .automatic import settings_of_folder
from .checks import refuse_several_classes
from .config import parse_config
from .finished_runs import FINISHED, describe, note_finished, run

FIXED = ("--save_strategy", "no", "--overwrite", "true")


@dataclass(frozen=True)
class Planned:
    """One run of a comparison.

    Args:
        title (`str`): For messages.
        name (`str`): Of its folder below the output folder, and in a record.
        folder (`Path`): Where it goes.
        command_line (`list[str]`): For ft-focalsam train; of a second stage, for ft-focalsam retrain.
        options (`dict`): All of them, of `describe`; of a second stage, those of the first, its own in "retraining".
        command (`list[str]`): What was asked for, without the folders of this machine, for a record.
        first (`Planned`, *optional*): The run whose head a second stage retrains.
    """

    title: str
    name: str
    folder: Path
    command_line: list[str]
    options: dict
    command: list[str]
    first: "Planned | None" = None

    def make(self) -> None:
        """Train, or retrain the head of the first run, which is finished."""
        if self.first is None:
            run(self.folder, self.command_line, self.options)
            return
        state = PartialState()
        if state.is_main_process and self.folder.is_dir():  # of a second stage that was stopped before it was noted
            shutil.rmtree(self.folder)
        state.wait_for_everyone()
        retrain.main(self.command_line)
        if not state.is_main_process:
            return
        first, second = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for folder, name in ((self.first.folder, FINISHED), (self.folder, RUN_NAME))
        )
        note_finished(self.folder, self.options, first["seconds"] + second["retraining"]["seconds"])


def split_words(words: str, method: str) -> tuple[str, dict[str, str]]:
    """`NAME:key=value,key=value` as the name and the settings.

    Raises:
        ValueError: If a part is no setting; names the whole method.
    """
    name, _, rest = words.partition(":")
    settings = {}
    for setting in rest.split(",") if rest else ():
        key, equals, value = setting.partition("=")
        if not (key and equals and value):
            raise ValueError(f"'{setting}' in the method '{method}' is no setting; write NAME:key=value,key=value.")
        settings[key] = value
    return name, settings


def as_options(settings: dict[str, str]) -> list[str]:
    """Settings as words of a command line."""
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


def method_name(method: str) -> str:
    """As the tables show it."""
    first, plus, second = method.partition("+")
    name, settings = split_words(first, method)
    titles = ["plain" if name == "none" else method_title(name), *(" ".join(pair) for pair in settings.items())]
    if plus:
        name, settings = split_words(second, method)
        titles[-1] += f" + {RETRAINING.choose(name).title}"
        titles += [" ".join(pair) for pair in settings.items()]
    return ", ".join(titles)


class Plans:
    """Plans the runs of a comparison; what is wrong with one is said before the first takes its time.

    Args:
        words (`list[str]`): What every run has in common, as ft-focalsam train takes it.
        output_dir (`Path`): Where the runs go.
    """

    def __init__(self, words: list[str], output_dir: Path):
        self._words, _ = settings_of_folder(words)
        self._further = words[1:]
        self._output_dir = output_dir

    def plan(self, method: str, seed: int) -> Planned:
        """The run of a method, `NAME[:key=value,...][+STAGE[:key=value,...]]`, with a seed.

        Raises:
            ValueError: If the method, its second stage or a setting of either is none, or they do not fit.
        """
        first, plus, second = method.partition("+")
        name, settings = split_words(first, method)
        own = ["--sharpness", name, *as_options(settings), "--seed", str(seed)]
        folder = self._output_dir / file_name(first) / f"seed_{seed}"
        line = [*self._words, *FIXED, *self._further, *own, "--output_dir", str(folder)]
        options = parse_config(TYPES, line)
        planned = Planned(
            title=f"{method_name(first)}, seed {seed}",
            name=f"{file_name(first)}/seed_{seed}",
            folder=folder,
            command_line=line,
            options=describe(options),
            command=portable([*self._words, *own]),
        )
        return self._plan_second(method, second, seed, planned, options) if plus else planned

    def _plan_second(self, method: str, second: str, seed: int, first: Planned, options: tuple) -> Planned:
        name, settings = split_words(second, method)
        if name not in RETRAINING:
            raise ValueError(unknown(f"The second stage in the method '{method}'", name, RETRAINING))
        if "seed" in {field.name for field in dataclasses.fields(RETRAINING[name])}:
            settings = {"seed": str(seed), **settings}
        folder = self._output_dir / file_name(method) / f"seed_{seed}"
        own = ["--method", name, *as_options(settings)]
        line = [str(first.folder), *own, "--output", str(folder)]
        stage = retrain.choose_method(retrain.make_parser().parse_args(line))
        line += places_of_images(options[0])
        refuse_several_classes(options[-1], "second stages are for one class an image")
        check_second_stage(stage, *options[:2])
        return Planned(
            title=f"{method_name(method)}, seed {seed}",
            name=f"{file_name(method)}/seed_{seed}",
            folder=folder,
            command_line=line,
            options={**first.options, "retraining": {"method": name, **dataclasses.asdict(stage)}},
            command=[*first.command, "+", *own],
            first=first,
        )


def places_of_images(data_args: DataArguments) -> list[str]:
    """Where the images are, as words of a command line: run.json names a folder of this machine without its place."""
    places = {key: getattr(data_args, key) for key in ("dataset", "test_dataset", "image_root", "class_names")}
    return as_options({key: value for key, value in places.items() if value is not None})


def check_second_stage(stage: Retraining, data_args: DataArguments, model_args: ModelArguments) -> None:
    """Raise a `ValueError` where the runs of these settings are none that a head can be retrained of in this way."""
    if stage.needs_validation and not data_args.has_validation:
        raise ValueError(
            f"'{stage.title}' chooses by images that the runs put aside, and there are none; give "
            "--validation_fraction 0.1, or tau=0.7 behind tau_norm."
        )
    if any(tuning.stage in (TEXT, CONTEXT) for tuning in choose_methods(model_args.tuning)):
        raise ValueError(TEXTS_ALONE)
    stage.check(make_head(model_args.head, 1, 2, scale=model_args.head_scale), model_args.head)


def portable(words: Sequence[str]) -> list[str]:
    """A command line without the folders of this machine: the last part of what is a path here."""
    return [Path(word).name if "/" in word and Path(word).expanduser().exists() else word for word in words]


def run_logged(plan: Planned) -> Planned:
    """Make a run in a process of its own, with what it says in a log beside its folder.

    Raises:
        ValueError: If it fails; names the log.
    """
    log = plan.folder.with_name(f"{plan.folder.name}_log.txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            plan.make()
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
