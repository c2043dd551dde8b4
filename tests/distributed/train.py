"""What each process of the tests runs: `train.py output_dir [arguments of scaling.py]`, where runs.json in that
folder holds the trainings to do, by name. Where the launcher says FSDP, the model is sharded."""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from distributed.sharded import ReduceScatters, is_sharded, sharding, train_in_a_loop, whole_weights
from scaling import Collectives
from scaling import main as benchmark_scaling
from sharpness.models import make_model
from test_trainer import Images, arguments
from torch.utils.data import IterableDataset

from ft_focalsam import FocalSAMTrainer


def count_collectives(trainer) -> list[list[tuple[int, int]]]:
    """The collective operations of each optimizer step to come, inside the Trainer's training steps."""
    steps, training_step = [[]], trainer.training_step

    def counted(*args, **kwargs):
        with Collectives(steps[-1]):
            loss = training_step(*args, **kwargs)
        if trainer.accelerator.sync_gradients:
            steps.append([])
        return loss

    trainer.training_step = counted
    return steps


def count_reduce_scatters(trainer) -> list[int]:
    """How many of them each optimizer step to come has, inside the Trainer's training steps."""
    numbers, training_step = [0], trainer.training_step

    def counted(*args, **kwargs):
        with ReduceScatters() as found:
            loss = training_step(*args, **kwargs)
        numbers[-1] += found.number
        if trainer.accelerator.sync_gradients:
            numbers.append(0)
        return loss

    trainer.training_step = counted
    return numbers


def note_images(trainer) -> list[list[float]]:
    """The images of each batch to come, by the first value of each."""
    seen, collate = [], trainer.data_collator

    def noted(items):
        seen.append([float(item["pixel_values"].flatten()[0]) for item in items])
        return collate(items)

    trainer.data_collator = noted
    return seen


def soften_labels(trainer) -> None:
    """Class probabilities in the place of labels: 0.7 for the class, 0.3 for the one before."""
    collate = trainer.data_collator

    def softened(items):
        batch = collate(items)
        rows = 0.7 * torch.eye(5) + 0.3 * torch.eye(5).roll(1, dims=0)
        return {**batch, "labels": rows[batch["labels"]]}

    trainer.data_collator = softened


class Stream(IterableDataset):
    """23 of the images, one after the other."""

    def __init__(self, images):
        self.images = images

    def __iter__(self):
        return (self.images[index] for index in range(23))


class Penalised(FocalSAMTrainer):
    """Adds a term without samples, whose gradient is w."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss = super().compute_loss(model, inputs, **kwargs)
        penalty = sum((p**2).sum() for p in model.parameters() if p.requires_grad) / 2
        return loss + penalty / self.args.gradient_accumulation_steps


class Normalised(torch.nn.Module):
    """Batch normalisation between two layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(torch.nn.Linear(192, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 5))
        self.double()

    def forward(self, pixel_values):
        return self.body(pixel_values.flatten(1))


def build(tuning: str) -> torch.nn.Module:
    return Normalised() if tuning == "batch_norm" else make_model("dinov2", tuning)


def trainer_type(*, penalises: bool) -> type[FocalSAMTrainer]:
    kind = Penalised if penalises else FocalSAMTrainer
    return sharding(kind) if os.environ.get("ACCELERATE_USE_FSDP") == "true" else kind


def train(
    folder: Path,
    name: str,
    *,
    tuning: str,
    penalises: bool = False,
    count: bool = False,
    cut_at: int | None = None,
    softens: bool = False,
    streams: bool = False,
    evaluates_first: bool = False,
    saves_model: bool = False,
    environment: dict[str, str] | None = None,
    **changes,
) -> None:
    """Train, also with a stop at a step and a new start from its checkpoint, and leave behind what came of it."""
    os.environ.update(environment or {})
    settings = {"max_steps": 6, "optim": "adamw_torch", "learning_rate": 0.003, "seed": 0, "disable_tqdm": True}
    settings |= {"ddp_find_unused_parameters": tuning == "full", **changes}
    kind, output, checkpoint = trainer_type(penalises=penalises), folder / name, None
    images = Images(torch.float64)
    data = {"train_dataset": images, "eval_dataset": images}
    if cut_at is not None:
        saves = {"save_strategy": "steps", "save_steps": cut_at}
        kind(build(tuning), arguments(output, **settings, **saves), **data).train()
        checkpoint = str(output / f"checkpoint-{cut_at}")
    if streams:
        data = {"train_dataset": Stream(images), "class_counts": [10, 6, 4, 3, 1]}
    model = build(tuning)
    trainer = kind(model, arguments(output, **settings), **data)
    if softens:
        soften_labels(trainer)
    collectives = count_collectives(trainer) if count else []
    reduce_scatters = count_reduce_scatters(trainer)
    seen = note_images(trainer)
    if evaluates_first:
        trainer.evaluate()
    trainer.train(checkpoint)
    if saves_model:
        trainer.save_model(str(output / "model"))
    rank = trainer.args.process_index
    torch.save(whole_weights(model), folder / f"{name} {rank}.pt")
    report = {
        "processes": trainer.args.world_size,
        "wrapper": type(trainer.model_wrapped).__name__,
        "is_sharded": is_sharded(model),
        "separate_reason": getattr(trainer.sharpness_step, "separate_reason", None),
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
        "evaluations": [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry],
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seen": seen,
        "collectives": [step for step in collectives if step],
        "reduce_scatters": reduce_scatters[:-1],
    }
    (folder / f"{name} {rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    rank = PartialState(cpu=True).process_index
    before = dict(os.environ)
    for name, settings in json.loads((folder / "runs.json").read_text()).items():
        os.environ.update(before)
        if settings.pop("in_a_loop", False):
            torch.save(train_in_a_loop(**settings), folder / f"{name} {rank}.pt")
            continue
        is_refused = settings.pop("is_refused", False)
        try:
            train(folder, name, **settings)
        except ValueError as error:
            if not is_refused:
                raise
            (folder / f"{name} {rank}.txt").write_text(str(error))
    if sys.argv[2:]:  # those of the benchmark, as starting processes for it takes longer than to run it
        sys.argv[1:] = sys.argv[2:]
        benchmark_scaling()
        sys.stdout.flush()
    PartialState().wait_for_everyone()
    os._exit(0)  # past torch's own clean-up, which aborts now and then after training over gloo (plain DDP's too)
