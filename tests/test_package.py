"""Things that must stay in step with each other."""

import ast
import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from running import run

import ft_focalsam

ROOT = Path(__file__).resolve().parents[1]


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+) \((\S+)\)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert (newest[1], newest[2]) == (citation["version"], str(citation["date-released"]))
    assert ft_focalsam.__version__ == citation["version"]


def test_the_table_of_where_to_add_is_up_to_date():
    rows = re.findall(r"^\| [^|]+ \| `([\w/.]+)` \| (.+) \|$", (ROOT / "docs/extending.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    for name, what in rows:
        path = ROOT / "ft_focalsam" / name
        text = "".join(file.read_text() for file in (path.rglob("*.py") if path.is_dir() else [path]))
        for entry in re.findall(r"`@?(\w+)`", what):
            assert entry in text, (name, entry)


def test_public_names_are_documented():
    for name in ft_focalsam.__all__:
        assert (getattr(ft_focalsam, name).__doc__ or "").strip(), name


def test_names_are_those_that_type_checkers_see():
    """The imports for type checkers, `__all__` and what the lazy imports give agree."""
    (block,) = (node for node in ast.parse(inspect.getsource(ft_focalsam)).body if isinstance(node, ast.If))
    imported = {name.name: node.module for node in block.body for name in node.names}
    assert sorted(imported) == sorted(ft_focalsam.__all__)
    assert set(ft_focalsam.__all__) <= set(dir(ft_focalsam))
    for name, module in imported.items():
        assert getattr(ft_focalsam, name) is getattr(import_module(f"ft_focalsam.{module}"), name)
    with pytest.raises(AttributeError, match="'ft_focalsam' has no attribute 'nothing'"):
        ft_focalsam.nothing  # noqa: B018
    assert not hasattr(ft_focalsam, "_nothing")


LAZY = """
import sys
import ft_focalsam
assert "torch" not in sys.modules
import ft_focalsam.sharpness
own = {name for name in sys.modules if name.split(".")[0] == "ft_focalsam"}
assert all(name.startswith("ft_focalsam.sharpness") for name in own - {"ft_focalsam"}), own
others = {"accelerate", "datasets", "huggingface_hub", "peft", "PIL", "timm", "torchvision", "transformers"}
assert not others & set(sys.modules), others & set(sys.modules)
"""
# Submodules are attributes, and a classifier takes what the package of the ways to tune registers.
EVERYTHING = """
import ft_focalsam
ft_focalsam.sharpness.gradients, ft_focalsam.data, ft_focalsam.trainer
"""
CLASSIFIER = """
from ft_focalsam.models import LongTailClassifier
model = LongTailClassifier.from_backbone("ft_focalsam/assets/tiny_clip", ["owl", "fox"])
model.insert("clip_adapter", width=2, ratio=0.5)
"""


@pytest.mark.parametrize("script", [LAZY, EVERYTHING, CLASSIFIER], ids=["the step", "everything", "a classifier"])
@pytest.mark.slow
def test_what_is_imported_in_a_new_process(script):
    result = run([sys.executable, "-c", script])
    assert result.returncode == 0, result.stderr
