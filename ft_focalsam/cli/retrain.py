"""Second stage: retrain or rescale the classifier head of a finished run, with its backbone frozen.

    ft-focalsam retrain runs/quickstart --method crt --output runs/quickstart_crt
    ft-focalsam retrain runs/linear --method tau_norm --tau 0.7 --output runs/linear_tau

RUN is the folder of a run or of one of its checkpoints. The methods are

    crt       a new head, trained with class-balanced sampling (Kang et al., arXiv 1910.09217)
    tau_norm  class vectors divided by their length to the power of tau (the same paper)
    lws       one learned scale per class (the same paper)
    cc_sam    the head trained on, on adversarially shifted features (Zhou et al., CVPR 2023)

`tau_norm` and `lws` change the lengths of class vectors, so that they need a head in which these count: linear,
l2_normalized or layer_norm. `tau_norm` chooses tau by the images that the run put aside with `--validation_fraction`,
or takes `--tau`. Features are computed once, without augmentation, and kept for the next method.

Writes to `--output` what a run writes, with its accuracy beside that of RUN. Further `--key value` pairs describe the
images where they are no longer what run.json says: `--dataset /new/place`.
"""

import argparse
import dataclasses
import typing

from accelerate.utils import broadcast

from ..base.files import check_is_free
from ..data import DataArguments
from ..evaluation import format_table
from ..models import LongTailClassifier
from ..retraining import RETRAINING, Retraining
from ..retraining.features import FrozenFeatures
from .finished_runs import training_clock
from .parsers import command_parser
from .processes import join_processes
from .run_folders import data_of_runs, evaluate_on, options_of_run, saved_results, write_average

FURTHER = (DataArguments,)  # keys that describe the images


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("retrain", __doc__)
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run or of a checkpoint")
    add("--method", required=True, choices=list(RETRAINING), help="how")
    add("--output", required=True, help="folder to make; it must not exist, or be empty")
    add("--batch_size", type=int, default=64, help="images at a time, where features are computed")
    for name, (kind, text) in _options().items():
        add(f"--{name}", type=kind, help=text)
    return parser


def _options() -> dict[str, tuple[type, str]]:
    """The options of all methods: name -> type, help with the methods that have it and their defaults."""
    kinds, texts = {}, {}
    defaults: dict[str, list[str]] = {}
    for method, entry in RETRAINING.items():
        hints = typing.get_type_hints(entry)
        for field in dataclasses.fields(entry):
            hint = hints[field.name]
            kinds[field.name] = next(kind for kind in (int, float) if kind in (hint, *typing.get_args(hint)))
            texts[field.name] = field.metadata["help"]
            default = "" if field.default is None else f" {field.default:g}"
            defaults.setdefault(field.name, []).append(f"{method}{default}")
    return {name: (kinds[name], f"{texts[name]} ({', '.join(defaults[name])})") for name in kinds}


def choose_method(args: argparse.Namespace) -> Retraining:
    """The method that was asked for, with its options.

    Raises:
        ValueError: If an option is one of other methods, or out of its range.
    """
    entry = RETRAINING[args.method]
    known = [field.name for field in dataclasses.fields(entry)]
    given = {name: getattr(args, name) for name in _options() if getattr(args, name) is not None}
    odd = [name for name in given if name not in known]
    if odd:
        raise ValueError(f"--{odd[0]} is no option of {args.method}, which takes {', '.join(known)}; leave it out.")
    return entry(**given)


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Run the command; returns the records of the report, by the name of the row."""
    args, further = make_parser().parse_known_args(argv)
    method = choose_method(args)
    check_is_free(args.output)
    state = join_processes()
    say = print if state.is_main_process else lambda *_: None
    model = LongTailClassifier.from_pretrained(args.run).to(state.device)
    if model.is_multi_label:
        raise ValueError(
            f"The images of '{args.run}' have several classes each, and second stages are for one class an image; "
            "train it again with --loss distribution_balanced instead."
        )
    method.check(model.head, model.config.head)
    images = data_of_runs(
        [args.run], further=further, needs_validation=method.needs_validation, otherwise="give --tau"
    )
    clock = training_clock(state.device)
    start = clock()
    found = method.retrain(model, FrozenFeatures(model, images, batch_size=args.batch_size), say=say)
    found["seconds"] = clock() - start
    for tensor in model.head.state_dict().values():  # of several processes, each of which has trained it
        broadcast(tensor)
    result = evaluate_on(model, images, "test", options_of_run(args.run, batch_size=args.batch_size))
    results = {**saved_results([args.run], result), method.title: result}
    records = {name: each.record() for name, each in results.items()}
    say(f"\n{format_table(records)}\n")
    if state.is_main_process:
        description = {"kind": method.title, "method": args.method, **dataclasses.asdict(method), **found}
        write_average(
            args.output,
            model,
            names=[args.run],
            description=description,
            data=images,
            results=results,
            section="retraining",
        )
        say(f"The classifier, report.html and metrics.json are in {args.output}.")
    return records
