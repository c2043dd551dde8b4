"""Search rho, gamma and lambda, or what else a method declares a range for, on a part of the training set.

    python recipes/search.py recipes/configs/quickstart.yaml --output_dir runs/search --num_trials 20

Takes the keys of recipes/finetune.py and those below (`--help`). `--validation_fraction` (0.2) of each class of the
training split is put aside to choose on, before any long-tail cut; the test set is never looked at. The first trial
has the values of the configuration, the others are Optuna's (`pip install 'ft_focalsam[search]'`), through the
Trainer's `hyperparameter_search`. Stopped, the command goes on with the trials that are left. Writes to `output_dir`:
trials.csv, best.yaml for recipes/finetune.py, and search.db.
"""

import csv
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated

import yaml
from compare import check_same, describe
from finetune import make_trainer
from transformers import set_seed
from transformers.integrations import is_optuna_available

from ft_focalsam import FocalSAMTrainingArguments, TuningOptions
from ft_focalsam.cli.arguments import ModelArguments
from ft_focalsam.cli.config import parse_config
from ft_focalsam.data import DataArguments, prepare_images
from ft_focalsam.errors import told_in_one_sentence
from ft_focalsam.evaluation import METRICS
from ft_focalsam.files import check_writable
from ft_focalsam.losses import LOSSES
from ft_focalsam.ranges import Range, check_numbers
from ft_focalsam.sharpness import SHARPNESS_METHODS, Hyperparameter
from ft_focalsam.sharpness.hyperparameters import hyperparameters_of

STUDY = "ft_focalsam"
SMALLEST = 1e-6  # on a log scale
VALIDATION_FRACTION = 0.2  # where the configuration has none


def searchable(sharpness: str, loss: str) -> dict[str, Hyperparameter]:
    """The hyperparameters of a method and a loss that declare where to search, by argument."""
    of_both = [*SHARPNESS_METHODS[sharpness].hyperparameters, *hyperparameters_of(LOSSES[loss]).values()]
    return {known.argument: known for known in of_both if known.search is not None}


def range_key(known: Hyperparameter) -> str:
    """The option that sets the range of a hyperparameter."""
    return known.search.key or f"{known.argument}_range"


ALL_SEARCHABLE = {
    argument: known
    for sharpness in SHARPNESS_METHODS
    for loss in LOSSES
    for argument, known in searchable(sharpness, loss).items()
}


@dataclass
class _SearchArguments:
    """What is tried, and how it is judged."""

    num_trials: Annotated[int, Range(1)] = field(
        default=20, metadata={"help": "Runs, those of earlier calls included."}
    )
    objective: str = field(
        default="mean_class_accuracy", metadata={"help": "Metric that is searched for, of the held-out images."}
    )

    def __post_init__(self):
        check_numbers(self)
        if self.objective not in METRICS:
            raise ValueError(f"objective is {self.objective!r}; choose one of {', '.join(METRICS)}.")
        for known in ALL_SEARCHABLE.values():
            ends = getattr(self, range_key(known))
            is_in_range = all(end in known and not (known.search.log and end < SMALLEST) for end in ends)
            if len(ends) != 2 or not is_in_range or ends[0] > ends[1]:
                allowed = f"{SMALLEST:g} or more" if known.search.log else str(known)
                raise ValueError(f"{range_key(known)} is {ends}; give two numbers, {allowed}, the lower one first.")


def _range_field(known: Hyperparameter) -> tuple:
    text = f"Lowest and highest {known.argument}{', searched on a log scale' if known.search.log else ''}."
    default = [known.search.low, known.search.high]
    return range_key(known), list[float], field(default_factory=lambda: list(default), metadata={"help": text})


SearchArguments = make_dataclass(
    "SearchArguments", [_range_field(known) for known in ALL_SEARCHABLE.values()], bases=(_SearchArguments,)
)


def refuse_what_cannot_be_searched(data_args: DataArguments, args: FocalSAMTrainingArguments) -> None:
    """Raise a `ValueError` before any image is read."""
    if not searchable(args.sharpness, args.loss):
        fitting = ", ".join(name for name, method in SHARPNESS_METHODS.items() if method.hyperparameters)
        raise ValueError(f"sharpness is {args.sharpness!r}, which has nothing to search; set one of {fitting}.")
    if data_args.streaming:
        raise ValueError("streaming is on, and no part of a stream can be held out; search on a stored subset.")
    if args.world_size > 1:
        raise ValueError(
            f"A search runs in one process, and these are {args.world_size}; start it without a launcher."
        )
    if not is_optuna_available():
        raise ValueError("The search needs Optuna; pip install 'ft_focalsam[search]'.")


