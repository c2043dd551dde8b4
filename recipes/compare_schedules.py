"""What the cheaper schedules do to the gradient and to accuracy.

    python recipes/compare_schedules.py recipes/configs/quickstart.yaml --num_seeds 3

Runs the recipe once per schedule and seed and prints a Markdown table. At every `--probe_steps`-th step the gradient
that the optimizer is about to step on is compared with the exact one, g, of the same batch at the same weights, and
that of the batch before: `error` is the root of mean ||gradient - g||^2 / mean ||g||^2, `cosine` the mean cosine of
the two, and the row "another batch" shows what the choice of the batch alone does. Further `--key value` pairs go
to every run. What a step costs is measured by `benchmark_step.py`.
"""

import argparse
import statistics
import tempfile
from typing import NamedTuple

import torch
from finetune import main as finetune

from ft_focalsam import FocalSAMTrainer, class_weights
from ft_focalsam.sharpness import SharpnessStep

SCHEDULES = {
    "plain": ["--sharpness", "none"],
    "exact": ["--economy", "none"],
    "every_k, k = 5": ["--economy", "every_k"],
    "look_sam, k = 5": ["--economy", "look_sam"],
    "split_batch": ["--economy", "split_batch"],
    "rho = 0 until half-time": ["--rho_schedule", "step"],
    "CC-SAM": ["--sharpness", "cc_sam"],
}
METRICS = ("accuracy", "many", "medium", "few")


class Pair(NamedTuple):
    """How two gradients compare."""

    difference2: float
    size2: float
    cosine: float

    @classmethod
    def of(cls, gradient: torch.Tensor, exact: torch.Tensor) -> "Pair":
        cosine = torch.cosine_similarity(gradient, exact, dim=0)
        return cls(float((gradient - exact).norm()) ** 2, float(exact.norm()) ** 2, float(cosine))


class Probe:
    """Compares gradients during training; its passes leave no trace in the weights, gradients or random numbers."""

    def __init__(self, every: int):
        self.every = every
        self.pairs: list[Pair] = []  # the gradient stepped on, and the exact one
        self.between: list[Pair] = []  # the exact gradients of a batch and of the one before
        self.previous: torch.Tensor | None = None  # exact gradient of the batch before
        self._step: SharpnessStep | None = None

    def exact(self, trainer: FocalSAMTrainer, model, inputs: dict) -> torch.Tensor:
        """Gradient of the exact step on a batch, flattened."""
        if self._step is None:
            settings = {"gamma": trainer.args.focal_gamma, "lam": trainer.args.focal_lambda}
            weights = class_weights("focal_sam", trainer.class_counts, settings)
            self._step = SharpnessStep(model, weights, rho=trainer.args.rho)
        step, parameters = self._step, [p for p in model.parameters() if p.requires_grad]
        kept = [p.grad for p in parameters]
        for parameter in parameters:
            parameter.grad = None

        def run() -> None:
            outputs = model(pixel_values=inputs["pixel_values"])
            step.reduce(trainer._loss(outputs, inputs["labels"], progress=0.0)).backward()

        with torch.random.fork_rng():
            step.start()
            step.verify_gradients(inputs["labels"], run)
            with step.first_pass(inputs["labels"]):
                run()
            step.ascend()
            with step.second_pass(0):
                run()
        gradient = flat(parameters)
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.grad = value
        return gradient

    def forget(self) -> None:
        """A run has ended."""
        self._step = self.previous = None

    def note(self, exact: torch.Tensor, actual: torch.Tensor) -> None:
        self.pairs.append(Pair.of(actual, exact))
        if self.previous is not None:
            self.between.append(Pair.of(self.previous, exact))


def flat(parameters: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def probed_trainer(probe: Probe) -> type[FocalSAMTrainer]:
    """A trainer that the probe watches."""

    class ProbedTrainer(FocalSAMTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            place = self.state.global_step % probe.every
            exact = probe.exact(self, model, inputs) if place >= probe.every - 2 else None
            loss = super().training_step(model, inputs, num_items_in_batch)
            if place == probe.every - 1:
                probe.note(exact, flat([p for p in model.parameters() if p.requires_grad]))
            probe.previous = exact
            return loss

    return ProbedTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", help="YAML file of the recipe")
    parser.add_argument("--num_seeds", type=int, default=3, help="runs of each schedule, with the seeds 0, 1, ...")
    parser.add_argument("--probe_steps", type=int, default=7, help="compare gradients at one step in so many (>= 2)")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES), help="rows of the table")
    args, further = parser.parse_known_args()
    rows, between = {}, []
    for name in args.schedules:
        probe, results = Probe(args.probe_steps), []
        for seed in range(args.num_seeds):
            with tempfile.TemporaryDirectory() as folder:
                options = ["--output_dir", folder, "--seed", str(seed), "--save_strategy", "no", *SCHEDULES[name]]
                metrics = finetune([args.config, *options, *further], trainer_type=probed_trainer(probe))
            results.append(list(metrics.values())[-1])
            probe.forget()
        rows[name] = (probe, results)
        between += probe.between
    print_table(rows, between)


def cells_of(pairs: list[Pair]) -> list[str]:
    """Error and cosine."""
    error = (sum(pair.difference2 for pair in pairs) / sum(pair.size2 for pair in pairs)) ** 0.5
    return [f"{error:.3f}", f"{statistics.mean(pair.cosine for pair in pairs):.3f}"]


def print_table(rows: dict[str, tuple[Probe, list[dict]]], between: list[Pair]) -> None:
    print("\n| schedule | error | cosine | top-1 | many | medium | few |\n|---|---|---|---|---|---|---|")
    for name, (probe, results) in rows.items():
        cells = cells_of(probe.pairs)
        for metric in METRICS:
            values = [100 * result[metric] for result in results]
            deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{deviation}")
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("| another batch | " + " | ".join(cells_of(between)) + " | | | | |")


if __name__ == "__main__":
    main()
