"""`ft-focalsam analyse` as users run it, on runs of the recipe: tiny ones, but real."""

import csv
import importlib
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from running import QUICKSTART, ROOT, python
from scipy.stats import rankdata

from ft_focalsam import LongTailClassifier
from ft_focalsam.analysis import ImageOptions, MeasureOptions, RunLosses, rank_correlation, read_runs
from ft_focalsam.data import eval_transform, load_image_data
from ft_focalsam.models import load_image_processor
from ft_focalsam.sharpness.targets import TARGETS

pytestmark = pytest.mark.slow

SMALL = ["--max_train_per_class", "12", "--imbalance_factor", "6", "--max_test_per_class", "4", "--max_steps", "3"]
GROUPS = ["--many_shot_threshold", "8", "--few_shot_threshold", "4"]
QUICK = ["--trace_probes", "2", "--line_points", "3", "--plane_points", "3", "--ascent_steps", "2"]


def recipe(name):
    return importlib.import_module(f"ft_focalsam.cli.{name}")


def analyse(*arguments):
    return recipe("analyse").main(list(map(str, arguments)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Plain and Focal-SAM, with another loss as a third."""
    folder = tmp_path_factory.mktemp("runs")
    finetune = recipe("train").main
    for name, options in {
        "plain": ["--sharpness", "none"],
        "focal": ["--sharpness", "focal_sam"],
        "other_loss": ["--sharpness", "none", "--loss", "lade"],
        "norms": ["--sharpness", "none", "--tuning", "norms"],
    }.items():
        common = ["--save_strategy", "no", "--label_smoothing_factor", "0.1", *SMALL, *GROUPS]
        finetune([str(ROOT / QUICKSTART), "--output_dir", str(folder / name), *common, *options])
    return folder


def naive_losses(folder, counts):
    """Logit-adjusted cross-entropy with label smoothing of each training image, one by one, by class."""
    data = load_image_data("digits").cut(imbalance_factor=6, max_train_per_class=12, max_test_per_class=4, seed=0)
    model = LongTailClassifier.from_pretrained(folder)
    transform = eval_transform(load_image_processor("tiny_clip"))
    prior = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    losses = {index: [] for index in range(len(counts))}
    with torch.no_grad():
        for item in data.train:
            logits = model(pixel_values=transform(item["image"])[None]).logits[0].double() + prior.log()
            targets = 0.9 * F.one_hot(torch.tensor(item["labels"]), len(counts)) + 0.1 / len(counts)
            losses[item["labels"]].append(float(-(targets * F.log_softmax(logits, dim=0)).sum()))
    return losses


def test_the_losses_are_those_of_the_classes_of_the_run(runs, tmp_path):
    (found,) = analyse(runs / "plain", "--output_dir", tmp_path, *QUICK, "--batch_size", "5")
    counts = json.loads((runs / "plain" / "run.json").read_text())["data"]["class_counts"]
    losses = naive_losses(runs / "plain", counts)
    assert found.images.tolist() == counts == [len(values) for values in losses.values()]
    assert found.measures["loss"] == pytest.approx([np.mean(values) for values in losses.values()], rel=1e-5)
    middle = found.line[:, 1]
    assert middle == pytest.approx(found.measures["loss"], rel=1e-6)
    assert found.plane[:, 1, 1] == pytest.approx(found.measures["loss"], rel=1e-6)
    assert found.plane[:, :, 1] == pytest.approx(found.line, rel=1e-6)
    with (runs / "plain" / "per_class.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert found.accuracies.tolist() == [float(row["accuracy"]) for row in rows]
    assert {row["group"] for row in rows} == {"many", "medium", "few"}
    for group, classes in found.groups.items():
        assert [rows[index]["group"] for index in classes] == [group] * len(classes)


def test_a_loss_that_needs_features(runs):
    options = ImageOptions(loss="influence_balanced", batch_size=3)
    (run,) = read_runs([runs / "plain"], options)
    data = run.load_images(options)
    losses = RunLosses(run, data, options, seed=0, device=torch.device("cpu"))
    loss, found = run.make_loss(losses.model, options.loss), []
    transform = eval_transform(load_image_processor("tiny_clip"))
    for item in data.train:
        if item["labels"] == 2:
            with torch.no_grad():
                features = losses.model.features(transform(item["image"])[None])
                logits = losses.model.head(features)
            found.append(float(loss(logits, torch.tensor([2]), features=features, progress=1.0)))
    assert len(found) == losses.images[2] > 3
    value = losses.of_class(2, TARGETS["trained"](losses.model)).value()
    assert value == pytest.approx(np.mean(found), rel=1e-5)


def test_the_same_seed_measures_the_same_whatever_the_batches(runs, tmp_path):
    options = [runs / "plain", *QUICK, "--max_images", "5", "--hessian", "false"]
    first, again = (analyse(*options, "--output_dir", tmp_path / name)[0] for name in "ab")
    for name, values in first.measures.items():
        assert np.array_equal(values, again.measures[name], equal_nan=True)
    assert np.array_equal(first.plane, again.plane)
    assert (tmp_path / "a" / "analysis.html").read_bytes() == (tmp_path / "b" / "analysis.html").read_bytes()
    (small,) = analyse(*options, "--output_dir", tmp_path / "c", "--batch_size", "2")
    (other,) = analyse(*options, "--output_dir", tmp_path / "d", "--seed", "1")
    assert small.measures["ascent"] == pytest.approx(first.measures["ascent"], rel=1e-3)
    assert small.plane == pytest.approx(first.plane, rel=1e-5)
    assert not np.allclose(other.plane, first.plane)
    assert not np.allclose(other.measures["loss"], first.measures["loss"])  # of other images
    assert first.images.max() == 5


@pytest.mark.parametrize("perturb", ["norms", "merged"])
def test_other_targets(runs, tmp_path, perturb):
    options = ["--perturb", perturb, "--line_points", "0", "--plane_points", "0", "--trace_probes", "2"]
    (found,) = analyse(runs / "focal", "--output_dir", tmp_path, *options, "--max_images", "2")
    assert np.isfinite(found.measures["eigenvalue"]).all()
    assert (found.measures["ascent"] >= found.measures["first_order"]).all()
    assert found.line.shape == (10, 0)
    assert "Loss landscapes" not in (tmp_path / "analysis.md").read_text(encoding="utf-8")


def test_runs_are_compared(runs, tmp_path):
    out = tmp_path / "out"
    both = (runs / "plain", runs / "focal")
    result = python("ft-focalsam", "analyse", *both, "--output", out, *QUICK, "--max_images", "3")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "rank correlation with accuracy" in result.stdout
    page = (out / "analysis.html").read_text(encoding="utf-8")
    for words in ("projected gradient ascent (2 steps)", "logit_adjusted", "lower in", "Compared with", "minus"):
        assert words in page
    record = json.loads((out / "analysis.json").read_text(encoding="utf-8"))
    plain, focal = record["runs"].values()
    with (out / "per_class.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [name for name in record["runs"] for _ in range(10)]
    assert [float(row["ascent"]) for row in rows] == plain["ascent"] + focal["ascent"]
    few = [index for index, row in enumerate(rows[:10]) if row["group"] == "few"]
    ratio = np.mean([focal["ascent"][i] for i in few]) / np.mean([plain["ascent"][i] for i in few])
    change = focal["changes"]["ascent"]["few"]
    assert change["ratio"] == pytest.approx(ratio, rel=1e-12)
    assert change["lower"] == sum(focal["ascent"][i] < plain["ascent"][i] for i in few)
    assert change["classes"] == len(few)
    probes = np.array(plain["trace_probes"])
    assert [float(row["trace_error"]) for row in rows[:10]] == pytest.approx(probes.std(axis=1, ddof=1) / 2**0.5)
    assert len(list((out / "analysis_images").glob("*.png"))) == 4 + 3 + 3


def test_rank_correlations():
    rng = np.random.default_rng(0)
    values, others = rng.integers(0, 5, 12).astype(float), rng.normal(size=12)
    found = rank_correlation(np.append(values, np.nan), np.append(others, 1.0))
    assert found.value == pytest.approx(np.corrcoef(rankdata(values), rankdata(others))[0, 1], rel=1e-12)
    assert found.classes == 12
    for constant in (np.zeros(12), np.full(12, np.nan)):
        assert np.isnan(rank_correlation(constant, others).value)


# ---- what cannot be done ----


def fault(runs, tmp_path, *arguments):
    with pytest.raises((ValueError, OSError)) as raised:
        analyse(*arguments, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(raised.value)


def test_faults_are_told_before_anything_is_measured(runs, tmp_path):
    plain, other = runs / "plain", runs / "other_loss"
    assert "holds no run (run.json)" in fault(runs, tmp_path, tmp_path)
    assert "plain'?" in fault(runs, tmp_path, runs / "plian")
    assert "give each once" in fault(runs, tmp_path, plain, plain)
    assert "trained with other losses (logit_adjusted, lade" in fault(runs, tmp_path, plain, other)
    assert "depends on its batch with lade" in fault(runs, tmp_path, other)
    assert "rho is 0.0; set it to a number above 0" in fault(runs, tmp_path, plain, "--rho", "0")
    assert "plane_points is 4; set it to an odd number" in fault(runs, tmp_path, plain, "--plane_points", "4")
    assert "perturb is 'mergd'; did you mean 'merged'?" in fault(runs, tmp_path, plain, "--perturb", "mergd")
    assert "loss is 'focl'; did you mean 'focal'?" in fault(runs, tmp_path, plain, "--loss", "focl")
    assert "no validation images" in fault(runs, tmp_path, plain, "--split", "validation")
    assert "no such device" in fault(runs, tmp_path, plain, "--device", "cuda:0")
    without_adapter = fault(runs, tmp_path, plain, runs / "norms", "--perturb", "merged")
    assert "no linear layer of the model carries an adapter" in without_adapter
    assert "have no filters" in fault(runs, tmp_path, plain, "--perturb", "norms", *QUICK)


def test_other_images_are_refused(runs, tmp_path):
    """Another cut of the same data, and a run whose file names a place that is not known any more."""
    changed = tmp_path / "runs" / "changed"
    shutil.copytree(runs / "plain", changed)
    record = json.loads((changed / "run.json").read_text())
    (changed / "run.json").write_text(json.dumps(record | {"settings": record["settings"] | {"long_tail_seed": 1}}))
    assert "are not those that the run" in fault(runs, tmp_path, changed)
    (changed / "run.json").write_text(json.dumps(record | {"settings": {"dataset": "path/to/digits"}}))
    assert "without its place; set --dataset" in fault(runs, tmp_path, changed)
    for key, value in {"class_counts": [1] * 10, "images": "0"}.items():
        (changed / "run.json").write_text(json.dumps(record | {"resolved": record["resolved"] | {key: value}}))
        assert "have not the same training images" in fault(runs, tmp_path, runs / "plain", changed)
    (changed / "predictions" / "digits.safetensors").unlink()
    assert "is not complete" in fault(runs, tmp_path, changed)


def test_runs_of_other_losses_are_measured_by_one(runs):
    found = read_runs([runs / "plain", runs / "other_loss"], ImageOptions(loss="cross_entropy"))
    assert [run.loss_settings("cross_entropy")["loss"] for run in found] == ["cross_entropy"] * 2


def test_the_help_says_what_the_docstrings_say():
    parser_help = recipe("analyse")
    with pytest.raises(SystemExit):
        parser_help.parse(["--help"])
    for options in (ImageOptions, MeasureOptions):
        for name, each in options.__dataclass_fields__.items():
            assert each.metadata["help"].endswith(".")
            assert name in options.__doc__
