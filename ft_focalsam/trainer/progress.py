"""Progress of a run: one line of numbers per logging step and evaluation and, on a terminal, a progress bar."""

import sys
import time
from collections.abc import Mapping
from datetime import timedelta

from tqdm import tqdm
from transformers import TrainerCallback

from .run_log import tell

SILENT_SECONDS = 60.0  # without a bar, a line at least this often
# Entries of the log that a line begins with, and their names in it.
FIRST = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad norm"}
SHARPNESS = {"sharpness": "sharpness", "perturbation_norm": "perturbation norm"}  # the first of these that is measured
COUNTERS = {"skipped_steps": "skipped steps", "skipped_perturbations": "skipped perturbations"}  # shown above 0
LEFT_OUT = {"epoch", "rho", "total_flos", "num_input_tokens_seen"}  # of a line; they are in the log all the same
# Of an evaluation, in per cent
GROUPS = {"accuracy": "top-1", "mAP": "mAP", "many": "many", "medium": "medium", "few": "few"}
SPEED = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


class ProgressLines(TrainerCallback):
    """Writes what a user follows a run by, on the main process; takes the place of the Trainer's progress callbacks.

    A bar is shown where stdout is a terminal and `args.disable_tqdm` is False. Elsewhere, as in a log file, there are
    lines alone, at least one in `SILENT_SECONDS`.

    Attributes:
        shows_evaluation (`bool`): Whether evaluations during training are told.
    """

    def __init__(self) -> None:
        self.shows_evaluation = True
        self._bar: tqdm | None = None
        self._evaluation_bar: tqdm | None = None
        self._is_training = False
        self._began = self._told = 0.0
        self._first_step = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._is_training = True
        self._began = self._told = time.monotonic()
        self._first_step = state.global_step
        if self._shows_bar(args, state):
            self._bar = _bar(total=state.max_steps, initial=state.global_step, unit="step")

    def on_step_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)
        elif state.is_world_process_zero and time.monotonic() - self._told > SILENT_SECONDS and not control.should_log:
            self._tell(f"{position(state)}  {self._time_left(state)}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not (state.is_world_process_zero and logs and self._is_training):
            return
        if "train_runtime" in logs:
            self._tell(self._summary(state, logs))
        elif any(name.startswith("eval_") for name in logs):
            self._close_evaluation_bar()  # which the Trainer says later
            if self.shows_evaluation:
                self._tell(f"{position(state)}  {describe_evaluation(logs)}")
        else:
            self._tell(f"{position(state)}  {describe_numbers(logs)}  {self._time_left(state)}")
            if self._bar is not None and "loss" in logs:
                self._bar.set_postfix_str(f"loss {logs['loss']:.4g}")

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if not self._shows_bar(args, state) or not hasattr(eval_dataloader, "__len__"):
            return
        if self._evaluation_bar is None:
            self._evaluation_bar = _bar(total=len(eval_dataloader), desc="Evaluation")
        self._evaluation_bar.update()

    def on_evaluate(self, args, state, control, **kwargs):
        self._close_evaluation_bar()

    def on_predict(self, args, state, control, **kwargs):
        self._close_evaluation_bar()

    def on_train_end(self, args, state, control, **kwargs):
        self._is_training = False
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def _close_evaluation_bar(self) -> None:
        if self._evaluation_bar is not None:
            self._evaluation_bar.close()
        self._evaluation_bar = None

    def _shows_bar(self, args, state) -> bool:
        return state.is_world_process_zero and not args.disable_tqdm and sys.stdout.isatty()

    def _tell(self, line: str) -> None:
        self._told = time.monotonic()
        tell(line)

    def _time_left(self, state) -> str:
        done, to_go = state.global_step - self._first_step, state.max_steps - state.global_step
        return f"{duration((time.monotonic() - self._began) / max(done, 1) * to_go):>7} left"

    def _summary(self, state, logs: Mapping[str, float]) -> str:
        steps, seconds = state.global_step - self._first_step, time.monotonic() - self._began
        parts = [f"Trained {steps:,} steps in {duration(seconds)}", f"{steps / max(seconds, 1e-9):.3g} steps/s"]
        if not self._first_step and "train_samples_per_second" in logs:  # of a resumed run it counts all samples
            parts.append(f"{logs['train_samples_per_second']:,.0f} images/s")
        if "train_loss" in logs:
            parts.append(f"mean loss {logs['train_loss']:.4g}")
        return ", ".join(parts) + "."


def _bar(**options) -> tqdm:
    return tqdm(file=sys.stdout, dynamic_ncols=True, leave=False, **options)


def position(state) -> str:
    """ "step  10/220  epoch  0.91"."""
    epoch = "" if state.epoch is None else f"  epoch {state.epoch:6.2f}"
    return f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}{epoch}"


def describe_numbers(logs: Mapping[str, float]) -> str:
    """The numbers of a logging step: loss, learning rate, gradient norm, sharpness (else the norm of the
    perturbation), counters above 0, and what else was logged."""
    sharpness = [name for name in SHARPNESS if name in logs][:1]
    known = {*FIRST, *SHARPNESS, *COUNTERS, *LEFT_OUT}
    names = [*(name for name in FIRST if name in logs), *sharpness]
    names += [name for name in COUNTERS if logs.get(name)] + [name for name in logs if name not in known]
    titles = FIRST | SHARPNESS | COUNTERS
    return "  ".join(f"{titles.get(name, name)} {number(logs[name])}" for name in names)


def describe_evaluation(logs: Mapping[str, float]) -> str:
    """An evaluation in a line: accuracy or mAP, that of many, medium and few, in per cent, and the loss; what there is
    where others are measured. The name of one data set among several is told."""
    prefix = next((name.removesuffix("_runtime") for name in logs if name.endswith("_runtime")), "eval")
    metrics = {name.removeprefix(f"{prefix}_"): value for name, value in logs.items() if name.startswith(prefix)}
    name = " ".join(["validation", *filter(None, [prefix.removeprefix("eval").lstrip("_")])])
    shown = [f"{title} {100 * metrics[key]:5.1f}" for key, title in GROUPS.items() if metrics.get(key) is not None]
    if not shown:
        shown = [f"{key} {number(value)}" for key, value in metrics.items() if key not in (*SPEED, "loss")]
    if "loss" in metrics:
        shown.append(f"loss {number(metrics['loss'])}")
    return "  ".join([name, *shown])


def number(value: object) -> str:
    """Four significant digits, right-aligned; whole numbers as they are."""
    return f"{value:#.4g}".rjust(9) if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """ "0:00:31", without hours where there are none."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")
