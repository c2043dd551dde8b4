"""Layouts of image folders, on real files."""

import datasets
import pytest
from PIL import Image

from ft_focalsam.cli.automatic import find_layout
from ft_focalsam.data import DataArguments, prepare_images


def read(layout):
    """The images that the settings lead to: number by split, and the class names."""
    data = prepare_images(DataArguments(**layout.settings, on_bad_image="unchecked"), say=lambda text: None)
    return {split: len(part) for split, part in data.parts.items()}, data.class_names


def write_list(path, header, rows):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def test_a_folder_per_class_with_all_that_lies_about(animals):
    layout = find_layout(animals)
    assert layout.settings == {"dataset": str(animals), "test_fraction": 0.2}
    sizes, names = read(layout)
    # round(0.2 n) of each class: 303, 120, 60, 31, 15, 8, 4, 2
    assert sizes["test"] == 61 + 24 + 12 + 6 + 3 + 2 + 1 + 0 and sum(sizes.values()) == 543
    assert "to sort" not in names and len(names) == 8
    assert "1 image beside the folders: in no class, and left out" in layout.reasons


def test_folders_around_the_classes_are_opened(tmp_path, write_images):
    for name in ("cat", "dog"):
        write_images(tmp_path / "download" / "images" / name, 5)
    (tmp_path / "download" / "README.txt").write_text("about 1\n")
    layout = find_layout(tmp_path)
    assert layout.settings == {"dataset": str(tmp_path / "download" / "images"), "test_fraction": 0.2}
    assert read(layout) == ({"train": 8, "test": 2}, ["cat", "dog"])


@pytest.mark.parametrize(
    ("folders", "expected", "sizes"),
    [
        (("train", "test"), {"test_split": "test"}, {"train": 6, "test": 4}),
        (("Training", "Validation"), {"train_split": "training", "test_split": "validation"}, {"train": 6, "test": 4}),
        (("train", "val"), {"test_split": "val"}, {"train": 6, "test": 4}),
        (
            ("train", "test", "valid"),
            {"test_split": "test", "validation_split": "valid"},
            {"train": 6, "test": 4, "validation": 2},
        ),
    ],
)
def test_splits_of_class_folders(tmp_path, write_images, folders, expected, sizes):
    for folder, number in zip(folders, (3, 2, 1), strict=False):
        for name in ("cat", "dog"):
            write_images(tmp_path / folder / name, number)
    layout = find_layout(tmp_path)
    assert layout.settings == {"dataset": str(tmp_path), **expected}
    assert read(layout)[0] == sizes


def test_a_test_folder_without_classes_is_left_out(tmp_path, write_images):
    for name in ("cat", "dog"):
        write_images(tmp_path / "train" / name, 5)
    write_images(tmp_path / "test", 3)
    layout = find_layout(tmp_path)
    assert layout.settings == {"dataset": str(tmp_path / "train"), "test_fraction": 0.2}
    assert "the images in 'test' are in no class and are left out" in layout.reasons


@pytest.mark.parametrize("header", ["path,label,split", "Bild,Art,split"])
def test_a_table_beside_images_says_the_split(tmp_path, write_images, header):
    write_images(tmp_path / "images", 6)
    splits = ("train", "train", "train", "val", "test", "test")
    rows = [f"{index:03}.png,{'cat' if index % 2 else 'dög'},{split}" for index, split in enumerate(splits)]
    write_list(tmp_path / "labels.csv", header, rows)
    layout = find_layout(tmp_path)
    assert layout.settings == {
        "dataset": str(tmp_path / "labels.csv"), "image_root": str(tmp_path / "images"),
        "test_split": "test", "validation_split": "val",
    }  # fmt: skip
    assert read(layout) == ({"train": 3, "test": 2, "validation": 1}, ["cat", "dög"])


def test_json_lines_in_the_folder_of_the_images(tmp_path, write_images):
    write_images(tmp_path, 10)
    rows = [f'{{"file_name": "{index:03}.png", "label": "{"ab"[index % 2]}"}}' for index in range(10)]
    write_list(tmp_path / "metadata.jsonl", rows[0], rows[1:])
    layout = find_layout(tmp_path)
    assert layout.settings == {"dataset": str(tmp_path / "metadata.jsonl"), "test_fraction": 0.2}
    assert read(layout)[0] == {"train": 8, "test": 2}


def test_one_list_a_split(tmp_path, write_images):
    write_images(tmp_path / "images", 6)
    for split, numbers in (("train", range(4)), ("test", (4, 5))):
        (tmp_path / f"LT_{split}.txt").write_text("".join(f"images/{i:03}.png {i % 2}\n" for i in numbers))
    layout = find_layout(tmp_path)
    assert layout.settings == {
        "dataset": str(tmp_path / "LT_train.txt"), "test_dataset": str(tmp_path / "LT_test.txt"), "test_split": "test",
    }  # fmt: skip
    assert read(layout) == ({"train": 4, "test": 2}, ["0", "1"])
    write_list(tmp_path / "LT_test.txt", "images/004.png", ["images/005.png"])  # of a competition: no classes
    layout = find_layout(tmp_path)
    assert layout.settings == {"dataset": str(tmp_path / "LT_train.txt"), "test_fraction": 0.2}
    assert any("'LT_test.txt' is left out" in reason for reason in layout.reasons)


