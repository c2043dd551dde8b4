"""Average the weights of several runs into one classifier: a model soup (Wortsman et al., arXiv 2203.05482).

    ft-focalsam soup runs/seed0 runs/seed1 runs/seed2 --output runs/soup
    ft-focalsam soup runs/seed* --output runs/soup --kind greedy
    ft-focalsam soup runs/seed0/checkpoint-* --output runs/soup

RUN is the folder of a run of ft-focalsam train or of one of its checkpoints; all have one architecture and one way
of tuning, and differ in seed, data order, hyperparameters or training images. `uniform` averages all. `greedy` begins
with the best one on the images that the runs put aside with `--validation_fraction`, and takes each next one where the
soup stays as good on them; it is refused where nothing was put aside.

LoRA is averaged as merged weights: the soup has the sum of the ranks, exactly, or `--rank`, with the error told.
`--merged` averages and saves plain weights, as it is in any case for adapters of peft that have no such sum (DoRA,
LoHa, ...). Adapters and prompts begin with random weights: soups of them need runs with one `--seed`, and another
`--data_seed`, learning rate or augmentation.

Writes to `--output` what ft-focalsam train writes, so that ft-focalsam evaluate, predict, export and push take
it. Further `--key value` pairs describe the images where they are no longer what run.json says: `--dataset
/new/place`.
"""

import argparse
import functools

import numpy as np

from ..averaging.average import average
from ..averaging.ingredients import read_ingredients
from ..averaging.soups import SOUPS
from ..base.files import check_is_free
from ..data import DataArguments, ImageData
from ..evaluation import EvalConfig, format_table, short_name
from ..models import LongTailClassifier
from ..sharpness.hyperparameters import by_argument, check_hyperparameters, values_for
from .parsers import command_parser
from .processes import join_processes
from .run_folders import data_of_runs, evaluate_on, options_of_run, saved_results, write_average

FURTHER = (DataArguments,)  # keys that describe the images

METRICS = ("mean_class_accuracy", "accuracy")


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("soup", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folders of runs or of checkpoints, two or more")
    add("--output", required=True, help="folder to make; it must not exist, or be empty")
    add("--kind", choices=list(SOUPS), default="uniform", help="which of the runs are averaged; uniform by default")
    add(
        "--metric",
        choices=METRICS,
        default=METRICS[0],
        help="what greedy compares on the held-out images; of several classes an image, mAP",
    )
    add("--rank", type=int, help="cut LoRA updates to this rank; by default they are exact")
    add("--merged", action="store_true", help="average and save plain weights, with all that was tuned folded in")
    add("--batch_size", type=int, default=64, help="images at a time")
    for name, known in by_argument(soup.weigh for soup in SOUPS.values()).items():
        add(f"--{name}", type=known.kind, default=known.default, help=known.help)
    return parser


def score(model: LongTailClassifier, *, data: ImageData, options: EvalConfig, metric: str) -> float:
    """A metric on the held-out images, 0 to 1."""
    result = evaluate_on(model, data, "validation", options)
    if data.is_multi_label:
        return result.metrics["mAP"]
    tally = result.outcomes.tally()
    return float(np.nanmean(tally.class_accuracies) if metric == METRICS[0] else tally.hits.sum() / tally.images.sum())


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Run the command; returns the records of the report, by the name of the row."""
    args, further = make_parser().parse_known_args(argv)
    if len(args.runs) < 2:
        raise ValueError(f"There is one run, '{args.runs[0]}', and a soup is of two or more; name more.")
    check_is_free(args.output)
    kind = SOUPS[args.kind]
    hyperparameters = values_for(kind.weigh, args)
    check_hyperparameters(kind.weigh, hyperparameters)
    data = data_of_runs(args.runs, further=further, needs_validation=kind.needs_score)
    state = join_processes()
    say = print if state.is_main_process else lambda *_: None
    template, ingredients = read_ingredients(args.runs, merged=args.merged, say=say)
    options = options_of_run(args.runs[0], batch_size=args.batch_size)
    held_out = functools.partial(score, data=data, options=options, metric=args.metric) if kind.needs_score else None
    weights = kind.weigh(template, ingredients, held_out, say=say, **hyperparameters)
    soup, error = average(template, ingredients, weights, rank=args.rank)
    result = evaluate_on(soup, data, "test", options)
    results = {**saved_results(args.runs, result), f"{args.kind} soup": result}
    records = {name: each.record() for name, each in results.items()}
    say(f"\n{format_table(records)}\n")
    if args.rank is not None:
        say(f"Cut to rank {args.rank}, an update of a layer loses up to {error:.2%} of its Frobenius norm.")
    if state.is_main_process:
        description = {
            "kind": f"{args.kind} soup",
            "weights": {short_name(str(run)): weight for run, weight in zip(args.runs, weights, strict=True)},
            "rank_error": error,
        }
        write_average(
            args.output,
            soup,
            names=args.runs,
            description=description,
            data=data,
            results=results,
        )
        say(f"The soup, report.html and metrics.json are in {args.output}.")
    return records