def open_study(folder: Path, search: SearchArguments, options: tuple):
    """The `optuna.Study` of the output folder, begun with the values of the configuration.

    Raises:
        ValueError: If it was begun with other options.
    """
    import optuna

    args = options[-1]
    study = optuna.create_study(
        storage=storage_of(folder), study_name=STUDY, load_if_exists=True, direction="maximize"
    )
    now = describe(options) | {key: value for key, value in asdict(search).items() if key != "num_trials"}
    if not study.user_attrs:
        study.set_user_attr("options", now)
        study.enqueue_trial({key: getattr(args, key) for key in searchable(args.sharpness, args.loss)})
    check_same(study.user_attrs["options"], now, whose=f"The search in '{folder}'")
    return study


def storage_of(folder: Path) -> str:
    """The data base of trials, as Optuna names it."""
    return f"sqlite:///{folder / 'search.db'}"


def finished(study) -> list:
    """The trials that came to an end."""
    return [trial for trial in study.trials if trial.state.is_finished() and trial.value is not None]


def search_space(search: SearchArguments, *, sharpness: str, loss: str) -> Callable:
    """What a trial draws: the `hp_space` of the Trainer."""

    def draw(trial) -> dict[str, float]:
        return {
            key: trial.suggest_float(key, *getattr(search, range_key(known)), log=known.search.log)
            for key, known in searchable(sharpness, loss).items()
        }

    return draw


def write_trials(path: Path, study) -> None:
    """One line a trial, the best first."""
    rows = sorted(finished(study), key=lambda trial: -trial.value)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "value", *rows[0].params])
        writer.writerows([trial.number, trial.value, *trial.params.values()] for trial in rows)


def write_best(folder: Path, best: dict[str, float], argv: Sequence[str]) -> None:
    """The configuration with the values found, and with what the command line had set."""
    config = argv[0] if argv and not argv[0].startswith("-") else None
    words: dict[str, list[str]] = {}
    for word in argv[config is not None :]:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            words[key] = [value] if equals else []
        else:
            words[key].append(word)
    own = {f.name for f in fields(SearchArguments)} | {"validation_fraction"}
    values = {key: (v[0] if len(v) == 1 else v or True) for key, v in words.items() if key not in own}
    content = {"base": os.path.relpath(config, folder)} if config else {}
    content |= values | {"output_dir": str(folder / "best")} | best
    (folder / "best.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the recipe; returns the best values by key."""
    argv = list(sys.argv[1:] if argv is None else argv)
    types = (SearchArguments, DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments)
    search, *options = parse_config(types, argv)
    data_args, _, _, args = options
    if data_args.validation_fraction is None:
        data_args.validation_fraction = VALIDATION_FRACTION
    refuse_what_cannot_be_searched(data_args, args)
    from optuna.samplers import TPESampler

    folder = Path(args.output_dir)
    check_writable(folder)
    study = open_study(folder, search, options)
    args.save_strategy = "no"
    left = search.num_trials - len(finished(study))
    if left > 0:
        data = prepare_images(data_args)
        set_seed(args.seed)
        sizes = f"{data.num_train:,} images to train on, {len(data.validation):,} put aside"
        print(f"{data.name}: {sizes}; {left} trials to go")
        trainer, _ = make_trainer(data, options, restarts=True)
        trainer.hyperparameter_search(
            hp_space=search_space(search, sharpness=args.sharpness, loss=args.loss),
            compute_objective=lambda metrics: metrics[f"eval_{search.objective}"],
            n_trials=left,
            direction="maximize",
            backend="optuna",
            storage=storage_of(folder),
            study_name=STUDY,
            load_if_exists=True,
            sampler=TPESampler(seed=args.seed + len(study.trials)),
        )
    best = study.best_trial
    write_trials(folder / "trials.csv", study)
    write_best(folder, best.params, argv)
    print(f"\n{search.objective} on held-out images: {100 * study.trials[0].value:.1f} as configured,")
    print(f"{100 * best.value:.1f} with " + ", ".join(f"{key} {value:.4g}" for key, value in best.params.items()))
    print(f"\nTrain with them: recipes/finetune.py {folder / 'best.yaml'}")
    return best.params


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
