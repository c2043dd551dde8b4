"""Two real processes over gloo, started by `accelerate launch`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sharpness.models import make_model

HERE = Path(__file__).resolve().parent


def launch(folder, *, processes, arguments):
    """Run `train.py` in so many processes; returns the weights of each."""
    folder.mkdir()
    config = HERE.parents[1] / "accelerate_configs" / ("multi_cpu.yaml" if processes > 1 else "cpu.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--main_process_port", "0"] if processes > 1 else []
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command += [str(HERE / "train.py"), str(folder), *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    reports = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]
    assert [report["processes"] for report in reports] == [processes] * processes
    assert all(report["separate_reason"] is None for report in reports)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


def distance(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize(("tuning", "accumulation"), [("lora", 1), ("lora", 2), ("full", 1)])
def test_two_processes_do_what_one_does_with_the_joint_batch(tuning, accumulation, tmp_path):
    (one,) = launch(tmp_path / "one", processes=1, arguments=[tuning, "global", 12 // accumulation, accumulation])
    two = launch(tmp_path / "two", processes=2, arguments=[tuning, "global", 6 // accumulation, accumulation])
    assert distance(two[0], two[1]) == 0
    assert distance(one, make_model("dinov2", tuning).state_dict()) > 0.01  # it did train
    assert distance(one, two[0]) < 1e-7


def test_local_scope_keeps_the_processes_equal_and_differs_from_global(tmp_path):
    (one,) = launch(tmp_path / "one", processes=1, arguments=["lora", "global", 12, 1])
    two = launch(tmp_path / "two", processes=2, arguments=["lora", "local", 6, 1])
    assert distance(two[0], two[1]) == 0
    assert distance(one, two[0]) > 1e-6
