"""The recipes that compare methods over seeds, and that search their settings: real runs, in a few steps each."""

import csv
import json
from shutil import copyfile, copytree

import numpy as np
import pytest
import yaml
from PIL import Image
from running import QUICKSTART, ROOT

from ft_focalsam import FocalSAMTrainingArguments, TuningOptions
from ft_focalsam.cli import compare, retrain, search
from ft_focalsam.cli.arguments import ModelArguments
from ft_focalsam.cli.building import make_trainer
from ft_focalsam.cli.config import parse_config
from ft_focalsam.data import DataArguments, prepare_images
from ft_focalsam.evaluation import Predictions
from ft_focalsam.evaluation import compare as compare_predictions

pytestmark = pytest.mark.slow

CONFIG = str(ROOT / QUICKSTART)
SHORT = ["--max_steps", "3", "--learning_rate", "0.1"]  # far enough to tell runs apart


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two methods with two seeds each, and what was printed is in comparison.md."""
    folder = tmp_path_factory.mktemp("compared")
    arguments = [CONFIG, "--methods", "none", "focal_sam:rho=0.5", "--seeds", "0", "1", *SHORT]
    compare.main([*arguments, "--output_dir", str(folder)])
    return folder, arguments


def accuracies(folder, method):
    """Of the runs, by seed, from what each wrote."""
    metrics = [json.loads((folder / method / f"seed_{seed}" / "metrics.json").read_text()) for seed in (0, 1)]
    return np.array([list(each.values())[-1]["accuracy"] for each in metrics])


def test_the_table_is_that_of_the_runs(compared):
    folder, _ = compared
    record = json.loads((folder / "comparison.json").read_text())
    assert list(record) == ["plain", "Focal-SAM, rho 0.5"]
    plain, focal = accuracies(folder, "none"), accuracies(folder, "focal_sam_rho_0.5")
    assert len({*plain, *focal}) > 2, "runs that do not differ test nothing"
    for values, each in ((plain, record["plain"]), (focal, record["Focal-SAM, rho 0.5"])):
        assert each["estimates"]["accuracy"]["mean"] == pytest.approx(values.mean())
        assert each["estimates"]["accuracy"]["values"] == pytest.approx(values)
    difference = record["Focal-SAM, rho 0.5"]["differences"]["accuracy"]
    assert difference["mean"] == pytest.approx((focal - plain).mean())
    assert difference["values"] == pytest.approx(focal - plain)
    assert difference["deviation"] is None  # of two seeds
    assert record["plain"]["differences"] == {}
    text = (folder / "comparison.md").read_text()
    assert f"{100 * plain.mean():.1f} ({100 * plain[0]:.1f}, {100 * plain[1]:.1f}) (" in text and "±" not in text
    assert "one whose interval holds 0 is not established. Time is CPU time" in text
    assert len(list((folder / "comparison_images").iterdir())) == 3  # by class; all and few-shot over time
    assert "Focal-SAM, rho 0.5" in (folder / "comparison.html").read_text()


def test_costs_are_those_of_the_trainings(compared):
    folder, _ = compared
    record = json.loads((folder / "comparison.json").read_text())
    seconds = [json.loads((folder / "none" / f"seed_{s}" / "finished.json").read_text())["seconds"] for s in (0, 1)]
    assert record["plain"]["cost"] == 1
    assert list(record["plain"]["seconds"].values()) == seconds
    assert record["Focal-SAM, rho 0.5"]["cost"] > 1.2  # two passes, and the data


def test_runs_differ_in_their_method_alone(compared):
    folder, _ = compared
    options = [
        json.loads((folder / method / "seed_1" / "finished.json").read_text())["options"]
        for method in ("none", "focal_sam_rho_0.5")
    ]
    assert {key for key in options[0] if options[0][key] != options[1][key]} == {"sharpness", "rho"}


def test_finished_runs_are_kept_and_lost_ones_repeated(compared, capsys):
    folder, arguments = compared
    before = json.loads((folder / "comparison.json").read_text())
    lost = folder / "none" / "seed_1"
    predictions = Predictions.load(next((lost / "predictions").iterdir()))
    (lost / "finished.json").unlink()  # as if it had been stopped there
    compare.main([*arguments, "--output_dir", str(folder)])
    output = capsys.readouterr().out
    assert output.count(" steps in ") == 1 and "plain, seed 1: run 1 of 1" in output
    again = Predictions.load(next((lost / "predictions").iterdir()))
    assert np.array_equal(again.log_probabilities, predictions.log_probabilities)
    after = json.loads((folder / "comparison.json").read_text())
    for method in before:
        assert after[method]["estimates"] == before[method]["estimates"]
        assert after[method]["differences"] == before[method]["differences"]


def test_runs_of_other_settings_are_not_taken(compared):
    folder, arguments = compared
    arguments = ["0.2" if word == "0.1" else word for word in arguments]
    with pytest.raises(ValueError, match=r"seed_0' had learning_rate 0\.1, not 0\.2; choose another --output_dir"):
        compare.main([*arguments, "--output_dir", str(folder)])


def test_recorded_runs_are_not_repeated_where_their_folders_are_gone(compared, tmp_path, capsys):
    folder, arguments = compared
    record = tmp_path / "record.safetensors"
    compare.main([*arguments, "--output_dir", str(folder), "--record", str(record)])
    assert " steps in " not in capsys.readouterr().out
    before = json.loads((folder / "comparison.json").read_text())
    compare.main([*arguments, "--output_dir", str(tmp_path / "elsewhere"), "--record", str(record)])
    assert " steps in " not in capsys.readouterr().out
    assert json.loads((tmp_path / "elsewhere" / "comparison.json").read_text()) == before
    assert str(tmp_path) not in str(record.read_bytes())
    changed = ["0.2" if word == "0.1" else word for word in arguments]
    with pytest.raises(
        ValueError, match=r"'none/seed_0' in '.*' was made by 'quickstart.yaml .*0\.1.*; choose another --rec"
    ):
        compare.main([*changed, "--output_dir", str(tmp_path / "others"), "--record", str(record)])


def test_a_new_run_goes_into_the_record(compared, tmp_path, capsys):
    _, arguments = compared
    arguments = [*arguments, "--output_dir", str(tmp_path / "runs"), "--record", str(tmp_path / "record.safetensors")]
    arguments[arguments.index("--methods") + 1 : arguments.index("--methods") + 3] = ["none"]
    for seeds, trained in ((["0"], 1), (["0", "1"], 1)):
        place = arguments.index("--seeds") + 1
        compare.main([*arguments[:place], *seeds, *arguments[place + 2 :]])
        assert capsys.readouterr().out.count(" steps in ") == trained


@pytest.fixture(scope="module")
def second_stages(tmp_path_factory, compared):
    """Two second stages of one method, and one of another, in the folder of runs that are finished; with what is
    retrained noted as it is asked for."""
    folder = tmp_path_factory.mktemp("second_stages")
    arguments = [CONFIG, "--methods", "none", "none+crt", "none+cc_sam:epochs=2", "focal_sam:rho=0.5+crt"]
    arguments += ["--seeds", "0", "1", *SHORT, "--record", str(folder / "record.safetensors")]
    copytree(compared[0], folder / "runs")
    compare.main([*arguments, "--output_dir", str(folder / "runs")])
    return folder, arguments


def test_second_stages_are_those_of_the_command(second_stages, tmp_path):
    folder, _ = second_stages
    record = json.loads((folder / "runs" / "comparison.json").read_text())
    assert list(record) == [
        "plain",
        "plain + cRT",
        "plain + CC-SAM, second stage, epochs 2",
        "Focal-SAM, rho 0.5 + cRT",
    ]
    first = str(folder / "runs" / "none" / "seed_1")
    retrain.main([first, "--method", "crt", "--seed", "1", "--output", str(tmp_path / "crt")])
    expected = Predictions.load(next((tmp_path / "crt" / "predictions").iterdir()))
    found = Predictions.load(next((folder / "runs" / "none_crt" / "seed_1" / "predictions").iterdir()))
    assert np.array_equal(found.log_probabilities, expected.log_probabilities)
    assert record["plain + cRT"]["estimates"]["accuracy"]["values"][1] == expected.outcomes().is_hit.mean()
    assert record["plain + cRT"]["cost"] > 1


def test_second_stages_of_one_seed_share_it_and_its_run(second_stages, compared):
    folder, _ = second_stages
    for seed in (0, 1):
        run, earlier = (each / "none" / f"seed_{seed}" / "finished.json" for each in (folder / "runs", compared[0]))
        assert run.read_text() == earlier.read_text()  # it was not trained again
        section = json.loads((folder / "runs" / "none_crt" / f"seed_{seed}" / "run.json").read_text())["retraining"]
        assert section["seed"] == seed and section["seconds"] > 0


def test_a_second_stage_finds_the_images_of_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("a", 8), ("b", 4)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(
                tmp_path / "images" / name / f"{index}.png"
            )
    settings = ["--dataset", str(tmp_path / "images"), "--test_fraction", "0.25", "--imbalance_factor", "null"]
    compare.main(
        [CONFIG, *settings, "--methods", "none+crt", "--seeds", "0", *SHORT, "--output_dir", str(tmp_path / "runs")]
    )
    assert json.loads((tmp_path / "runs" / "none_crt" / "seed_0" / "run.json").read_text())["retraining"]["seed"] == 0


def test_a_lost_second_stage_is_repeated_from_a_repeated_run(second_stages, tmp_path, capsys):
    """Where the folders are gone and the record lacks one second stage, its first run is made again, and no other."""
    folder, arguments = second_stages
    before = json.loads((folder / "runs" / "comparison.json").read_text())
    copyfile(folder / "record.safetensors", tmp_path / "record.safetensors")
    arguments = [
        str(tmp_path / "record.safetensors") if word.endswith("record.safetensors") else word for word in arguments
    ]
    compare.main([*arguments, "--output_dir", str(tmp_path / "none")])
    said = capsys.readouterr().out
    assert " steps in " not in said and json.loads((tmp_path / "none" / "comparison.json").read_text()) == before
    place = arguments.index("none+crt")
    arguments[place] = "none+crt:epochs=3"
    compare.main([*arguments, "--output_dir", str(tmp_path / "again")])
    said = capsys.readouterr().out
    assert said.count(" steps in ") == 2 and "plain + cRT, epochs 3, seed 1: run 2 of 2" in said
    assert "was repeated for its second stage" not in said  # it says the same


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--methods", "none+ctr"], "The second stage in the method 'none+ctr' is 'ctr'; did you mean 'crt'?"),
        (["--methods", "none+crt+lws"], "is 'crt+lws'"),
        (["--methods", "none+crt:epochs=0"], "epochs is 0"),
        (["--methods", "none+crt:tau=1"], "--tau is no option of crt"),
        (["--methods", "none+crt:epohcs=1"], "Unrecognized arguments: --epohcs"),
        (["--methods", "none+lws"], "The head 'cosine' does not depend on the lengths of its class vectors"),
        (
            ["--methods", "none+tau_norm", "--head", "linear", "--head_start", "random"],
            "--validation_fraction 0.1, or",
        ),
        (["--methods", "none+crt", "--tuning", "text_lora"], "are computed from texts"),
        (["--methods", "none", "focal_sam:roh=0.1"], "Unknown key 'roh' on the command line; did you mean 'rho'"),
        (["--methods", "none", "focal_sam:0.1"], "'0.1' in the method 'focal_sam:0.1' is no setting"),
        (["--methods", "none", "foxal_sam"], "sharpness is 'foxal_sam'; choose one of none, sam"),
        (["--methods", "sam", "sam"], "--methods has sam sam; name each once"),
        (["--seeds", "0", "0"], "--seeds has 0 0; name each once"),
    ],
)
def test_a_mistake_ends_the_comparison_before_the_first_run(tmp_path, wrong, message):
    with pytest.raises(ValueError) as raised:
        compare.main([CONFIG, "--output_dir", str(tmp_path / "runs"), *SHORT, *wrong])
    assert message in str(raised.value)
    assert not (tmp_path / "runs").exists()


def test_a_run_is_paired_with_another_by_its_predictions(compared):
    folder, _ = compared
    first, second = (
        Predictions.load(next((folder / method / "seed_0" / "predictions").iterdir())).outcomes()
        for method in ("none", "focal_sam_rho_0.5")
    )
    found = compare_predictions(first, second)
    plain, focal = (accuracies(folder, method)[0] for method in ("none", "focal_sam_rho_0.5"))
    assert found.differences["accuracy"] == pytest.approx(focal - plain)
    assert (found.only_second - found.only_first) / len(first.labels) == pytest.approx(focal - plain)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Three trials, the third after a stop."""
    pytest.importorskip("optuna")
    folder = tmp_path_factory.mktemp("searched")
    arguments = [CONFIG, *SHORT, "--output_dir", str(folder), "--rho_range", "0.3", "0.6", "--lambda_range", "1", "1"]
    search.main([*arguments, "--num_trials", "2"])
    best = search.main([*arguments, "--num_trials", "3"])
    with (folder / "trials.csv").open() as file:
        trials = {int(row["trial"]): {key: float(value) for key, value in row.items()} for row in csv.DictReader(file)}
    return folder, best, trials


