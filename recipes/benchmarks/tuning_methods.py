"""What each way to tune a backbone reaches, how little it trains, and what Focal-SAM costs with it.

    python recipes/benchmarks/tuning_methods.py recipes/configs/cifar100_lt/dinov2_*.yaml --results runs/tuning.jsonl

Runs the recipe once per configuration, with the further `--key value` pairs of the command line, in one process, and
prints a Markdown table. Every finished run adds a line of JSON to the file of results; runs that are in it already,
with the same further pairs, are not repeated: the command goes on where it was stopped. The last column is the time of
a Focal-SAM step over that of a plain one: medians of interleaved steps of the trained model on a training batch.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from step_cost import make_steps, seconds

from ft_focalsam import FocalSAMTrainer
from ft_focalsam.base.errors import told_in_one_sentence
from ft_focalsam.cli import train
from ft_focalsam.cli.arguments import TYPES
from ft_focalsam.cli.config import parse_config

METRICS = {"accuracy": "top-1", "many": "many", "medium": "medium", "few": "few"}
WARM_UP = 3  # steps, in which Focal-SAM also checks its gradient


def kept_trainer(kept: list[FocalSAMTrainer]) -> type[FocalSAMTrainer]:
    """A trainer that can be asked about its model when the recipe is through."""

    class KeptTrainer(FocalSAMTrainer):
        def train(self, resume_from_checkpoint=None):
            kept.append(self)
            return super().train(resume_from_checkpoint=resume_from_checkpoint)

    return KeptTrainer


def step_cost(trainer: FocalSAMTrainer, repeats: int) -> float:
    """Median time of a Focal-SAM step over that of a plain one. The weights are other ones afterwards."""
    model, device = trainer.model.train(), trainer.args.device
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    labels = batch.pop("labels")
    every = make_steps(
        model,
        lambda index: model(**{name: value[index] for name, value in batch.items()}).logits,
        labels,
        counts=trainer.class_counts,
    )
    times = {"plain": [], "focal_sam": []}
    for number in range(WARM_UP + repeats):
        for kind, values in times.items():
            value = seconds(every[kind], device.type)
            if number >= WARM_UP:
                values.append(value)
    return statistics.median(times["focal_sam"]) / statistics.median(times["plain"])


def run(config: str, further: list[str], *, repeats: int) -> dict:
    """Fine-tune as one configuration says; returns what the table shows of it."""
    kept = []
    with tempfile.TemporaryDirectory() as folder:
        options = ["--output_dir", folder, "--save_strategy", "no"]
        metrics = train.main([config, *options, *further], trainer_type=kept_trainer(kept))
    (before, start), *_, (_, after) = [next(iter(metrics.items())), *metrics.items()]
    parameters = list(kept[0].model.parameters())
    return {
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
        "total": sum(p.numel() for p in parameters),
        "before": {"name": before, **{metric: start.get(metric) for metric in METRICS}},
        **{metric: after.get(metric) for metric in METRICS},
        "step_cost": step_cost(kept[0], repeats),
    }


def read_results(path: Path, further: list[str]) -> dict[str, dict]:
    """Configuration -> result, of the runs with these further pairs.

    Raises:
        ValueError: If a line is not one that this script wrote.
    """
    results = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], start=1):
        try:
            entry = json.loads(line)
            if entry["further"] == further:
                results[entry["config"]] = entry["result"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"Line {number} of '{path}' is no result of a run; take it out.") from error
    return results


def format_table(results: dict[str, dict]) -> str:
    """Markdown; accuracies in percent, `-` where a group has no class. The first row is the start they share."""
    titles = ["tuning", "trained", "of the model", *METRICS.values(), "Focal-SAM / plain step"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    starts = [result["before"] for result in results.values()]
    if all(start == starts[0] for start in starts):
        lines.append(f"| {starts[0]['name']}, before | | | {_percent(starts[0])} | |")
    for config, result in results.items():
        trained = f"{result['trained']:,} | {result['trained'] / result['total']:.2%}"
        lines.append(f"| {Path(config).stem} | {trained} | {_percent(result)} | {result['step_cost']:.2f} |")
    return "\n".join(lines)


def _percent(values: dict) -> str:
    return " | ".join("-" if values[metric] is None else f"{100 * values[metric]:.1f}" for metric in METRICS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("configs", nargs="+", help="YAML files of the recipe, one row each")
    parser.add_argument("--results", type=Path, required=True, help="file of the finished runs, one JSON line each")
    parser.add_argument("--timed_steps", type=int, default=5, help="steps of each kind that are timed")
    args, further = parser.parse_known_args()
    for config in args.configs:  # before the first run takes its time
        parse_config(TYPES, [config, *further])
    args.results.parent.mkdir(parents=True, exist_ok=True)
    for number, config in enumerate(args.configs, start=1):
        if config in read_results(args.results, further):
            continue
        print(f"\n{config}, {number} of {len(args.configs)}")
        entry = {"config": config, "further": further, "result": run(config, further, repeats=args.timed_steps)}
        with args.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    results = read_results(args.results, further)
    print("\n" + format_table({config: results[config] for config in args.configs}))


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
