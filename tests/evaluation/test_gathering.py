"""Two real processes over gloo say the same as one: every image once, in its order, also in an uneven last batch."""

import json
from pathlib import Path

import numpy as np
import pytest
from gathering import CLASS_COUNTS, IMAGES, run
from running import processes, ranks

from ft_focalsam.evaluation import SampleResults

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Of one process, and of each of two."""
    folders = {processes: tmp_path_factory.mktemp(f"{processes}") for processes in (1, 2)}
    run(folders[1])
    results = processes(ranks(2), HERE / "gathering.py", folders[2])
    assert [result.returncode for result in results] == [0, 0], results[0].stderr[-4000:]
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
    outcomes = SampleResults.of(np.array(alone["trainer_logits"]), np.array(alone["trainer_labels"]), num_classes=7)
    assert alone["metrics"]["accuracy"] == pytest.approx(outcomes.is_hit.sum() / IMAGES)
