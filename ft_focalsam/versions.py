"""The versions that a run or a report was made with."""

from importlib.metadata import version

LIBRARIES = ("torch", "transformers", "peft", "accelerate")


def library_versions() -> dict[str, str]:
    """Name -> version, of this package first."""
    from . import __version__

    return {"ft_focalsam": __version__, **{name: version(name) for name in LIBRARIES}}