def test_trials_stay_in_their_ranges_and_the_best_is_taken(searched):
    _, best, trials = searched
    assert sorted(trials) == [0, 1, 2]
    assert (trials[0]["rho"], trials[0]["focal_gamma"], trials[0]["focal_lambda"]) == (0.05, 1.5, 0.7)
    for number in (1, 2):
        assert 0.3 <= trials[number]["rho"] <= 0.6 and 0 <= trials[number]["focal_gamma"] <= 6
        assert trials[number]["focal_lambda"] == 1
    assert trials[1]["rho"] != trials[2]["rho"]
    winner = max(trials.values(), key=lambda trial: trial["value"])
    assert best == {key: winner[key] for key in best}


def test_a_trial_is_judged_on_held_out_training_images(searched):
    """The value of the best trial, by a training of its own on what the trials trained on."""
    folder, best, trials = searched
    types = (DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments)
    options = parse_config(types, [str(folder / "best.yaml"), "--save_strategy", "no"])
    options[0].validation_fraction = 0.2
    trainer, _ = make_trainer(prepare_images(options[0]), options, restarts=True)
    trainer.train()
    value = trainer.evaluate()["eval_mean_class_accuracy"]
    assert value == pytest.approx(max(trial["value"] for trial in trials.values()))
    assert trainer.args.rho == best["rho"]


