"""Runs that are part of a larger command: each is noted when it is finished, and is not repeated."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState

from ..base.files import atomic_write
from ..trainer import FocalSAMTrainer
from . import train

FINISHED = "finished.json"  # in the folder of a run, written last: its options and the seconds of its training
# Options that say nothing about what comes out.
STAGES = ("output_dir", "logging_dir", "hub_token", "report_to", "overwrite", "resume_changed")


def describe(options: tuple) -> dict:
    """What a run is defined by: all of its options, as JSON keeps them."""
    *dataclass_options, args = options
    values = {key: value for each in dataclass_options for key, value in dataclasses.asdict(each).items()}
    values |= args.to_dict()
    return json.loads(json.dumps({key: value for key, value in values.items() if key not in STAGES}, default=str))


def is_finished(folder: Path, options: dict) -> bool:
    """Whether the run of these options is in the folder.

    Raises:
        ValueError: If one of other options is.
    """
    if not (folder / FINISHED).is_file():
        return False
    before = json.loads((folder / FINISHED).read_text(encoding="utf-8"))["options"]
    check_same(before, options, whose=f"The run in '{folder}'")
    return True


def check_same(before: dict, now: dict, *, whose: str) -> None:
    """Raise a `ValueError` that names the first option in which two descriptions differ."""
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            raise ValueError(
                f"{whose} had {key} {before.get(key)!r}, not {now.get(key)!r}; choose another --output_dir, or delete "
                "the folder to begin again."
            )


def training_clock(device: torch.device) -> Callable[[], float]:
    """What training is timed by, in seconds: on the CPU its CPU time, which other programs do not stretch."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def timed_trainer(seconds: list[float]) -> type[FocalSAMTrainer]:
    """A trainer that notes what its training took, by `training_clock`."""

    class TimedTrainer(FocalSAMTrainer):
        def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
            clock = training_clock(self.args.device)
            start = clock()
            output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
            seconds.append(clock() - start)
            return output

    return TimedTrainer


def run(folder: Path, command_line: list[str], options: dict) -> None:
    """Fine-tune, and note in the end that it is done."""
    seconds = []
    train.main(command_line, trainer_type=timed_trainer(seconds))
    if not seconds:
        raise ValueError(f"Nothing trains in the run in '{folder}'; compare ways to tune that train something.")
    if PartialState().is_main_process:
        note_finished(folder, options, seconds[0])


def note_finished(folder: Path, options: dict, seconds: float) -> None:
    """Say in the folder of a run that it is finished, by one process."""
    atomic_write(folder / FINISHED, json.dumps({"options": options, "seconds": seconds}, indent=2).encode())
