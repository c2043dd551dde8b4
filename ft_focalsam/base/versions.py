"""What a run or a report was made with: versions, and the commit of the package."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "transformers", "peft", "accelerate")


def library_versions() -> dict[str, str]:
    """Name -> version, of this package first and of Python last."""
    from .. import __version__

    libraries = {name: version(name) for name in LIBRARIES}
    return {"ft_focalsam": __version__, **libraries, "python": platform.python_version()}


def checkout() -> dict[str, str | bool] | None:
    """State of the git checkout that this package is run from: "commit", and "dirty" where tracked files differ from
    it; None for an installed package, also where it is installed inside the repository of a user."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "dirty": bool(changes)}


def _git(root: Path, *command: str) -> str | None:
    """What a git command prints; None where it cannot be run."""
    try:
        result = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
