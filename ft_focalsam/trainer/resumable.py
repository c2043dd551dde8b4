"""`ResumableTrainer`: a Trainer that may be killed at any moment and goes on from its newest complete checkpoint."""

import logging
import shutil
import signal
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import TrainOutput

from ..base.errors import first_fault, one_line
from ..base.files import give_ordinary_permissions
from ..hub import HubMixin
from .arguments import FocalSAMTrainingArguments
from .checkpointing import (
    STATE_NAME,
    CheckpointError,
    aside_folder,
    check_checkpoint,
    checkpoints,
    find_fault,
    find_newest,
    number_of,
    put_in_place,
    remove_old,
    tidy,
)
from .manifest import Manifest
from .preemption import ShieldedWorker, StopOnSignal, TrainingTerminated
from .run_lock import LOCK_NAME, one_writer
from .run_settings import describe_differences, differences, fingerprint, settings_of, trained_parameters

logger = logging.getLogger(__name__)
LEAST_FREE = 2**16  # bytes; a disk with fewer is full


@dataclass(frozen=True)
class Resumption:
    """What a call of `train` goes on from.

    Args:
        checkpoint (`str`, *optional*): Its folder; None for a run that begins.
        step (`int`, *optional*): That the Trainer's state must be at when it is loaded.
        optimizer (`str`): Class of the optimizer whose state it holds; empty where that is not known.
        changes (list of `dict`): As in `Manifest`.
        run (`str`): As in `Manifest`.
    """

    checkpoint: str | None = None
    step: int | None = None
    optimizer: str = ""
    changes: list[dict] = field(default_factory=list)
    run: str = field(default_factory=lambda: uuid.uuid4().hex)


