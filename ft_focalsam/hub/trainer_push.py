"""The Hub's side of `FocalSAMTrainer`: its card, and of its files only those that are safe to publish."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from .card import write_card
from .files import MODEL_FILES, files_to_push
from .push import PushTarget, check_push, create_repository, failed_jobs, upload
from .run_file import describe_run, write_run

logger = logging.getLogger(__name__)


class HubMixin:
    """For a Trainer: `push_to_hub`, and what `push_to_hub=True` pushes during training.

    The Trainer's own way uploads all of its output folder, with its arguments as a pickle.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, before training; see [`create_repository`] for what is raised."""
        if not self.is_world_process_zero():
            return
        name, token = hub_name(self.args), self.args.hub_token if token is None else token
        check_push(name, token)
        private = self.args.hub_private_repo if private is None else private
        self.hub_model_id = create_repository(name, private=private, token=token)
        self.push_in_progress = None

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the card of the output folder, see [`make_card`]; what is given goes before what the files say.

        Args:
            dataset, dataset_args: Told by the files of the run.
            language, license, tags, model_name, finetuned_from, tasks, dataset_tags: As in `transformers.Trainer`.
        """
        if self.is_world_process_zero():
            overrides = {
                "language": language,
                "license": license,
                "tags": [tags] if isinstance(tags, str) else tags,
                "model_name": model_name,
                "base_model": finetuned_from,
                "pipeline_tag": tasks,
                "datasets": dataset_tags,
            }
            write_card(self.args.output_dir, repo_id=self.hub_model_id, overrides=overrides)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card,
    ) -> Any:
        """Save the model, and publish it with a card, its metrics and what the run was.

        The metrics are those of the last evaluation; where there was none, the ones that are in the folder.

        Args:
            commit_message (`str`, *optional*): Of the commit.
            blocking (`bool`): Return when it is done, not a `Future`.
            token, revision, private: As in `transformers.Trainer`.
            **card: Of `create_model_card`.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        write_run(self.args.output_dir, describe_run(self))
        metrics = _last_evaluation(self.state.log_history)
        if metrics:
            row = {self.args.sharpness.replace("none", "plain"): metrics}
            Path(self.args.output_dir, "metrics.json").write_text(json.dumps(row, indent=2), encoding="utf-8")
        return self.push_output(commit_message, blocking=blocking, token=token, revision=revision, card=card)

    def push_output(
        self,
        commit_message: str | None = "End of training",
        *,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        card: dict | None = None,
    ) -> Any:
        """Publish what is in the output folder as it is, with a card; for the main process.

        Args:
            card (`dict`, *optional*): Arguments of `create_model_card`.
            commit_message, blocking, token, revision: As in `push_to_hub`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.create_model_card(**(card or {}))
        self._finish_current_push()
        folder = self.args.output_dir
        return upload(
            folder,
            files_to_push(folder),
            PushTarget(self.hub_model_id, token or self.args.hub_token, revision or self.args.hub_revision),
            message=commit_message or "End of training",
            in_background=not blocking,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publish, in the background, the model of a checkpoint: without a card, whose numbers are still to come."""
        if self.args.hub_strategy == HubStrategy.END or not self.is_world_process_zero():
            return
        is_busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if is_busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder = Path(self.args.output_dir)
        for name in files_to_push(checkpoint_folder, patterns=MODEL_FILES):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(checkpoint_folder, name), folder / name)
        job = upload(
            folder,
            files_to_push(folder, patterns=MODEL_FILES),
            PushTarget(self.hub_model_id, self.args.hub_token, self.args.hub_revision),
            message=f"Training in progress, step {self.state.global_step}",
            in_background=True,
        )
        running = self.push_in_progress.jobs if is_busy else []
        self.push_in_progress = PushInProgress([*running, job])

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        in_progress = getattr(self, "push_in_progress", None)
        for error in failed_jobs(in_progress.jobs if in_progress is not None else []):
            logger.warning("A push during training failed: %s", error)


def hub_name(args) -> str:
    """The repository that the arguments of a Trainer name; by default, the last part of its output folder."""
    return Path(args.output_dir).absolute().name if args.hub_model_id is None else args.hub_model_id


def check_hub_arguments(args) -> None:
    """See, before anything is loaded, that the pushes of a Trainer can work.

    Raises:
        ValueError: If they cannot, or checkpoints are to be pushed.
    """
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError(
            f"hub_strategy is '{args.hub_strategy.value}', which publishes the optimizer's state as pickles; set it "
            "to 'every_save' or 'end'."
        )
    check_push(hub_name(args), args.hub_token)


def _last_evaluation(log_history: list[dict]) -> dict[str, float]:
    """Metrics of the last evaluation of a log, without their prefix."""
    for entry in reversed(log_history):
        metrics = {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
        if metrics:
            return metrics
    return {}
