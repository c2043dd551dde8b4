"""Test sets from every layout, and what lies beside a trained model."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image

from ft_focalsam.data import load_image_data
from ft_focalsam.evaluation import file_name, image_ids, load_eval_dataset, saved_counts, saved_history, short_name


def write(folder, classes, each=4):
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            Image.new("RGB", (8, 8), (index * 40, number, 0)).save(folder / name / f"{number}.png")


def test_a_folder_of_class_folders_is_taken_whole(tmp_path):
    write(tmp_path / "robots ä", ["train", "n01440764", "größer"])  # one class is called train
    test = load_eval_dataset(str(tmp_path / "robots ä"))
    assert len(test.images) == len(set(image_ids(test.images))) == 12
    assert sorted(test.class_names) == sorted(["train", "n01440764", "größer"])
    for label, name in zip(test.images["labels"], image_ids(test.images), strict=True):
        assert name.split("/")[1] == test.class_names[label]
    assert "All 12 images of the split 'train'" in test.note
    assert test.name == f"{tmp_path.name}/robots ä"


def test_a_folder_with_one_image_a_class_is_taken_whole(tmp_path):
    write(tmp_path / "a", ["x", "y", "z"], each=1)
    assert load_eval_dataset(str(tmp_path / "a")).images["labels"] == [0, 1, 2]


def test_the_test_split_alone_or_another_one_by_name(tmp_path):
    for split, each in (("train", 5), ("test", 3)):
        write(tmp_path / split, ["a", "b"], each)
    test = load_eval_dataset(str(tmp_path))
    assert (len(test.images), test.note) == (6, "")
    assert len(load_eval_dataset(str(tmp_path), split="train").images) == 10
    with pytest.raises(ValueError, match="no split 'dev'"):
        load_eval_dataset(str(tmp_path), split="dev")


def test_only_a_test_split(tmp_path):
    write(tmp_path / "test", ["a", "b"])
    assert len(load_eval_dataset(str(tmp_path)).images) == 8


def test_the_part_that_a_run_had_cut_off(tmp_path):
    write(tmp_path, ["a", "b"], each=10)
    test = load_eval_dataset(str(tmp_path), test_fraction=0.3)
    assert image_ids(test.images) == image_ids(load_image_data(str(tmp_path), test_fraction=0.3).test)
    assert len(test.images) == 6


def test_errors_are_those_of_the_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_eval_dataset(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="has fixed columns and splits; drop --label_column"):
        load_eval_dataset("digits", label_column="x")
    write(tmp_path, ["a", "b"])
    with pytest.raises(ValueError, match="There is no column 'klass'"):
        load_eval_dataset(str(tmp_path), label_column="klass")


def test_a_fault_in_the_test_split_does_not_lead_to_the_training_split(tmp_path):
    """As it would if any error had another split tried."""
    labels = datasets.Dataset.from_dict({"image": [Image.new("RGB", (4, 4))] * 2, "label": [0, 1]})
    labels = labels.cast_column("image", datasets.Image())
    wrong = labels.map(lambda row: {"label": row["label"] + 7})
    datasets.DatasetDict({"train": labels, "test": wrong}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"outside 0\.\.1 for the 2 classes"):
        load_eval_dataset(str(tmp_path / "saved"))


def test_names(tmp_path):
    assert short_name("openai/clip") == "openai/clip"
    assert short_name(str(tmp_path)) == "/".join(tmp_path.parts[-2:])
    assert file_name("a b/ä:ö", ".csv") == "a_b_ä_ö.csv"
    assert file_name("../x") == "_x"


@pytest.mark.parametrize("name", ["run", "run/checkpoint-3"])
def test_what_lies_beside_a_run_or_its_checkpoint(tmp_path, name):
    for step in (3, 12):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        state = {"global_step": step, "log_history": [{"step": step}]}
        (tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    assert saved_history(str(tmp_path / name)) == [{"step": 12}]
    assert saved_counts(str(tmp_path / name)) is None
    (tmp_path / "run" / "per_class.csv").touch()
    assert saved_counts(str(tmp_path / name)) == tmp_path / "run" / "per_class.csv"
    assert saved_history(str(tmp_path)) == [] and np.size(saved_counts("digits")) == 1
