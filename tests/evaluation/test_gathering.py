"""Two real processes over gloo say the same as one: every image once, in its order, also in an uneven last batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gathering import CLASS_COUNTS, IMAGES, run

from ft_focalsam.evaluation import Outcomes

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Of one process, and of each of two."""
    folders = {processes: tmp_path_factory.mktemp(f"{processes}") for processes in (1, 2)}
    run(folders[1])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
    command += [str(HERE.parents[1] / "accelerate_configs" / "multi_cpu.yaml"), str(HERE / "gathering.py")]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([*command, str(folders[2])], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    found = {
        processes: [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
        for processes, folder in folders.items()
    }
    assert [report["processes"] for processes in found for report in found[processes]] == [1, 2, 2]
    return found


def test_every_process_has_the_logits_of_all_images_in_order(reports):
    (alone,), two = reports[1], reports[2]
    assert np.shape(alone["logits"]) == (IMAGES, len(CLASS_COUNTS))
    for report in two:
        np.testing.assert_allclose(report["logits"], alone["logits"], rtol=1e-4, atol=1e-5)


def test_the_trainer_counts_no_image_twice(reports):
    (alone,), two = reports[1], reports[2]
    assert alone["trainer_labels"] == [index % 7 for index in range(IMAGES)]
    for report in two:
        assert report["trainer_labels"] == alone["trainer_labels"]
        np.testing.assert_allclose(report["trainer_logits"], alone["trainer_logits"], rtol=1e-4, atol=1e-5)
        assert report["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
    outcomes = Outcomes.of(np.array(alone["trainer_logits"]), np.array(alone["trainer_labels"]), num_classes=7)
    assert alone["metrics"]["accuracy"] == pytest.approx(outcomes.is_hit.sum() / IMAGES)
