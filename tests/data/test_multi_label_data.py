"""Images of several classes: columns of lists, list files, splits, counts, and what is refused."""

import json

import datasets
import numpy as np
import pytest
import torch
from composed_digits import NAMES, write_images
from PIL import Image

from ft_focalsam.data import (
    DataArguments,
    ImageData,
    TransformedImages,
    class_counts,
    inspect_images,
    label_array,
    load_image_data,
    prepare_images,
    stratified_split,
    stream_images,
)
from ft_focalsam.data.cached_features import CachedFeatures
from ft_focalsam.data.columns import check_labels, find_label_column, normalise
from ft_focalsam.data.labels import count_labels, dataset_labels

SETS = [["cat", "dog"], ["cat"], [], ["owl", "cat", "dog"], ["dog"]]
ROWS = [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]]  # of cat, dog, owl
IMAGE = Image.new("RGB", (8, 8))


def hub(labels, feature=None) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "labels": feature}) if feature else None
    return datasets.Dataset.from_dict({"image": [IMAGE] * len(labels), "labels": labels}, features=features)


def numbers(sets=SETS) -> list[list[int]]:
    return [[("cat", "dog", "owl").index(name) for name in own] for own in sets]


def normalised(dataset, **options) -> datasets.DatasetDict:
    splits = datasets.DatasetDict({"train": dataset, **options.pop("others", {})})
    return normalise(splits, image_column="image", label_column="labels", **options)


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        (hub(SETS, datasets.List(datasets.Value("string"))), ["cat", "dog", "owl"]),
        (hub(numbers(), datasets.List(datasets.Value("int64"))), ["0", "1", "2"]),
        (hub(numbers(), datasets.Sequence(datasets.ClassLabel(names=["cat", "dog", "owl"]))), ["cat", "dog", "owl"]),
        (hub(SETS, datasets.LargeList(datasets.Value("string"))), ["cat", "dog", "owl"]),
    ],
    ids=["names", "numbers", "class labels", "large lists"],
)
def test_columns_of_lists_become_lists_of_class_labels(dataset, names):
    train = normalised(dataset)["train"]
    assert train.features["labels"].feature.names == names
    rows = label_array(train)
    assert rows.dtype == np.uint8 and rows.tolist() == ROWS
    assert label_array(train.select([3, 0])).tolist() == [ROWS[3], ROWS[0]]
    check_labels(train, 3, split="train")
    data = ImageData(train, train.select([1]), names, "animals")
    assert data.is_multi_label
    assert class_counts(label_array(data.train), 3).tolist() == [3, 3, 1]
    assert data.rename(["a", "b", "c"]).train.features["labels"].feature.names == ["a", "b", "c"]


def test_the_column_is_found_by_its_type():
    kind = datasets.List(datasets.ClassLabel(names=["a"]))
    features = datasets.Features({"image": datasets.Image(), "tags": kind, "width": datasets.Value("int64")})
    assert find_label_column(features) == "tags"


def test_classes_of_another_split_that_no_training_image_has_are_named():
    other = hub([["cat"], ["cat", "yak"]])
    with pytest.raises(ValueError, match="Row 1 of split 'test' has the label 'yak', which no training image has"):
        normalised(hub(SETS, datasets.List(datasets.Value("string"))), others={"test": other})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 1], [1, 1, 0]], "Row 1 of split 'train' names the class 1 twice.*not as a row of 0 and 1"),
        ([[0], [1], None], "Row 2 of split 'train' has no label; write an empty list"),
        ([[0], [1, None]], "Row 1 of split 'train' has a list of classes with an empty entry"),
    ],
)
def test_damaged_lists_are_refused(labels, message):
    dataset = hub(labels, datasets.List(datasets.ClassLabel(names=["a", "b"])))
    with pytest.raises(ValueError, match=message):
        check_labels(dataset, 2, split="train")


def test_items_and_features_have_rows_of_0_and_1():
    train = normalised(hub(SETS, datasets.List(datasets.Value("string"))))["train"]
    images = TransformedImages(train, lambda image: torch.zeros(3, 2, 2))
    assert images.targets.tolist() == ROWS
    label = images[3]["labels"]
    assert label.dtype == torch.float32 and label.tolist() == ROWS[3]
    batch = CachedFeatures(train, [torch.zeros(5, 4)]).__getitems__([0, 2])
    assert batch["labels"].dtype == torch.float32 and batch["labels"].tolist() == [ROWS[0], ROWS[2]]


def test_labels_of_any_data_set_are_counted():
    lists = hub(numbers(), datasets.List(datasets.Value("int64"))).select_columns(["labels"])
    rows = datasets.Dataset.from_dict({"labels": ROWS})
    for dataset in (lists, rows):
        assert dataset_labels(dataset).tolist() == ROWS
        found = count_labels(dataset, num_classes=4)
        assert (found.counts.tolist(), found.num_samples, found.is_multi_label) == ([3, 3, 1, 0], 5, True)
    with pytest.raises(ValueError, match="labels of 3 classes and the model 2"):
        count_labels(rows, num_classes=2)
    with pytest.raises(ValueError, match="lists that are no rows of 0 and 1"):
        dataset_labels(datasets.Dataset.from_dict({"labels": [[0.5, 0.5], [0.2, 0.8]]}))


# ---- list files ----


@pytest.mark.parametrize("separator", ["|", ";", None])
def test_list_files_of_several_classes(separator, tmp_path):
    path = write_images(tmp_path, train=300, test=20, separator=separator)
    data = load_image_data(str(path), label_separator=separator)
    assert data.is_multi_label and data.class_names == sorted(NAMES)
    assert (len(data.train), len(data.test)) == (300, 20)
    first = (
        json.loads((tmp_path / "images.jsonl").read_text().splitlines()[0])["labels"]
        if separator is None
        else (path.read_text().splitlines()[1].split(",")[1].split(separator))
    )
    assert [data.class_names[k] for k in np.flatnonzero(label_array(data.train)[0])] == sorted(first)


