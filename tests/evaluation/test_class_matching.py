"""Which class is which: by name, synset, class index; and what a restriction does to logits."""

import json

import numpy as np
import pytest

from ft_focalsam.evaluation import match_classes, read_class_index, read_train_counts, restrict
from ft_focalsam.models.text import readable_names

IMAGENET = ["tench, Tinca tinca", "crane", "great_grey owl, Strix nebulosa", "crane", "Größe 5"]
INDEX = {0: ("n01440764", "tench"), 1: ("n02012849", "crane"), 2: ("n01622779",), 3: ("n03126707", "crane")}


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["n01622779", "n01440764"], [2, 0]),
        (["n03126707", "n02012849"], [3, 1]),
        (["n01440764 tench", "n01622779 owl"], [0, 2]),
        (["größe_5", "TENCH"], [4, 0]),
        (["Strix nebulosa", "Tinca tinca"], [2, 0]),
        (["great grey owl, strix nebulosa"], [2]),
    ],
    ids=str,
)
def test_classes_are_found_by_all_their_names(names, classes):
    assert match_classes(names, IMAGENET, class_index=INDEX).tolist() == classes


def test_exact_names_come_before_similar_ones():
    assert match_classes(["cat", "Cat"], ["Cat", "cat", "cat, Cat"]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("names", "index", "message"),
    [
        (["crane"], INDEX, r"class 'crane' of r is none of the model's 5 classes"),
        (["n01440764"], None, r"give --class_index"),
        (["Größe 6"], INDEX, r"the nearest name is 'Größe 5'\); correct the name"),
        (["tench", "Tinca tinca"], INDEX, r"'tench' and 'Tinca tinca' of r are both the model's class 0"),
    ],
    ids=["ambiguous", "no_index", "unknown", "twice"],
)
def test_what_is_no_class_of_the_model_is_refused(names, index, message):
    with pytest.raises(ValueError, match=message):
        match_classes(names, IMAGENET, class_index=index, source="r")


@pytest.mark.parametrize(
    "content",
    [
        {"0": ["n01440764", "tench"], "1": ["n02012849"]},
        {"0": "n01440764", "1": "n02012849"},
        ["n01440764", "n02012849"],
        {"n01440764": 0, "n02012849": 1},
    ],
    ids=["keras", "strings", "list", "torchvision"],
)
def test_class_index_files(tmp_path, content):
    path = tmp_path / "index.json"
    path.write_text(json.dumps(content))
    index = read_class_index(path)
    assert match_classes(["n02012849", "n01440764"], ["fish", "bird"], class_index=index).tolist() == [1, 0]


def test_readable_names_for_a_text_tower():
    names = ["n01440764", "n02012849", "n01622779 great grey owl", "ein Stück"]
    index = {0: ("n01440764", "tench, Tinca tinca"), 1: ("n02012849", "crane")}
    assert readable_names(names, index) == ["tench", "crane", "great grey owl", "ein Stück"]
    with pytest.raises(ValueError, match="a class index that has its name"):
        readable_names(["n01622779"], index)


@pytest.mark.parametrize("keep_all", [False, True])
def test_restriction_against_a_loop(keep_all):
    rng = np.random.default_rng(0)
    logits, classes, labels = rng.normal(size=(30, 8)), np.array([6, 1, 4]), rng.integers(0, 3, 30)
    got, renumbered, kept = restrict(logits, labels, classes=classes, keep_all=keep_all)
    assert kept.tolist() == (list(range(8)) if keep_all else [1, 4, 6])
    for row in range(30):
        assert kept[renumbered[row]] == classes[labels[row]]
        allowed = range(8) if keep_all else [1, 4, 6]
        assert kept[got[row].argmax()] == max(allowed, key=lambda c: logits[row, c])


def test_training_counts_by_name(tmp_path):
    (tmp_path / "per_class.csv").write_text("class,name,train_images\n0,größer,5\n1,b,7\n", encoding="utf-8")
    (tmp_path / "counts.json").write_text('{"b": 7, "größer": 5, "c": 1}', encoding="utf-8")
    for name in ("per_class.csv", "counts.json"):
        assert read_train_counts(tmp_path / name, ["b", "größer"]).tolist() == [7, 5]
    with pytest.raises(ValueError, match="lack 'd' and 0 others of the model's 2 classes"):
        read_train_counts(tmp_path / "counts.json", ["b", "d"])
    (tmp_path / "wrong.json").write_text('{"b": "many"}')
    with pytest.raises(ValueError, match="give 'b' 'many' images; write a whole number"):
        read_train_counts(tmp_path / "wrong.json", ["b"])
    (tmp_path / "wrong.csv").write_text("label,n\nb,4\n")
    with pytest.raises(ValueError, match="give a CSV file with the columns name and train_images"):
        read_train_counts(tmp_path / "wrong.csv", ["b"])
    (tmp_path / "short.csv").write_text("train_images,name\n4,b\n5\n")
    with pytest.raises(ValueError, match="a row has no name"):
        read_train_counts(tmp_path / "short.csv", ["b"])
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        read_train_counts(tmp_path / "missing.json", ["b"])


@pytest.mark.parametrize("content", ['{"a": "b"}', '{"0": 3.5}', "[]", "{", '{"0": [1]}'])
def test_other_json_is_no_class_index(tmp_path, content):
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index\.json"):
        read_class_index(tmp_path / "index.json")


def test_names_that_occur_twice_are_told_apart_by_their_order(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text(
        "\ufeffname,train_images\ncrane,5\ncrane,7\nowl,2\n", encoding="utf-8"
    )  # as a spreadsheet saves it
    assert read_train_counts(path, ["crane", "crane", "owl"]).tolist() == [5, 7, 2]
    with pytest.raises(ValueError, match="have 'crane' more than once; write the classes in the model's order"):
        read_train_counts(path, ["owl", "crane", "crane"])
    path.write_bytes(b"name,train_images\n\xff,5\n")
    with pytest.raises(ValueError, match="cannot be read"):
        read_train_counts(path, ["crane"])