def test_a_list_that_says_the_split_wins_over_folders_that_do_not(tmp_path, write_images):
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 3)
    paths = [f"{name}/00{index}.png,{name}" for name in ("cat", "dog") for index in range(3)]
    write_list(tmp_path / "list.csv", "path,label", paths)
    assert find_layout(tmp_path).settings == {"dataset": str(tmp_path), "test_fraction": 0.2}
    write_list(tmp_path / "list.csv", "path,label,split", [f"{p},{'test' if '2' in p else 'train'}" for p in paths])
    layout = find_layout(tmp_path)
    assert layout.settings == {"dataset": str(tmp_path / "list.csv"), "test_split": "test"}
    assert read(layout)[0] == {"train": 4, "test": 2}


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_stored_data_sets(tmp_path, kind):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    columns = {"image": [Image.new("L", (8, 8), i) for i in range(10)], "label": [0, 1] * 5}
    stored = datasets.Dataset.from_dict(columns, features=features)
    if kind == "saved":
        datasets.DatasetDict({"train": stored, "test": stored.select(range(4))}).save_to_disk(str(tmp_path / "set"))
        expected, sizes = {"test_split": "test"}, {"train": 10, "test": 4}
    else:
        (tmp_path / "set" / "data").mkdir(parents=True)
        stored.to_parquet(str(tmp_path / "set" / "data" / "train-00000-of-00001.parquet"))
        expected, sizes = {"test_fraction": 0.2}, {"train": 8, "test": 2}
    layout = find_layout(tmp_path / "set")
    assert layout.settings == {"dataset": str(tmp_path / "set"), **expected}
    assert read(layout) == (sizes, ["a", "b"])


def test_what_the_user_says_wins(tmp_path, write_images):
    for split, number in (("train", 10), ("test", 2), ("val", 2), ("extra", 3)):
        for name in ("cat", "dog"):
            write_images(tmp_path / split / name, number)
    assert find_layout(tmp_path, {"test_fraction": 0.5}).settings == {
        "dataset": str(tmp_path), "test_fraction": 0.5, "validation_split": "val",
    }  # fmt: skip
    layout = find_layout(tmp_path, {"test_split": "val", "train_split": "extra"})
    assert layout.settings == {"dataset": str(tmp_path), "train_split": "extra", "test_split": "val"}
    assert layout.reasons[-1] == "the images of 'test', 'train' are not used"
    layout = find_layout(tmp_path, {"validation_fraction": 0.3})
    assert "validation_split" not in layout.settings


def test_what_is_no_image_set_is_told_in_one_sentence(tmp_path, write_images):
    def fault(path, kind=ValueError):
        with pytest.raises(kind) as told:
            find_layout(path)
        text = str(told.value)
        assert "\n" not in text and text.endswith((".", "?")) and str(path) in text
        return text

    (tmp_path / "empty" / "in it").mkdir(parents=True)
    assert "has nothing in it; give a folder with one sub-folder of images per class" in fault(tmp_path / "empty")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "thesis.pdf").write_bytes(b"%PDF")
    assert "has 1 file and no image among them (such as 'thesis.pdf')" in fault(tmp_path / "texts")
    write_images(tmp_path / "flat", 3)
    assert "has 3 images and no sub-folders, which would be the classes" in fault(tmp_path / "flat")
    write_images(tmp_path / "one" / "cat", 3)
    assert "has images in the one folder 'cat' alone" in fault(tmp_path / "one")
    for split in ("train", "test"):
        write_images(tmp_path / "unlabelled" / split, 3)
    assert "has images in 'test' and 'train', without sub-folders" in fault(tmp_path / "unlabelled")
    assert "is a file, not a folder of images" in fault(tmp_path / "flat" / "000.png")
    (tmp_path / "images.zip").write_bytes(b"PK")
    assert "is an archive; unpack it" in fault(tmp_path / "images.zip")
    assert f"Did you mean '{tmp_path / 'flat'}'?" in fault(tmp_path / "flta", FileNotFoundError)


def test_a_list_that_cannot_be_used_is_told(tmp_path, write_images):
    write_images(tmp_path, 2)
    write_list(tmp_path / "labels.csv", "path,label", ["000.png,a", "007.png,b"])
    with pytest.raises(FileNotFoundError, match=r"Line 3 of '.*labels.csv' names '007.png', which is not in"):
        find_layout(tmp_path)
    write_list(tmp_path / "labels.csv", "path,label", ["000.png,a", "001.png,b"])
    write_list(tmp_path / "older.csv", "path,label", ["000.png,b", "001.png,b"])
    with pytest.raises(ValueError, match=r"several lists of images \('labels.csv', 'older.csv'\); give the one"):
        find_layout(tmp_path)


@pytest.mark.slow
def test_a_real_parquet_folder(shared):
    layout = find_layout(shared / "data" / "cifar10")
    assert layout.settings == {"dataset": str(shared / "data" / "cifar10"), "test_split": "test"}
