"""docs/own_images.ipynb runs from its first cell to its last."""

import csv
import os
import sys
from pathlib import Path

import pytest
from running import ENVIRONMENT, ROOT

nbformat = pytest.importorskip("nbformat", reason="nbformat is in the extra `test`")
nbclient = pytest.importorskip("nbclient", reason="nbclient is in the extra `test`")

NOTEBOOK = ROOT / "docs/own_images.ipynb"


def test_no_output_is_committed():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    for name in ("PYTHONPATH", "OMP_NUM_THREADS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(tmp_path))
    printed = ["".join(part.get("text", "") for part in cell.get("outputs", ())) for cell in notebook.cells]
    text = "\n".join(printed)
    assert "Error" not in text
    assert "zero" in text and "batch size" in text.lower()  # the row of a class, the reason of a choice
    (table,) = tmp_path.glob("*/predictions.csv")
    rows = list(csv.DictReader(table.open(newline="")))
    assert len(rows) == 6
    assert sum(row["path"].startswith(row["label_1"]) for row in rows) >= 3