class ResumableTrainer(HubMixin, Trainer):  # type: ignore[misc]  # whose arguments for the card are fewer
    """Writes checkpoints whole or not at all, resumes from complete ones only, and stops in good order at SIGTERM."""

    args: FocalSAMTrainingArguments
    _aside: Path | None = None  # where a checkpoint is being written
    _resumption = Resumption()
    _options: Sequence[Any] = ()  # of the script, see `describe_run_by`
    _described: Mapping[str, Any] = MappingProxyType({})
    _trained_parameters: str | None = None  # when training begins; callbacks may freeze some later

    def describe_run_by(self, options: Sequence[Any], **further: Any) -> None:
        """Say what else the run is defined by, for its checkpoints: a resume under other settings is refused.

        Args:
            options (sequence of dataclass instances): E.g. [`~ft_focalsam.data.DataArguments`].
            **further: Other values by name, as JSON knows them.
        """
        self._options, self._described = options, further

    @property
    def run_settings(self) -> dict[str, Any]:
        """The settings that decide what the run computes, see `run_settings.py`."""
        options = [each for each in self._options if each is not self.args]
        counts, trained = getattr(self, "class_counts", None), self._trained_parameters
        if trained is None and self.model is not None:
            trained = trained_parameters(self.model)
        return settings_of(self.args, options) | {
            **self._described,
            "processes": self.args.world_size,
            "class_counts": None if counts is None else [int(count) for count in counts],
            **({} if trained is None else {"trained_parameters": trained}),
        }

    @property
    def fingerprint(self) -> str:
        """Of `run_settings`: the same for runs that compute the same."""
        return fingerprint(self.run_settings)

    @property
    def changes(self) -> list[dict]:
        """Settings that were changed at a resume: "step" and "changed", key -> [before, now]."""
        return self._resumption.changes

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial=None, ignore_keys_for_eval=None
    ) -> TrainOutput:
        """Train, as `transformers.Trainer` does.

        At SIGTERM or SIGINT the step is finished on all processes and a checkpoint saved, whatever `save_strategy` is;
        a second SIGINT stops at once.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint folder, or True (or "true") for the
                newest complete one in `args.output_dir`; where there is none, training starts from the beginning.
                Damaged ones are renamed, those of another run passed over, and the log says so.
            trial, ignore_keys_for_eval: As in `transformers.Trainer`.

        Raises:
            BlockingIOError: If another run writes to the output folder; an `OSError`.
            CheckpointError: If the given checkpoint is damaged, a checkpoint is of other settings (and
                `args.resume_changed` is not set) or does not fit the model, or one cannot be written; an `OSError`.
            TrainingTerminated: After SIGTERM; left alone it ends the process with 143.
            KeyboardInterrupt: After SIGINT.
        """
        run_folder = Path(self._get_output_dir(trial))
        name = LOCK_NAME if trial is None else f".{run_folder.name}.lock"
        with one_writer(self.args.output_dir, is_writer=self.args.should_save, name=name):
            if self.model_init is None:  # else `train` makes another one
                self._trained_parameters = trained_parameters(self.model)
            self._resumption = self._choose_checkpoint(resume_from_checkpoint)
            stop = StopOnSignal()
            self.add_callback(stop)  # behind those that say when to save
            try:
                with stop.listening(says=self.is_world_process_zero()):
                    output = super().train(self._resumption.checkpoint, trial, ignore_keys_for_eval)
            finally:
                self.remove_callback(stop)
            if stop.agreed:
                self._end_at(stop.agreed, run_folder)
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
            fault = _fault_of_writing(error, run_folder)
        finally:
            self._aside, self.state.best_global_step = None, best
        fault = first_fault(fault)
        if fault is None and self.args.should_save:
            try:
                self._write_manifest(self._resumption, aside_folder(run_folder, step) / f"checkpoint-{step}")
                target = put_in_place(run_folder, step)
                remove_old(run_folder, self.args.save_total_limit, keep=[target, self.state.best_model_checkpoint])
            except OSError as error:
                fault = one_line(error)
        fault = first_fault(fault)
        if fault is not None:
            self._refuse_to_go_on(run_folder, fault)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run_folder / f"checkpoint-{step}"))

    def _write_manifest(self, resumption: Resumption, folder: Path) -> None:
        Manifest(
            run=resumption.run,
            step=self.state.global_step,
            settings=self.run_settings,
            optimizer=_class_of(self.optimizer),
            changes=resumption.changes,
        ).write(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and self._aside is None:
            give_ordinary_permissions(Path(self.args.output_dir if output_dir is None else output_dir))

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
        if self.args.should_save and self._aside is not None:
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

    def _choose_checkpoint(self, request: str | bool | None) -> Resumption:
        """What to resume from, the same on all processes."""
        if isinstance(request, str) and request.lower() in ("true", "false"):
            request = request.lower() == "true"
        run_folder, settings = Path(self.args.output_dir).expanduser(), self.run_settings
        answer: list[Any] = [None, None]  # what to resume from, and what is wrong
        if self.args.should_save:
            try:
                tidy(run_folder)
                if self.is_world_process_zero():
                    answer[0] = self._describe_resumption(self._look_for(request, run_folder), settings)
            except OSError as error:
                answer[1] = one_line(error) + "."
        broadcast_object_list(answer)
        if answer[1] is not None:
            raise CheckpointError(answer[1])
        path = answer[0].checkpoint
        missing = first_fault(path if path and not Path(path).is_dir() else None)
        if missing is not None:
            raise CheckpointError(f"Not all processes see the checkpoint '{missing}'; copy it to every machine.")
        return answer[0]

    def _look_for(self, request: str | bool | None, run_folder: Path) -> Path | None:
        if not request:
            return None
        if isinstance(request, str):
            return check_checkpoint(request)
        newest, warnings = find_newest(run_folder)
        for warning in warnings:
            logger.warning(warning)
        if newest is None:
            logger.warning(
                "There is no complete checkpoint in '%s' yet: training starts from the beginning.", run_folder
            )
        return newest

    def _describe_resumption(self, path: Path | None, settings: dict[str, Any]) -> Resumption:
        """What a complete checkpoint says of its run.

        Raises:
            CheckpointError: If that is another run than this one.
        """
        if path is None:
            return Resumption()
        manifest = Manifest.read(path)
        if manifest is None:  # of an earlier version
            logger.warning("Training goes on from '%s'.", path)
            return Resumption(str(path), number_of(path))
        changed, changes = differences(manifest.settings, settings), manifest.changes
        told = describe_differences(changed)
        if "trained_parameters" in changed:
            raise CheckpointError(
                f"The checkpoint '{path}' does not fit the model: {told}; set these back, or choose another "
                "--output_dir"
            )
        if changed and not self.args.resume_changed:
            raise CheckpointError(
                f"The checkpoint '{path}' is of a run with other settings: {told}; set these back, choose another "
                "--output_dir, or set --resume_changed true to go on with the new ones"
            )
        if changed:
            logger.warning("Settings have changed since '%s' was written: %s.", path, told)
            changes = [*changes, {"step": manifest.step, "changed": changed}]
        if not any(name.startswith(("optimizer", "global_step")) for name in manifest.files):
            logger.warning("'%s' holds the model alone: optimizer and schedule begin anew.", path)
        logger.warning("Training goes on from '%s'.", path)
        return Resumption(str(path), manifest.step, manifest.optimizer, changes, manifest.run)

    def _finalize_training(self, *args, **kwargs) -> TrainOutput:
        """See that the best checkpoint is what was written, where it is about to be loaded."""
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        if best is not None:
            fault = find_fault(Path(best)) if Path(best).is_dir() else "there is no such folder"
            if fault is not None:
                raise CheckpointError(
                    f"The best checkpoint '{best}' cannot be loaded: {fault}; the weights of the last step that was "
                    f"saved are in '{next(iter(checkpoints(Path(best).parent)), None)}'."
                )
        return super()._finalize_training(*args, **kwargs)

    def _init_training_state(self, *args, **kwargs):
        values = super()._init_training_state(*args, **kwargs)
        expected = self._resumption.step
        if expected is not None and self.state.global_step != expected:
            raise CheckpointError(
                f"The checkpoint '{self._resumption.checkpoint}' was at step {expected} and is at step "
                f"{self.state.global_step} now: another program writes there; end it, and resume again."
            )
        return values

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        own, saved = _class_of(self.optimizer), self._resumption.optimizer
        if checkpoint is not None and saved and own != saved:
            raise CheckpointError(
                f"The checkpoint '{checkpoint}' holds the state of the optimizer {saved}, which {own} cannot take; "
                "set the optimizer back, or begin anew in another --output_dir."
            )
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (KeyError, ValueError) as error:  # of torch, where parameter groups differ
            raise CheckpointError(
                f"The optimizer's state in '{checkpoint}' does not fit this run ({one_line(error)}); set the "
                "optimizer and what trains back, or begin anew in another --output_dir."
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load as `from_pretrained` does: transformers saves some of its models under other names than they have in
        memory (ViT, as of 5.23), which the Trainer's own loading leaves behind as missing and unexpected keys."""
        model = self.model if model is None else model
        if not (isinstance(model, PreTrainedModel) and type(model).__module__.startswith("transformers.")):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        model.load_state_dict(type(model).from_pretrained(resume_from_checkpoint).state_dict())

    def _load_best_model(self) -> None:
        """As above, for `load_best_model_at_end`."""
        best = self.state.best_model_checkpoint
        if best is None or not type(self.model).__module__.startswith("transformers."):
            return super()._load_best_model()
        self._load_from_checkpoint(best)

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


def _fault_of_writing(error: Exception, folder: Path) -> str:
    """What an error says; torch does not say of its own ones that the disk is full."""
    fault = one_line(error) or type(error).__name__
    is_full = shutil.disk_usage(folder).free < LEAST_FREE and "No space left" not in fault
    return f"No space left on device: {fault}" if is_full else fault


def _class_of(optimizer: Any) -> str:
    """The class of an optimizer, or of the one that Accelerate has wrapped."""
    return type(getattr(optimizer, "optimizer", optimizer)).__name__
