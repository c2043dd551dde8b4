"""Between the start of a run and its end: WiSE-FT (Wortsman et al., arXiv 2109.01903).

    ft-focalsam wise_ft runs/quickstart
    ft-focalsam wise_ft runs/quickstart --alpha 0.5 --output runs/quickstart_half

Prints the accuracy of (1 - alpha) theta_0 + alpha theta_1 over alpha, where theta_0 are the weights before training,
of zero-shot where the head started from texts, and theta_1 those of RUN, the folder of a run of ft-focalsam train or
of one of its checkpoints. It is that of the images that the run put aside with `--validation_fraction`, for alpha to
be chosen by, or else of the test images, which alpha should not be chosen by. `--alpha` writes the classifier of one
alpha to `--output`, as ft-focalsam train writes a run, with its accuracy on the test images.

What was inserted is interpolated by what it adds: LoRA, adapters, SSF, IA3, sparse tuning; DoRA, LoHa and other
adapters of peft are merged into the backbone first. Prompts and CLIP-Adapter are refused: they are not nothing at the
start. A head that did not start from texts is in no file: run the recipe with `--tuning zero_shot`, and give that as
`--start`. Further `--key value` pairs describe the images where they are no longer what run.json says: `--dataset
/new/place`.
"""

import argparse

from ..averaging.average import average
from ..averaging.wise_ft import read_with_start
from ..base.files import check_is_free
from ..data import DataArguments
from ..evaluation import format_table
from .parsers import command_parser
from .processes import join_processes
from .run_folders import data_of_runs, evaluate_on, options_of_run, saved_results, write_average

FURTHER = (DataArguments,)  # keys that describe the images

ALPHAS = tuple(step / 10 for step in range(11))


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("wise_ft", __doc__)
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run or of a checkpoint")
    add("--alphas", nargs="+", type=float, default=ALPHAS, help="shares of the tuned weights to show, 0 to 1")
    add("--alpha", type=float, help="share of the tuned weights in the classifier that is written, 0 to 1")
    add("--output", help="folder to make for it; it must not exist, or be empty")
    add("--start", help="run of --tuning zero_shot with the head of the start, where that was not made from texts")
    add("--batch_size", type=int, default=64, help="images at a time")
    return parser


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    args, further = make_parser().parse_known_args(argv)
    for alpha in [*args.alphas, *([] if args.alpha is None else [args.alpha])]:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha:g}; set it from 0 (the start) to 1 (the tuned weights).")
    if (args.alpha is None) != (args.output is None):
        missing = "--output" if args.output is None else "--alpha"
        raise ValueError(f"{missing} is missing; give --alpha and --output together, or neither for the table alone.")
    return args, further


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Run the command; returns the records of the table, by the name of the row."""
    args, further = parse(argv)
    if args.output is not None:
        check_is_free(args.output)
    state = join_processes()
    say = print if state.is_main_process else lambda *_: None
    template, ends = read_with_start(args.run, start=args.start, say=say)
    data = data_of_runs([args.run], further=further)
    options = options_of_run(args.run, batch_size=args.batch_size)
    split = "test" if data.validation is None else "validation"
    records = {}
    for alpha in args.alphas:
        model, _ = average(template, ends, [1 - alpha, alpha])
        records[f"alpha {alpha:g}"] = evaluate_on(model, data, split, options).record()
    say(f"\nOn the {split} images:\n\n{format_table(records)}\n")
    if args.alpha is None:
        return records
    model, _ = average(template, ends, [1 - args.alpha, args.alpha])
    result = evaluate_on(model, data, "test", options)
    results = {**saved_results([args.run], result), f"WiSE-FT, alpha {args.alpha:g}": result}
    say(f"On the test images:\n\n{format_table({name: each.record() for name, each in results.items()})}\n")
    if state.is_main_process:
        description = {"kind": "WiSE-FT", "alpha": args.alpha}
        write_average(args.output, model, names=[args.run], description=description, data=data, results=results)
        say(f"The classifier, report.html and metrics.json are in {args.output}.")
    return records
