"""A demo of a model that is on the Hub, as a Space of gradio that brings this package along."""

import os
import shutil
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

import yaml

from .push import PushTarget, check_push, create_repository, upload

SDK_VERSION = "6.31.0"  # of gradio
PYTHON_VERSION = "3.11"


def push_space(repo_id: str, *, space_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Publish a demo: app.py, what it needs, and this package.

    Args:
        repo_id (`str`): Repository of the model, which the demo loads from.
        space_id (`str`): "user/name" of the Space; made where it does not exist.
        private, token: As in [`push_folder`].

    Returns:
        `str`: Address of the commit.

    Raises:
        ValueError, OSError: As in [`push_folder`].
    """
    check_push(space_id, token)
    space_id = create_repository(space_id, private=private, token=token, repo_type="space")
    with tempfile.TemporaryDirectory() as temporary:
        names = write_space(temporary, repo_id)
        return upload(temporary, names, PushTarget(space_id, token, repo_type="space")).commit_url


def write_space(folder: str | os.PathLike, repo_id: str) -> list[str]:
    """Write the files of a Space, and name them.

    Args:
        folder (`str` or path): An empty one.
        repo_id (`str`): Repository or folder of the model.
    """
    folder, title = Path(folder), repo_id.rpartition("/")[2]
    template = files("ft_focalsam") / "assets" / "space"
    app = (template / "app.py").read_text(encoding="utf-8")
    (folder / "app.py").write_text(app.replace('"user/name"', f'"{repo_id}"'), encoding="utf-8")
    requirements = (template / "requirements.txt").read_text(encoding="utf-8")
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")
    front = {"title": title, "sdk": "gradio", "sdk_version": SDK_VERSION, "python_version": PYTHON_VERSION}
    front |= {"app_file": "app.py", "models": [repo_id], "license": "apache-2.0"}
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    (folder / "README.md").write_text(f"---\n{head}---\n\nA demo of {repo_id}.\n", encoding="utf-8")
    with as_file(files("ft_focalsam")) as package:
        shutil.copytree(package, folder / "ft_focalsam", ignore=shutil.ignore_patterns("__pycache__", "space"))
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