def test_without_a_separator_a_cell_is_one_class(tmp_path):
    path = write_images(tmp_path, train=60, test=0)
    data = load_image_data(str(path), test_fraction=0.2)
    assert not data.is_multi_label and any("|" in name for name in data.class_names)


def test_empty_cells_are_images_of_no_class(tmp_path):
    IMAGE.save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path,label\na.png,cat | dog\na.png,\na.png,dog\na.png,cat\n")
    data = load_image_data(str(tmp_path / "list.csv"), label_separator="|", test_fraction=0.3)
    assert data.class_names == ["cat", "dog"]
    both = np.concatenate([label_array(data.train), label_array(data.test)])
    assert sorted(map(tuple, both.tolist())) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    (tmp_path / "list.csv").write_text("path,label\na.png,\n")
    with pytest.raises(ValueError, match=r"No image of .* has a class; check --label_column and --label_separator"):
        load_image_data(str(tmp_path / "list.csv"), label_separator="|", test_fraction=0.3)


def test_a_separator_is_refused_where_no_file_lists_images(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        IMAGE.save(tmp_path / folder / "0.png")
    with pytest.raises(ValueError, match="is no file that lists images; drop --label_separator"):
        load_image_data(str(tmp_path), label_separator="|")


def test_coco_with_several_annotations_an_image(tmp_path):
    content = {
        "images": [{"id": n, "file_name": "a.png"} for n in (7, 8, 9)],
        "annotations": [{"image_id": i, "category_id": c} for i, c in ((7, 3), (7, 5), (7, 3), (9, 5))],
        "categories": [{"id": 5, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    IMAGE.save(tmp_path / "a.png")
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    data = load_image_data(str(path), test_fraction=0.3)
    assert data.class_names == ["cat", "dog"]
    both = np.concatenate([label_array(data.train), label_array(data.test)])
    assert sorted(map(tuple, both.tolist())) == [(0, 0), (0, 1), (1, 1)]
    content["annotations"].append({"image_id": 7, "category_id": 4})
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="an annotation of the category 4, which it does not list"):
        load_image_data(str(path), test_fraction=0.3)


# ---- splits and cuts ----


def test_each_class_is_split_alike():
    rng = np.random.default_rng(0)
    labels = (rng.random((2000, 12)) < np.geomspace(0.5, 0.004, 12)).astype(np.uint8)
    train, test = stratified_split(labels, 12, test_fraction=0.2, seed=3)
    assert sorted([*train, *test]) == list(range(2000))
    counts, held = labels.sum(axis=0), labels[test].sum(axis=0)
    assert np.all(np.abs(held - 0.2 * counts) <= np.maximum(1, 0.05 * counts))
    assert (labels[train].sum(axis=0) > 0).all()
    again = stratified_split(labels, 12, test_fraction=0.2, seed=3)[1]
    assert np.array_equal(test, again)
    assert not np.array_equal(test, stratified_split(labels, 12, test_fraction=0.2, seed=4)[1])


def test_a_class_that_always_comes_with_rarer_ones_keeps_a_training_image():
    labels = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1]], dtype=np.uint8)
    for seed in range(30):
        train, _ = stratified_split(labels, 3, test_fraction=0.6, seed=seed)
        assert (labels[train].sum(axis=0) > 0).all()


@pytest.mark.parametrize("key", ["imbalance_factor", "max_train_per_class", "max_test_per_class", "max_imbalance"])
def test_cuts_by_class_are_refused(key, tmp_path):
    path = write_images(tmp_path, train=300, test=20, separator=None)
    with pytest.raises(ValueError, match=rf"{key} is 2, which takes images away class by class.*leave {key} out"):
        prepare_images(DataArguments(dataset=str(path), **{key: 2}))


def test_validation_images_and_the_inspection(tmp_path):
    path = write_images(tmp_path, train=300, test=20, separator=None)
    data = prepare_images(DataArguments(dataset=str(path), validation_fraction=0.2), say=lambda text: None)
    assert 40 <= len(data.validation) <= 80 and len(data.train) + len(data.validation) == 300
    found = inspect_images(data)
    assert found.train_counts.tolist() == class_counts(label_array(data.train), 10).tolist()
    assert f"{len(data.train)} training images of 10 classes" in found.summary()
    assert "labels" in found.summary()
    assert set(found.smallest_sides.tolist()) == {24}


def test_smaller_copies_keep_the_classes(tmp_path):
    path = write_images(tmp_path / "images", train=300, test=20, separator=None)
    found = prepare_images(
        DataArguments(dataset=str(path), cache_resized=str(tmp_path / "copies"), cache_resized_side=16)
    )
    assert np.array_equal(label_array(found.train), label_array(load_image_data(str(path)).train))


def test_a_stream_and_an_empty_separator_are_refused(tmp_path):
    kind = datasets.List(datasets.ClassLabel(names=["cat", "dog", "owl"]))
    for split in ("train", "test"):
        hub(numbers(), kind).to_parquet(tmp_path / f"{split}.parquet")
    args = DataArguments(dataset=str(tmp_path), streaming=True)
    with pytest.raises(ValueError, match=r"'labels' of the stream has several classes per image.*drop --streaming"):
        stream_images(args, counts_path=tmp_path / "counts.json", recount=True)
    with pytest.raises(ValueError, match="label_separator is empty; set it to what separates"):
        DataArguments(label_separator="")