def test_the_best_values_are_a_configuration_of_their_own(searched):
    folder, best, _ = searched
    content = yaml.safe_load((folder / "best.yaml").read_text())
    assert (folder / content["base"]).resolve() == ROOT / QUICKSTART
    assert {key: content[key] for key in best} == best
    assert "num_trials" not in content and "rho_range" not in content
    assert content["output_dir"] == str(folder / "best")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--sharpness", "none"], "sharpness is 'none', which has nothing to search"),
        (["--rho_range", "0.5", "0.1"], r"rho_range is \[0.5, 0.1\]; give two numbers"),
        (["--objective", "top1"], "objective is 'top1'; choose one of accuracy"),
        (["--streaming", "true"], "no part of a stream can be held out"),
        (["--validation_fraction", "1.5"], "validation_fraction is 1.5; set it to a number above 0 and below 1"),
    ],
)
def test_a_search_that_cannot_be_is_refused(tmp_path, wrong, message):
    pytest.importorskip("optuna")
    with pytest.raises(ValueError, match=message):
        search.main([CONFIG, "--output_dir", str(tmp_path / "search"), *SHORT, *wrong])


def test_a_search_of_other_settings_is_not_continued(searched):
    folder, *_ = searched
    arguments = [CONFIG, *SHORT, "--output_dir", str(folder), "--rho_range", "0.3", "0.7", "--lambda_range", "1", "1"]
    with pytest.raises(ValueError, match=r"had rho_range \[0\.3, 0\.6\], not \[0\.3, 0\.7\]"):
        search.main(arguments)
