"""From a saved folder to a repository of the Hub."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..base.errors import one_line
from .card import write_card
from .files import check_holds_no_token, files_to_push


@dataclass(frozen=True)
class PushTarget:
    """Where an upload goes.

    Args:
        repo_id (`str`): "user/name" of a repository that exists.
        token (`str`, *optional*): With write permission; by default that of HF_TOKEN or `hf auth login`.
        revision (`str`, *optional*): Branch, made where it does not exist; main by default.
        repo_type (`str`): "model" or "space".
    """

    repo_id: str
    token: str | None = None
    revision: str | None = None
    repo_type: str = "model"


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> str:
    """Publish a saved model with its card, made on the way; what the repository has already is not sent again.

    Args:
        folder (`str` or path): What `recipes/finetune.py` or `save_pretrained` wrote.
        repo_id (`str`): "user/name", or a name in one's own namespace; made where it does not exist.
        private (`bool`, *optional*): Of a repository that is made; by default as the namespace has it.
        revision (`str`, *optional*): Branch to push to, made where it does not exist; main by default.
        token (`str`, *optional*): With write permission; by default that of HF_TOKEN or `hf auth login`.
        overrides (mapping, *optional*): Of the card, see [`make_card`], e.g. {"license": "mit"}.

    Returns:
        `str`: Address of the commit.

    Raises:
        FileNotFoundError, ValueError: If the push cannot work, or the folder holds what is not to be published.
        OSError: If the Hub refuses it or cannot be reached.
    """
    files_to_push(folder)
    check_push(repo_id, token)
    repo_id = create_repository(repo_id, private=private, token=token)
    write_card(folder, repo_id=repo_id, overrides=overrides)
    return upload(folder, files_to_push(folder), PushTarget(repo_id, token, revision)).commit_url


def check_push(repo_id: str, token: str | None = None) -> None:
    """See, without the network, that a push can work.

    Args:
        repo_id (`str`): "user/name", or a name in one's own namespace.
        token (`str`, *optional*): By default that of HF_TOKEN or `hf auth login`.

    Raises:
        ValueError: If the name is none, there is no token, or the client is kept offline.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"The repository name '{repo_id}' is none of the Hub's: {one_line(error)}; give user/name."
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE is set, which keeps every push from the Hub; unset it, or do not push.")
    if not (token or get_token()):
        raise ValueError(
            f"There is no token to push to '{repo_id}' with; log in by `hf auth login`, or set HF_TOKEN to a token "
            "with write permission."
        )


def create_repository(
    repo_id: str, *, private: bool | None = None, token: str | None = None, repo_type: str = "model"
) -> str:
    """Make a repository where there is none, and see that the token may write to it.

    Returns:
        `str`: Its name with the namespace.

    Raises:
        OSError: If the Hub refuses the token or the name, or cannot be reached.
    """
    api = HfApi(token=token)
    sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
    with explained(repo_id, token):
        url = api.create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True, **sdk)
        api.auth_check(url.repo_id, repo_type=repo_type, write=True)
    return url.repo_id


def upload(
    folder: str | os.PathLike,
    files: list[str],
    target: PushTarget,
    *,
    message: str = "Push by ft_focalsam",
    in_background: bool = False,
) -> Any:
    """Send files of a folder in one commit.

    Args:
        folder (`str` or path): Where they are.
        files (`list[str]`): Of [`files_to_push`].
        target (`PushTarget`): Where they go.
        message (`str`): Of the commit.
        in_background (`bool`): Return a `Future` at once.

    Returns:
        `CommitInfo` of the client, or a `Future` of it.

    Raises:
        ValueError: If a file holds the token.
        OSError: If the Hub refuses it or cannot be reached.
    """
    check_holds_no_token(Path(folder), files, target.token or get_token())
    api = HfApi(token=target.token)
    with explained(target.repo_id, target.token):
        if target.revision is not None:
            _make_branch(api, target.repo_id, target.revision)
        return api.upload_folder(
            repo_id=target.repo_id,
            repo_type=target.repo_type,
            folder_path=folder,
            allow_patterns=files,
            commit_message=message,
            revision=target.revision,
            run_as_future=in_background,
        )


def failed_jobs(jobs: list[Future]) -> list[BaseException]:
    """What went wrong in uploads in the background that are done."""
    return [job.exception() for job in jobs if job.done() and not job.cancelled() and job.exception() is not None]


@contextmanager
def explained(repo_id: str, token: str | None = None) -> Iterator[None]:
    """Errors of the client as an `OSError`, or a `ValueError` where the content is at fault: with the remedy, and
    without the token."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        cause = error if isinstance(error, HfHubHTTPError) or error.__cause__ is None else error.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        reason = one_line(error if isinstance(error, ValueError) else cause) or type(cause).__name__
        for secret in filter(None, (token, get_token())):
            reason = reason.replace(secret, "***")
        cut_off = (
            f"The push to '{repo_id}' was cut off ({reason}); run it again by ft-focalsam push: what has arrived is "
            "not sent again."
        )
        if status in (None, 400) and isinstance(error, ValueError):  # of the client's, or the Hub's check of README.md
            raise ValueError(f"The Hub refuses what goes to '{repo_id}': {reason}; correct what it names.") from error
        raise OSError(_refusal(status, repo_id, getattr(cause, "response", None)) or cut_off) from error


def _refusal(status: int | None, repo_id: str, response: Any) -> str | None:
    """What an answer of the Hub means and what to do; None for one that means a connection that was lost."""
    wait = getattr(response, "headers", {}).get("Retry-After", "")
    later = f"in {wait} seconds" if wait.isdecimal() and len(wait) < 7 else "later"
    return {
        401: "The Hub does not accept the token (401); log in again by `hf auth login`, or set HF_TOKEN to one with "
        "write permission.",
        403: f"The token may not write to '{repo_id}' (403); give a repository of your own, or a token with write "
        "permission for it.",
        404: f"The Hub has no repository '{repo_id}' that the token may see (404); check the name and the token.",
        409: f"The repository '{repo_id}' was changed by another push meanwhile, or its name is taken (409); run the "
        "push again, or give another name.",
        413: f"The Hub takes no push as large as this one to '{repo_id}' (413); leave report_images out of the "
        "folder, or ask the Hub for more room.",
        429: f"The Hub has had too many requests of yours (429); run the push to '{repo_id}' again {later}.",
        503: f"The Hub is not available (503); run the push to '{repo_id}' again {later}: what has arrived is not "
        "sent again.",
    }.get(status)


def _make_branch(api: HfApi, repo_id: str, branch: str) -> None:
    try:
        api.repo_info(repo_id, revision=branch)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
