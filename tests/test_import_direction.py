"""Imports point one way through the layers of the package."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ft_focalsam"
# A layer may import from itself and from those before it.
LAYERS = (
    {"__version__", "base"},
    {"sharpness"},
    {"losses", "data", "models", "tuning"},
    {"evaluation"},
    {"averaging", "retraining", "analysis", "trainer", "hub", "export"},
    {"cli"},
    {"__main__"},
    {"recipes"},
)
LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}
# A classifier that was saved with modules of a tuning method needs the package that registers them. It is imported in
# the function that looks one up: otherwise users would have to import `ft_focalsam.tuning` before they load a model.
EXCEPTIONS = {("models/inserted.py", "tuning")}
# Scripts that import the public names, as users do.
SCRIPTS = {"assets"}


def part_of(path: Path, package: Path) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def imported_parts(path: Path, package: Path) -> Iterator[str]:
    """What a file imports at any depth: parts of the package, names of its root, and "recipes"."""
    folders = (package.name, *path.relative_to(package).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folders[: len(folders) - node.level + 1] if node.level else ()
            modules = [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
        else:
            continue
        for top, *inside in (module.split(".") for module in modules):
            if top == package.name:
                yield inside[0] if inside else package.name
            elif top == "recipes":
                yield "recipes"


def edges(package: Path) -> set[tuple[str, str, str]]:
    """(file, its part, another part that it imports), exceptions left out."""
    found = set()
    for path in package.rglob("*.py"):
        part, name = part_of(path, package), path.relative_to(package).as_posix()
        if name != "__init__.py" and part not in SCRIPTS:
            found |= {(name, part, other) for other in imported_parts(path, package) if other != part}
    return {edge for edge in found if (edge[0], edge[2]) not in EXCEPTIONS}


def upward(package: Path) -> set[tuple[str, str]]:
    """(file, part) of imports from a later layer, or from the root, which imports everything."""
    return {(name, other) for name, part, other in edges(package) if LEVEL.get(other, len(LAYERS)) > LEVEL[part]}


def check_no_cycles(package: Path) -> None:
    """Raise a `CycleError` where parts import each other in a circle."""
    graph: dict[str, set[str]] = {}
    for _, part, other in edges(package):
        graph.setdefault(part, set()).add(other)
    TopologicalSorter(graph).prepare()


def test_every_part_has_a_layer():
    assert {part_of(path, PACKAGE) for path in PACKAGE.rglob("*.py")} - {"__init__"} - SCRIPTS <= set(LEVEL)


def test_imports_point_one_way():
    assert upward(PACKAGE) == set()
    check_no_cycles(PACKAGE)


def test_the_sharpness_step_imports_nothing_of_the_rest():
    assert {edge for edge in edges(PACKAGE) if edge[1] == "sharpness"} == set()


def test_data_does_not_import_the_sharpness_step():
    assert {edge for edge in edges(PACKAGE) if edge[1:] == ("data", "sharpness")} == set()


@pytest.mark.parametrize(("name", "part"), sorted(EXCEPTIONS))
def test_exceptions_are_still_needed(name, part):
    assert part in imported_parts(PACKAGE / name, PACKAGE)


@pytest.mark.parametrize(
    ("name", "line", "part"),
    [
        ("data/labels.py", "from ..trainer.checks import X", "trainer"),
        ("sharpness/gradients/rules.py", "from ... import data", "data"),
        ("base/errors.py", "def later():\n    from ..models import heads", "models"),
        ("evaluation/__init__.py", "import ft_focalsam.hub.card", "hub"),
        ("trainer/trainer.py", "from ft_focalsam import cli", "cli"),
        ("cli/config.py", "from recipes import finetune", "recipes"),
        ("hub/push.py", "from .. import FocalSAMTrainer", "FocalSAMTrainer"),
    ],
)
def test_an_upward_import_is_found(name, line, part, tmp_path):
    path = tmp_path / "ft_focalsam" / name
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert upward(tmp_path / "ft_focalsam") == {(name, part)}


def test_a_circle_is_found(tmp_path):
    for name, line in (("data.py", "from .models import X"), ("models.py", "from .data import Y")):
        (tmp_path / name).write_text(line.replace("from .", f"from {tmp_path.name}.") + "\n")
    with pytest.raises(CycleError):
        check_no_cycles(tmp_path)
