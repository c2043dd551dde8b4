"""Names of folders and of repositories: told at once, and with the nearest that exists, where they lead nowhere."""

import os
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from .errors import nearest, one_line

TIMEOUT = 10  # seconds, of the one request


def check_repository(what: str, name: str, *, known: Iterable[str] = (), repo_type: str = "model") -> None:
    """See that a name which is no local path is that of a repository, by one request.

    What loads from the Hub asks several times, with longer and longer pauses. A repository in the cache passes without
    a request, and so does one that the Hub has trouble with.

    Args:
        what (`str`): "The backbone", for the error message.
        name (`str`): As the user wrote it.
        known (iterable of `str`): Names that would do too, such as those of embedded models.
        repo_type (`str`): "model" or "dataset".

    Raises:
        FileNotFoundError: If there is no such repository, or no connection to see; names the nearest of what is here.
    """
    cause: Exception
    try:
        if Path(_cache_folder(name, repo_type), "snapshots").is_dir():
            return
        HfApi().repo_info(name, repo_type=repo_type, timeout=TIMEOUT)
    except HFValidationError as error:
        problem, cause = "does not exist; check the path", error
    except GatedRepoError:  # it is there, and what loads it says how to be let in
        return
    except RepositoryNotFoundError as error:
        problem = "was not found here or on the Hub; check the name and, if it is private, log in by `hf auth login`"
        cause = error
    except OfflineModeIsEnabled as error:
        problem, cause = "was not found here, and HF_HUB_OFFLINE is set; check the name, or unset it", error
    except HfHubHTTPError:
        return
    except (HTTPError, OSError) as error:
        reason = one_line(error).partition("] ")[2] or one_line(error)
        problem, cause = f"was not found here, and there is no way to the Hub ({reason}); check the name", error
    else:
        return
    guess = did_you_mean(name, [*known, *_cached(repo_type)])
    raise FileNotFoundError(f"{what} '{name}' {problem}.{guess}") from cause


def did_you_mean(name: str | os.PathLike, others: Iterable[str] = ()) -> str:
    """A question for the end of a sentence on a name that leads nowhere; empty where nothing is like it.

    Args:
        name (`str` or path): What the user wrote.
        others (iterable of `str`): What would do beside paths.
    """
    like = next(iter(nearest(str(name), others)), None) or nearest_path(name)
    return f" Did you mean '{like}'?" if like else ""


def nearest_path(path: str | os.PathLike) -> str | None:
    """The existing path that a mistyped one is most like, part by part; None where none is like it."""
    found = Path()
    for part in Path(path).expanduser().parts:
        try:
            names = (child.name for child in found.iterdir() if not child.name.startswith("."))
            like = [part] if (found / part).exists() else nearest(part, names)
        except OSError:
            return None
        if not like:
            return None
        found /= like[0]
    return str(found)


def _cache_folder(name: str, repo_type: str) -> Path:
    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=repo_type))


def _cached(repo_type: str) -> list[str]:
    """Names of the repositories in the cache."""
    folders = Path(constants.HF_HUB_CACHE).glob(f"{repo_type}s--*--*")
    return [folder.name.split("--", 1)[1].replace("--", "/") for folder in folders]
