"""Things that must stay in step with each other."""

import ast
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
    newest = re.search(r"^## (\d\S+) - (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
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


PACKAGES = sorted(path.parent.relative_to(ROOT) for path in (ROOT / "ft_focalsam").rglob("__init__.pyi"))


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_names_are_those_that_type_checkers_see(package):
    """What is imported on first use is what the stub says, and no name hides behind a file of the same name."""
    module = import_module(".".join(package.parts))
    stub = ast.parse((ROOT / package / "__init__.pyi").read_text())
    for node in (node for node in stub.body if isinstance(node, ast.ImportFrom)):
        for name in (alias.name for alias in node.names):
            home = import_module(f".{node.module}" if node.module else f".{name}", module.__name__)
            assert getattr(module, name) is (getattr(home, name) if node.module else home)
            assert name in module.__all__
            assert name in dir(module)
    with pytest.raises(AttributeError, match=f"{module.__name__} attribute nothing"):
        module.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["data", "evaluation", "hub", "models"])
def test_old_names_go_on_working_with_a_warning(name):
    module = import_module(f"ft_focalsam.{name}")
    for old, new in module.OLD_NAMES.items():
        with pytest.warns(FutureWarning, match=f"{name}.{old} is called {new} now"):
            assert getattr(module, old) is getattr(module, new)
        assert old not in module.__all__


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
