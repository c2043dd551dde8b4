"""Starts `train.py` in the processes of an accelerate configuration, and reads what they left behind."""

import json
import os
from pathlib import Path

import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from running import processes, ranks
from sharpness.models import make_model

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "accelerate_configs"


def batches(size: int, accumulation: int = 1) -> dict:
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}


def environments(config) -> list[dict]:
    """What `accelerate launch --config_file` sets for each process that it starts."""
    command = launch_command_parser().parse_args(
        ["--config_file", str(config), "--main_process_port", "0", "train.py"]
    )
    args, _, _ = _validate_launch_command(command)
    assert args.multi_gpu or args.use_fsdp
    changes = prepare_multi_gpu_env(args).items() - os.environ.items()
    return ranks(args.num_processes, **dict(changes), CUDA_VISIBLE_DEVICES="")


def start(folder, runs, config=None, *arguments):
    """Run `train.py` in the processes of an accelerate configuration, or else in one; returns how each ended."""
    folder.mkdir()
    (folder / "runs.json").write_text(json.dumps(runs))
    return processes([{}] if config is None else environments(config), HERE / "train.py", folder, *arguments)


class Launched:
    """What the processes of one launch left behind."""

    def __init__(self, folder, runs, config=None, *arguments):
        self.folder, self.processes = folder, 1 if config is None else 2
        results = start(folder, runs, config, *arguments)
        said = "\n\n".join(result.stderr[-4000:] for result in results)
        assert [result.returncode for result in results] == [0] * self.processes, said
        self.output = "".join(result.stdout for result in results)

    def weights(self, name: str) -> list[dict]:
        return [torch.load(self.folder / f"{name} {rank}.pt", weights_only=True) for rank in range(self.processes)]

    def reports(self, name: str) -> list[dict]:
        found = [json.loads((self.folder / f"{name} {rank}.json").read_text()) for rank in range(self.processes)]
        assert [report["processes"] for report in found] == [self.processes] * self.processes
        return found


def distance(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def moved(weights, tuning):
    before = make_model("dinov2", tuning).state_dict()
    return {name: weights[name] - before[name] for name in weights}
