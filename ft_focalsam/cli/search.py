"""Search rho, gamma, lambda and what else the methods declare a range for, on a part of the training set.

    ft-focalsam search quickstart --output_dir runs/search --num_trials 20

Takes the keys of ft-focalsam train and those below (`--help`). `--validation_fraction` (0.2) of each class of the
training split is put aside to choose on, before any long-tail cut; the test set is never looked at. The first trial
has the values of the configuration, the others are Optuna's (`pip install 'ft-focalsam[search]'`), through the
Trainer's `hyperparameter_search`. Stopped, the command goes on with the trials that are left. Writes to `output_dir`:
trials.csv, best.yaml for ft-focalsam train, and search.db.
"""

import csv
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated

import yaml
from transformers import HfArgumentParser, set_seed
from transformers.integrations import is_optuna_available

from ..base.files import check_writable
from ..base.ranges import Range, check_numbers
from ..data import prepare_images
from ..evaluation import METRICS, MULTI_LABEL_METRICS
from ..losses import is_multi_label
from ..sharpness import SHARPNESS_METHODS
from .arguments import TYPES as RUN_TYPES
from .automatic import settings_of_folder
from .building import make_trainer
from .config import config_parser, parse_config
from .config_files import find_config
from .finished_runs import check_same, describe
from .search_space import check_ranges, search_space, searchable, searches_the_model, with_ranges

STUDY = "ft_focalsam"
VALIDATION_FRACTION = 0.2  # where the configuration has none


@dataclass
class _SearchArguments:
    """What is tried, and how it is evaluated."""

    num_trials: Annotated[int, Range(1)] = field(
        default=20, metadata={"help": "Runs, those of earlier calls included."}
    )
    objective: str = field(
        default="mean_class_accuracy",
        metadata={"help": "Metric that is searched for, of the held-out images; for several classes an image, mAP."},
    )

    def __post_init__(self):
        check_numbers(self)
        if self.objective not in (*METRICS, *MULTI_LABEL_METRICS):
            raise ValueError(f"objective is {self.objective!r}; choose one of {', '.join(METRICS)} or mAP.")
        check_ranges(self)


SearchArguments = with_ranges(_SearchArguments, name="SearchArguments")
TYPES = (SearchArguments, *RUN_TYPES)
READS_CONFIG = True
USAGE = "ft-focalsam search FOLDER|CONFIG [--key value ...]"


def make_parser() -> HfArgumentParser:
    """The parser of its keys, for the index of keys."""
    return config_parser(TYPES)


def refuse_what_cannot_be_searched(search: SearchArguments, options: tuple) -> None:
    """Raise a `ValueError` before any image is read."""
    data_args, *_, args = options
    known = MULTI_LABEL_METRICS if is_multi_label(args.loss) else METRICS
    if search.objective not in known:
        raise ValueError(
            f"objective is {search.objective!r}, which is not measured with the loss {args.loss!r}; set it to one of "
            f"{', '.join(known)}."
        )
    if not searchable(options):
        fitting = ", ".join(name for name, method in SHARPNESS_METHODS.items() if method.hyperparameters)
        raise ValueError(f"sharpness is {args.sharpness!r}, which has nothing to search; set one of {fitting}.")
    if data_args.streaming:
        raise ValueError("streaming is on, and no part of a stream can be held out; search on a stored subset.")
    if args.world_size > 1:
        raise ValueError(
            f"A search runs in one process, and these are {args.world_size}; start it without a launcher."
        )
    if not is_optuna_available():
        raise ValueError("The search needs Optuna; pip install 'ft-focalsam[search]'.")


def open_study(folder: Path, search: SearchArguments, options: tuple):
    """The `optuna.Study` of the output folder, begun with the values of the configuration.

    Raises:
        ValueError: If it was begun with other options.
    """
    import optuna

    study = optuna.create_study(
        storage=storage_of(folder), study_name=STUDY, load_if_exists=True, direction="maximize"
    )
    now = describe(options) | {key: value for key, value in asdict(search).items() if key != "num_trials"}
    if not study.user_attrs:
        study.set_user_attr("options", now)
        study.enqueue_trial({key: getattr(owner, key) for key, (owner, _) in searchable(options).items()})
    check_same(study.user_attrs["options"], now, whose=f"The search in '{folder}'")
    return study


def storage_of(folder: Path) -> str:
    """The data base of trials, as Optuna names it."""
    return f"sqlite:///{folder / 'search.db'}"


def finished(study) -> list:
    """The trials that came to an end."""
    return [trial for trial in study.trials if trial.state.is_finished() and trial.value is not None]


def write_trials(path: Path, study) -> None:
    """One line a trial, the best first."""
    rows = sorted(finished(study), key=lambda trial: -trial.value)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "value", *rows[0].params])
        writer.writerows([trial.number, trial.value, *trial.params.values()] for trial in rows)


def write_best(folder: Path, best: dict[str, float], argv: Sequence[str]) -> None:
    """The configuration with the values found, and with what the command line had set."""
    config = find_config(argv[0]) if argv and not argv[0].startswith("-") else None
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
    """Run the command; returns the best values by key."""
    argv, _ = settings_of_folder(sys.argv[1:] if argv is None else argv)
    search, *options = parse_config(TYPES, argv)
    data_args, _, _, args = options
    if not data_args.has_validation:
        data_args.validation_fraction = VALIDATION_FRACTION
    refuse_what_cannot_be_searched(search, options)
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
        draw = search_space(search, options)
        draw_model = draw if searches_the_model(options) else None
        trainer, _ = make_trainer(data, options, restarts=True, draw=draw_model)
        trainer.hyperparameter_search(
            hp_space=draw,  # within a trial a value is drawn once
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
    print(f"\nTrain with them: ft-focalsam train {folder / 'best.yaml'}")
    return best.params
