"""Evaluate an image classifier on one or several test sets.

    ft-focalsam evaluate runs/quickstart --datasets digits
    ft-focalsam evaluate google/vit-base-patch16-224 --datasets imagenetv2 imagenet-a --class_index index.json
    ft-focalsam evaluate tiny_clip --datasets digits --compare evaluations/quickstart

MODEL is a folder or Hub repository of this package or of transformers, or a backbone with a text tower, which becomes
a zero-shot classifier. Classes are matched by name, by WordNet synset (n01440764) or by `--class_index`; where a test
set has a part of the model's classes, the logits are restricted to these. Writes to `output_dir`: report.html,
report.md, metrics.json, per_class/ and predictions/, which `--compare` and `--seeds` read again.
"""

import argparse
import json
from pathlib import Path

from ..base.errors import printable
from ..base.files import check_writable
from ..base.finding import did_you_mean
from ..evaluation import (
    PREDICTIONS,
    VIEWS,
    EvalConfig,
    EvalDataset,
    check_classes,
    evaluate,
    file_name,
    format_table,
    load_eval_dataset,
    read_class_index,
    read_train_counts,
    result_rows,
    run_folder,
    saved_counts,
    saved_history,
    short_name,
    title_name,
    write_page,
    write_per_class_csv,
)
from ..hub import read_run
from ..models import is_zero_shot, load_classifier
from .parsers import command_parser
from .processes import join_processes


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("evaluate", __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder or Hub name of a classifier, or of a backbone with a text tower")
    add("--datasets", nargs="+", required=True, help="digits, Hub names, or folders; each is a test set")
    add("--output_dir", type=Path, help="where to write; evaluations/MODEL by default")
    add("--split", help="split to test on, all of it; by default test, else validation, else the only one there is")
    add("--test_fraction", type=float, help="test on the share that a run with this test_fraction had cut off")
    add("--image_column", help="column of the images; found by default")
    add("--label_column", help="column of the classes; found by default")
    add("--label_separator", help='what separates the classes of an image in a cell of a table, as "|" in "cat|dog"')
    add("--dataset_config", help="configuration of a Hub data set that has several")
    add("--class_index", help='JSON of what else the model\'s classes are called: {"0": ["n01440764", "tench"], ...}')
    add("--train_counts", help="CSV (name, train_images) or JSON of training images; by default the run's own")
    add(
        "--prompt_templates", nargs="+", default=["a photo of a {}."], help="for zero-shot, with {} for the class name"
    )
    add("--views", default="center", help=f"test-time views: {', '.join(VIEWS)}")
    add("--average", default="logits", help="over the views: logits or probabilities")
    add("--logit_adjustment_tau", type=float, help="adjust logits by the training counts afterwards; none by default")
    add("--temperature_fraction", type=float, help="hold out this share of the images to fit a temperature on")
    add("--all_classes", action="store_true", help="keep the logits of classes that a test set has not")
    add("--compare", nargs="+", default=[], help="folders of earlier evaluations, or of runs: tested against this one")
    add("--seeds", nargs="+", default=[], help="folders of evaluations of runs with other seeds: mean, spread")
    add("--batch_size", type=int, default=64, help="images at a time")
    add("--num_workers", type=int, default=0, help="processes that read images")
    add("--many_shot_threshold", type=int, default=100, help="more training images than this are many")
    add("--few_shot_threshold", type=int, default=20, help="fewer training images than this are few")
    return parser


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Run the command; returns what metrics.json holds, by name of the row."""
    args = make_parser().parse_args(argv)
    options = EvalConfig(
        views=args.views,
        average=args.average,
        tau=args.logit_adjustment_tau,
        temperature_fraction=args.temperature_fraction,
        all_classes=args.all_classes,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        many=args.many_shot_threshold,
        few=args.few_shot_threshold,
    )
    folder = args.output_dir or Path("evaluations", file_name(short_name(args.model)))
    check_writable(folder, make=False)
    state, names = join_processes(), name_runs(args)
    with state.main_process_first():
        is_zero_shot(args.model)  # or no model at all, which is told before images are read
        tests = load_datasets(args)
    earlier = find_earlier(args, tests, output=folder)
    class_index = read_class_index(args.class_index) if args.class_index else None
    train_counts = args.train_counts or saved_counts(args.model)
    words = {"class_index": class_index, "templates": args.prompt_templates}
    classifier = load_classifier(args.model, tests[0].class_names, **words)
    check_classes(classifier, tests, class_index)
    results, images, seeds = {}, {}, {}
    for test in tests:
        if classifier.is_zero_shot and test is not tests[0]:
            classifier = load_classifier(args.model, test.class_names, **words)
        counts = read_train_counts(train_counts, classifier.class_names) if train_counts else None
        found = {"class_counts": counts, "class_index": class_index}
        result, images[test.name] = evaluate(classifier, test, options=options, model=names[args.model], **found)
        if state.is_main_process:
            result.predictions.save(folder / PREDICTIONS / file_name(test.name, ".safetensors"))
            write_per_class_csv(folder / "per_class" / file_name(test.name, ".csv"), result_rows(result))
        where = f" on {test.name}" if len(tests) > 1 else ""
        for other in args.compare:
            results[names[other] + where] = result.of_earlier(earlier[other, test.name])
        results[names[args.model] + where] = result  # the last one is the one that is evaluated
        if args.seeds:
            seeds[test.name] = [result, *(result.of_earlier(earlier[other, test.name]) for other in args.seeds)]
    records = {name: result.record() for name, result in results.items()}
    if state.is_main_process:
        print(f"\n{format_table(records)}\n")
        (folder / "metrics.json").write_text(json.dumps(records, indent=2, ensure_ascii=False), encoding="utf-8")
        write_page(
            folder,
            results,
            title=f"{title_name(args.model)} on {', '.join(map(title_name, args.datasets))}",
            images=images,
            log_history=saved_history(args.model),
            seeds=seeds,
            run=read_run(run_folder(args.model)),
        )
        print(printable(f"report.html, report.md, metrics.json, per_class/ and predictions/ are in {folder}."))
    return records


def load_datasets(args: argparse.Namespace) -> list[EvalDataset]:
    """The test sets, each with a name of its own."""
    columns = {"image_column": args.image_column, "label_column": args.label_column}
    columns["label_separator"] = args.label_separator
    which = {"split": args.split, "test_fraction": args.test_fraction, "config_name": args.dataset_config}
    tests = [load_eval_dataset(name, **which, **columns) for name in args.datasets]
    names = [file_name(test.name) for test in tests]
    twice = [name for name, test in zip(args.datasets, tests, strict=True) if names.count(file_name(test.name)) > 1]
    if twice:
        raise ValueError(f"The test sets {' and '.join(twice)} have one name in the report; give each set once.")
    return tests


def name_runs(args: argparse.Namespace) -> dict[str, str]:
    """What the report calls the model and the folders to compare with: the last part of a path where that tells them
    apart, else the last two."""
    runs = [*args.compare, args.model]
    for name_of in (title_name, short_name):
        names = [name_of(run) for run in runs]
        if len(set(names)) == len(names):
            return dict(zip(runs, names, strict=True))
    raise ValueError(f"Two of the runs {', '.join(names)} have one name in the report; rename a folder.")


def find_earlier(args: argparse.Namespace, tests: list[EvalDataset], *, output: Path) -> dict[tuple[str, str], Path]:
    """Where the predictions of earlier evaluations are, by folder and name of the test set."""
    paths = {}
    for folder in (*args.compare, *args.seeds):
        if Path(folder).resolve() == output.resolve():
            raise ValueError(f"'{folder}' is where this evaluation writes to; set another --output_dir.")
        if not Path(folder).is_dir():
            guess = did_you_mean(folder)
            raise FileNotFoundError(f"The folder '{folder}' to compare with does not exist; check the path.{guess}")
        for test in tests:
            path = paths[folder, test.name] = Path(folder, PREDICTIONS, file_name(test.name, ".safetensors"))
            if not path.is_file():
                raise ValueError(f"'{folder}' has no predictions for {test.name} ({path}); evaluate it there first.")
    return paths
