"""`ResumableTrainer`: a Trainer that may be killed at any moment and goes on from its newest complete checkpoint."""

import logging
import shutil
import signal
from pathlib import Path

from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from .checkpointing import (
    STATE_NAME,
    CheckpointError,
    aside_folder,
    check_checkpoint,
    checkpoints,
    find_newest,
    put_in_place,
    remove_old,
    tidy,
)
from .errors import one_line
from .hub import HubPushing
from .preemption import ShieldedWorker, StopOnSignal, TrainingTerminated

logger = logging.getLogger(__name__)


class ResumableTrainer(HubPushing, Trainer):
    """Writes checkpoints whole or not at all, resumes from complete ones only, and stops in good order at SIGTERM."""

    _aside: Path | None = None  # where a checkpoint is being written

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial=None, ignore_keys_for_eval=None
    ) -> TrainOutput:
        """Train, as `transformers.Trainer` does.

        At SIGTERM or SIGINT the step is finished on all processes and a checkpoint saved, whatever `save_strategy` is;
        a second SIGINT stops at once.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint folder, or True (or "true") for the
                newest complete one in `args.output_dir`; where there is none, training starts from the beginning.
                Damaged ones are renamed, and the log says so.
            trial, ignore_keys_for_eval: As in `transformers.Trainer`.

        Raises:
            CheckpointError: If the given checkpoint is damaged, or one cannot be written; an `OSError`.
            TrainingTerminated: After SIGTERM; left alone it ends the process with 143.
            KeyboardInterrupt: After SIGINT.
        """
        checkpoint = self._choose_checkpoint(resume_from_checkpoint)
        stop = StopOnSignal()
        self.add_callback(stop)  # behind those that say when to save
        try:
            with stop.listening(says=self.is_world_process_zero()):
                output = super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            self.remove_callback(stop)
        if stop.agreed:
            self._end_at(stop.agreed, Path(self._get_output_dir(trial)))
        return output

    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        loader.worker_init_fn = ShieldedWorker(loader.worker_init_fn)
        return loader

    def _run_epoch(self, *args, **kwargs):
        """Nothing where all steps are done: resumed from its very last checkpoint amid an epoch, the Trainer would
        take one more."""
        if self.state.global_step >= self.state.max_steps > 0:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    # ---- writing ----

    def _save_checkpoint(self, model, trial) -> None:
        """Have the Trainer write aside; rename when all processes are done, and only then remove old checkpoints."""
        run_folder, step = Path(self._get_output_dir(trial)), self.state.global_step
        # The Trainer would look for the best checkpoint in the folder aside, and wait for all processes on the way.
        best, self.state.best_global_step = self.state.best_global_step, None
        self._aside = aside_folder(run_folder, step)
        fault = None
        try:
            super()._save_checkpoint(model, trial)
            self.state.best_global_step = best
            self._note_best(run_folder)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
            fault = one_line(error) or type(error).__name__
        finally:
            self._aside, self.state.best_global_step = None, best
        fault = _first(fault)
        if fault is None and self.args.should_save:
            try:
                target = put_in_place(run_folder, step)
                remove_old(run_folder, self.args.save_total_limit, keep=[target, self.state.best_model_checkpoint])
            except OSError as error:
                fault = one_line(error)
        fault = _first(fault)
        if fault is not None:
            self._refuse_to_go_on(run_folder, fault)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run_folder / f"checkpoint-{step}"))

    def _get_output_dir(self, trial) -> str:
        return super()._get_output_dir(trial) if self._aside is None else str(self._aside)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._aside is None:  # else it has no name yet
            super()._push_from_checkpoint(checkpoint_folder)

    def _note_best(self, run_folder: Path) -> None:
        """Which checkpoint is the best one, in the state and in what is saved of it."""
        best, step = self.state.best_global_step, self.state.global_step
        if not best:
            return
        folder = run_folder / f"checkpoint-{best}"
        if best == step or folder.exists():
            self.state.best_model_checkpoint = str(folder)
        if self.args.should_save:
            self.state.save_to_json(str(self._aside / f"checkpoint-{step}" / STATE_NAME))

    def _refuse_to_go_on(self, run_folder: Path, fault: str) -> None:
        if self.args.should_save:
            shutil.rmtree(aside_folder(run_folder, self.state.global_step), ignore_errors=True)
        last = next((f"; '{path.name}' before it is complete" for path in checkpoints(run_folder)), "")
        raise CheckpointError(
            f"The checkpoint of step {self.state.global_step} cannot be written to '{run_folder}' ({fault}){last}: "
            "make room there, set --save_total_limit, or set --output_dir to another disk, and go on with "
            "--resume_from_checkpoint."
        )

    # ---- resuming and stopping ----

    def _choose_checkpoint(self, request: str | bool | None) -> str | None:
        """The checkpoint to resume from, the same one on all processes; None for none."""
        if isinstance(request, str) and request.lower() in ("true", "false"):
            request = request.lower() == "true"
        run_folder, answer = Path(self.args.output_dir).expanduser(), [None, None]
        if self.args.should_save:
            try:
                tidy(run_folder)
                if self.is_world_process_zero():
                    answer[0] = self._look_for(request, run_folder)
            except OSError as error:
                answer[1] = one_line(error) + "."
        broadcast_object_list(answer)
        if answer[1] is not None:
            raise CheckpointError(answer[1])
        missing = _first(answer[0] if answer[0] and not Path(answer[0]).is_dir() else None)
        if missing is not None:
            raise CheckpointError(f"Not all processes see the checkpoint '{missing}'; copy it to every machine.")
        return answer[0]

    def _look_for(self, request: str | bool | None, run_folder: Path) -> str | None:
        if not request:
            return None
        if isinstance(request, str):
            return str(check_checkpoint(request))
        newest, warnings = find_newest(run_folder)
        for warning in warnings:
            logger.warning(warning)
        if newest is None:
            logger.warning(
                "There is no complete checkpoint in '%s' yet: training starts from the beginning.", run_folder
            )
        else:
            logger.warning("Training goes on from '%s'.", newest)
        return None if newest is None else str(newest)

    def _end_at(self, number: int, run_folder: Path) -> None:
        message = (
            f"Stopped by {signal.Signals(number).name} after step {self.state.global_step} of {self.state.max_steps}; "
            f"go on from '{run_folder / f'checkpoint-{self.state.global_step}'}' with --resume_from_checkpoint true."
        )
        if number == signal.SIGINT:
            raise KeyboardInterrupt(message)
        if self.is_world_process_zero():
            logger.warning(message)
        raise TrainingTerminated(message)


def _first(fault: str | None) -> str | None:
    """What went wrong on the first process on which something did; None where nothing did on any."""
    return next((found for found in gather_object([fault]) if found is not None), None)
