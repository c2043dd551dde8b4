"""Things that must stay in step with each other."""

import re
from pathlib import Path

import yaml

import ft_focalsam

ROOT = Path(__file__).resolve().parents[1]


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+) \((\S+)\)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert (newest[1], newest[2]) == (citation["version"], str(citation["date-released"]))
    assert ft_focalsam.__version__ == citation["version"]


def test_imports_point_one_way():
    """The sharpness step imports nothing of the rest of the package, and nothing imports a recipe."""
    for path in (ROOT / "ft_focalsam").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"^\s*(from|import) recipes", text, re.MULTILINE), path
        if "sharpness" in path.parts:
            outside = r"\.{3}" if path.parent.name == "gradients" else r"\.{2}"
            assert not re.search(rf"^\s*from {outside}|ft_focalsam[.\w]* import", text, re.MULTILINE), path
        if path.parent.name in ("data", "models", "tuning", "evaluation"):
            assert not re.search(r"^\s*from \.\.(trainer|training_args|config)", text, re.MULTILINE), path


def test_public_names_are_documented():
    for name in ft_focalsam.__all__:
        assert (getattr(ft_focalsam, name).__doc__ or "").strip(), name
