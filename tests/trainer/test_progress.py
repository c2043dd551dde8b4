"""What a user follows a run by: lines of numbers, a bar on a terminal, and the same numbers in the state."""

import fcntl
import json
import os
import re
import struct
import sys
import termios

import pytest
import torch
from sharpness.models import make_model
from test_trainer import Images, trainer_for
from transformers import ProgressCallback
from transformers.integrations import is_tensorboard_available

from ft_focalsam import FocalSAMTrainer, FocalSAMTrainingArguments
from ft_focalsam.trainer import progress
from ft_focalsam.trainer.progress import describe_evaluation, describe_numbers, duration

pytestmark = pytest.mark.slow

STEP = r"^step {}/4  epoch +[\d.]+  loss +{}  lr +{}  grad norm +\S+  {} +\S+  .*left$"


def model():
    return make_model("vit", "lora", dtype=torch.float32)


def test_a_line_per_logging_step_has_the_numbers_of_the_state(tmp_path, capsys):
    trainer = trainer_for(model(), tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    lines = capsys.readouterr().out.splitlines()
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    steps = [entry for entry in state["log_history"] if "loss" in entry]
    assert len(steps) == 4 and len(lines) == 5
    for entry, line in zip(steps, lines, strict=False):
        loss, rate = (re.escape(f"{entry[name]:#.4g}") for name in ("loss", "learning_rate"))
        assert re.search(STEP.format(entry["step"], loss, rate, "sharpness"), line), line
    assert {len(line) for line in lines[:4]} == {len(lines[0])}  # aligned
    assert re.match(r"Trained 4 steps in \d\d:\d\d, \S+ steps/s, \S+ images/s, mean loss [\d.]+\.$", lines[4])
    for entry in state["log_history"]:
        assert all(type(value) in (int, float) for value in entry.values()), entry
    assert steps[0]["skipped_steps"] == 0 and isinstance(steps[0]["sharpness"], float)


@pytest.mark.parametrize(
    ("settings", "shown"),
    [({"evaluation": "one_pass", "ascent": "gaussian"}, "perturbation norm"), ({"sharpness": "none"}, None)],
    ids=["one_pass", "plain"],
)
def test_without_a_sharpness_value(settings, shown, tmp_path, capsys):
    trainer_for(model(), tmp_path, **settings).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == 4 and not any("sharpness" in line for line in lines)
    assert all(("perturbation norm" in line) == (shown is not None) for line in lines)


def test_counters_are_shown_once_they_are_above_zero(tmp_path, capsys):
    class Once(Images):
        """The image of one row has no finite values."""

        def __getitem__(self, index):
            item = super().__getitem__(index)
            return {**item, "pixel_values": item["pixel_values"] * (float("nan") if index == 23 else 1)}

    trainer = trainer_for(model(), tmp_path, dataset=Once(), max_steps=6)
    trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    counts = [entry["skipped_steps"] for entry in trainer.state.log_history if "loss" in entry]
    assert counts[-1] == 2 and counts[0] < 2  # once an epoch of three steps
    shown = [re.search(r"skipped steps (\d+)", line) for line in lines]
    assert [int(found[1]) if found else 0 for found in shown] == counts


def test_validation_is_a_line_with_many_medium_and_few(tmp_path, capsys):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "many_shot_threshold": 5, "few_shot_threshold": 3}
    trainer = trainer_for(model(), tmp_path, **settings)
    trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if "validation" in line]
    logged = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert len(lines) == len(logged) == 2
    for entry, line in zip(logged, lines, strict=True):
        accuracies = {"top-1": "accuracy", "many": "many", "medium": "medium", "few": "few"}
        for title, name in accuracies.items():
            assert f"  {title} {100 * entry[f'eval_{name}']:5.1f}" in line, line
    trainer.progress.shows_evaluation = False
    trainer.train()
    assert "validation" not in capsys.readouterr().out


def test_other_metrics_and_several_data_sets():
    named = {"eval_b_loss": 0.5, "eval_b_accuracy": 0.25, "eval_b_few": 0.125, "eval_b_runtime": 1.0, "epoch": 1.0}
    assert describe_evaluation(named) == "validation b  top-1  25.0  few  12.5  loss    0.5000"
    others = {"eval_f1": 0.5, "eval_runtime": 1.0, "eval_samples_per_second": 2.0, "epoch": 1.0}
    assert describe_evaluation(others) == "validation  f1    0.5000"
    assert (
        describe_numbers({"loss": 1.0, "penalty": 2.0, "rho": 0.05, "epoch": 1.0})
        == "loss     1.000  penalty     2.000"
    )
    assert [duration(seconds) for seconds in (31, 3599.6, 90000)] == ["00:31", "1:00:00", "1 day, 1:00:00"]


class Terminal:
    """A terminal that takes what is printed to it."""

    def __init__(self):
        self.reading, writing = os.openpty()
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        os.set_blocking(self.reading, False)
        self.stream = os.fdopen(writing, "w", buffering=1)
        self.text = ""

    def read(self) -> str:
        self.stream.flush()
        try:
            while part := os.read(self.reading, 100_000):
                self.text += part.decode()
        except BlockingIOError:
            pass
        return self.text


@pytest.mark.parametrize("disable", [False, True])
def test_a_terminal_has_a_bar_unless_it_is_disabled(disable, tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    trainer_for(model(), tmp_path, disable_tqdm=disable, max_steps=3, eval_strategy="steps", eval_steps=3).train()
    text = terminal.read()
    assert ("/3 [" in text) == ("step/s" in text) == ("Evaluation" in text) == (not disable)
    assert bool(re.search(r"loss=?[ \d.]+\]", text)) == (not disable)
    lines = [line for line in re.split(r"[\r\n]+|\x1b\[A", text) if line.startswith("step ")]
    assert len(lines) == 4 and "validation" in lines[-1]  # whole lines, none of them amid the bar


def test_a_silent_log_file_is_told_where_the_run_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.0)
    trainer_for(model(), tmp_path, logging_steps=3).train()
    starts = [line[:8] for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert starts == ["step 1/4", "step 2/4", "step 3/4", "step 4/4"]


def test_a_callback_that_the_user_gives_stays(tmp_path):
    own = ProgressCallback()
    args = trainer_for(model(), tmp_path).args
    trainer = FocalSAMTrainer(model(), args, train_dataset=Images(), callbacks=[own])
    assert own in trainer.callback_handler.callbacks and trainer.progress in trainer.callback_handler.callbacks


def test_the_default_tracker_is_tensorboard_where_it_is_installed(tmp_path):
    expected = ["tensorboard"] if is_tensorboard_available() else []
    assert FocalSAMTrainingArguments(str(tmp_path)).report_to == expected
    assert FocalSAMTrainingArguments(str(tmp_path), report_to="none").report_to == []


def test_tensorboard_gets_the_numbers_in_the_output_folder(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    trainer = trainer_for(model(), tmp_path / "out", report_to=None, push_to_hub=False)
    trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (events,) = (tmp_path / "out" / "runs").rglob("events.*")
    scalars = EventAccumulator(str(events))
    scalars.Reload()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [scalar.value for scalar in scalars.Scalars("train/loss")] == pytest.approx(logged)
    assert len(scalars.Scalars("train/sharpness")) == 4
