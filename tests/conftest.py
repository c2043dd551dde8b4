"""Fixtures that several test folders share."""

import gc
import os
import signal
from pathlib import Path

import pytest

# Two test processes, and what they start, on two cores: before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that take longest, which go first, so that one test process is not left with them when the others are done.
LONGEST = (
    "tuning/test_table.py", "test_recipes.py", "distributed/test_processes.py", "test_comparing_recipes.py",
    "distributed/test_configurations.py", "export/test_exported.py", "evaluation/test_evaluate_recipe.py",
    "evaluation/test_gathering.py", "test_data_recipes.py", "trainer/test_trainer_modes.py",
)  # fmt: skip


def pytest_addoption(parser):
    help = "run each test function once, with its first parameters, and none that is marked slow"
    parser.addoption("--quick", action="store_true", help=help)


def pytest_collection_modifyitems(config, items):
    def place(item) -> int:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        return LONGEST.index(path) if path in LONGEST else len(LONGEST)

    items.sort(key=place)
    if config.option.quick:
        first: dict[str, pytest.Item] = {}
        for item in items:
            first.setdefault(item.nodeid.partition("[")[0], item)
        kept = [item for item in first.values() if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=list(set(items) - set(kept)))
        items[:] = kept


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data and models, from FT_FOCALSAM_SHARED or beside the repository; skips where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("FT_FOCALSAM_SHARED", default))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set FT_FOCALSAM_SHARED to the folder that holds it")
    return path


@pytest.fixture(scope="session", autouse=True)
def _imported_modules_are_no_garbage():
    """A Trainer collects garbage when it starts; looking through all of transformers takes longer than it trains."""
    gc.collect()
    gc.freeze()
