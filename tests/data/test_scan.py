"""A scan finds what is broken, once; skipping and refusing; duplicates and sizes against a comparison of all pairs."""

import io
import itertools
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from ft_focalsam.base.files import atomic_write
from ft_focalsam.data import (
    BadImageError,
    DataArguments,
    find_broken,
    inspect_images,
    label_array,
    load_image_data,
    prepare_images,
    scan_images,
)
from ft_focalsam.data import scan as scan_module


@pytest.fixture
def folder(tmp_path, photographs):
    """Photographs of two classes, 12 and 6, one of each broken, with spaces and umlauts in their names."""
    root = tmp_path / "Bilder ü"
    for name, rows in (("große Tiere", range(12)), ("Käfer", range(12, 18))):
        (root / name).mkdir(parents=True)
        for row in rows:
            (root / name / f"Bild {row:02} ä.jpg").write_bytes(photographs[row])
    cut = root / "große Tiere" / "Bild 03 ä.jpg"
    cut.write_bytes(cut.read_bytes()[:5000])
    (root / "Käfer" / "Bild 12 ä.jpg").write_bytes(b"")
    return root


def all_of(folder) -> datasets.Dataset:
    return datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")


def test_facts_of_real_images_in_order_whatever_the_processes(folder):
    dataset = all_of(folder)
    facts = scan_images(dataset)
    assert facts == scan_images(dataset, num_workers=2)
    paths = dataset.cast_column("image", datasets.Image(decode=False))["image"]
    for fact, record in zip(facts, paths, strict=True):
        assert fact.name == f"'{record['path']}'"
        if fact.error is None:
            with Image.open(record["path"]) as image:
                assert (fact.width, fact.height, fact.mode, fact.format) == (*image.size, image.mode, "JPEG")
    assert [fact.name.rpartition("/")[2] for fact in facts if fact.error] == ["Bild 12 ä.jpg'", "Bild 03 ä.jpg'"]


def test_hashes_tell_pixels_and_looks(photographs):
    def facts(image, format, **options):
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        record = {"image": [{"bytes": buffer.getvalue(), "path": None}]}
        return scan_images(datasets.Dataset.from_dict(record, datasets.Features({"image": datasets.Image()})))[0]

    images = [Image.open(io.BytesIO(content)).convert("RGB") for content in photographs[:8]]
    stored = [facts(image, "PNG") for image in images]
    assert len({fact.pixels for fact in stored}) == len({fact.gradient for fact in stored}) == 8
    for image, fact in zip(images[:3], stored, strict=False):
        assert facts(image, "BMP").pixels == fact.pixels
        assert facts(image, "JPEG", quality=85).pixels != fact.pixels
    looks_alike = sum(
        facts(image, "JPEG", quality=90).gradient == fact.gradient for image, fact in zip(images, stored, strict=True)
    )
    assert looks_alike >= 4
    flat = facts(Image.new("RGB", (30, 30), (9, 9, 9)), "PNG")
    assert flat.gradient == "" and flat.pixels
    pixels = np.zeros((2, 6, 3), np.uint8)
    assert (
        facts(Image.fromarray(pixels), "PNG").pixels != facts(Image.fromarray(pixels.reshape(6, 2, 3)), "PNG").pixels
    )


def test_a_scan_is_kept_until_a_file_changes(folder, monkeypatch, photographs):
    dataset = all_of(folder)
    broken = find_broken(dataset)
    assert sorted(broken) == [0, 9]
    monkeypatch.setattr(scan_module, "map_images", None)  # a second scan would fail
    assert find_broken(dataset) == broken
    monkeypatch.undo()
    (folder / "große Tiere" / "Bild 03 ä.jpg").write_bytes(photographs[3])
    assert sorted(find_broken(dataset)) == [0]


def test_stored_bytes_are_told_apart_by_their_content(photographs):
    features = datasets.Features({"image": datasets.Image()})
    contents = [photographs[0], photographs[1][:3000]]
    good, bad = (
        datasets.Dataset.from_dict({"image": [{"bytes": c, "path": None} for c in rows]}, features)
        for rows in ([contents[0]] * 2, contents)
    )
    assert find_broken(good) == {}
    assert list(find_broken(bad)) == [1] and "in row 1 cannot be read" in find_broken(bad)[1]


def arguments(folder, **options) -> DataArguments:
    return DataArguments(dataset=str(folder), test_fraction=0.25, **options)


def test_broken_images_stop_a_run_before_it_trains(folder):
    with pytest.raises(BadImageError, match=r"image '.*Bild 12 ä.jpg' cannot be read .*--on_bad_image skip \(2 of"):
        prepare_images(arguments(folder))
    assert len(prepare_images(arguments(folder, on_bad_image="unchecked")).train) == 13
    with pytest.raises(ValueError, match="on_bad_image is 'drop'; choose one of fail, skip, unchecked"):
        prepare_images(arguments(folder, on_bad_image="drop"))


def test_skipped_images_are_counted_and_listed_and_the_profile_is_kept(folder):
    said = []
    data = prepare_images(arguments(folder, on_bad_image="skip", imbalance_factor=2), say=said.append)
    assert said[0] == "2 of 13 training images cannot be read and are skipped:"
    assert len(said) == 3 and all("cannot be read (" in line and "--on_bad_image" not in line for line in said[1:])
    readable = prepare_images(arguments(folder, on_bad_image="skip"), say=said.append)
    most = np.bincount(label_array(readable.train))[0]  # of the class that comes first, which is the smaller one
    assert np.bincount(label_array(data.train)).tolist() == [most, most // 2] == [3, 1]
    again = prepare_images(arguments(folder, on_bad_image="skip", imbalance_factor=2))
    assert again.train["image"] and label_array(again.train).tolist() == label_array(data.train).tolist()
    assert find_broken(data.train) == {}


def test_a_split_of_nothing_but_broken_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "x" / name).mkdir(parents=True)
        for index in range(4):
            (tmp_path / "x" / name / f"{index}.jpg").write_bytes(b"no")
    with pytest.raises(ValueError, match="None of the 6 training images can be read; check the data set"):
        prepare_images(arguments(tmp_path / "x", on_bad_image="skip"), say=lambda _: None)


def test_duplicates_are_those_of_a_comparison_of_all_pairs(folder, photographs):
    (folder / "große Tiere" / "again.jpg").write_bytes(photographs[0])
    (folder / "Käfer" / "another class.jpg").write_bytes(photographs[1])
    Image.open(io.BytesIO(photographs[2])).convert("RGB").save(folder / "große Tiere" / "as png.png")
    data = load_image_data(str(folder), test_fraction=0.25)
    inspection = inspect_images(data)

    def readable(dataset):
        rows = dataset.cast_column("image", datasets.Image(decode=False))
        for row in rows:
            try:
                yield row["image"]["path"], np.asarray(Image.open(row["image"]["path"]).convert("RGB")), row["labels"]
            except OSError:
                continue

    train, test = list(readable(data.train)), list(readable(data.test))
    leaked = {(a[0], b[0]) for a, b in itertools.product(test, train) if np.array_equal(a[1], b[1])}
    pairs = [(a, b) for a, b in itertools.combinations(train, 2) if np.array_equal(a[1], b[1])]
    assert len(leaked) + len(pairs) == 3
    found = inspection.findings.get("Test images that are also training images", [])
    assert len(found) == len(leaked) and all(any(a in case and b in case for case in found) for a, b in leaked)
    for heading, is_conflict in (("of several classes", True), ("that are there twice", False)):
        found = inspection.findings.get(f"Training images {heading}", [])
        assert len(found) == sum((a[2] != b[2]) == is_conflict for a, b in pairs)
    assert [len(inspection.findings[f"Broken {split} images"]) for split in ("training",)] == [2]


def test_sizes_classes_and_summary(folder):
    Image.new("RGB", (900, 30), (1, 2, 3)).save(folder / "große Tiere" / "wide.png")
    Image.new("RGB", (20, 20), (1, 2, 3)).save(folder / "große Tiere" / "tiny.png")
    (folder / "allein").mkdir()
    Image.new("RGB", (300, 300), (1, 2, 3)).save(folder / "allein" / "one.png")
    inspection = inspect_images(load_image_data(str(folder), test_fraction=0.25))
    extremes = [case for heading, cases in inspection.findings.items() if "extreme" in heading for case in cases]
    assert sorted(case.rpartition("/")[2] for case in extremes) == [
        "tiny.png' has 20 x 20 pixels",
        "wide.png' has 900 x 30 pixels",
    ]
    assert inspection.findings["Classes with a single training image"] == ["allein"]
    assert inspection.findings["Classes with no test image"] == ["allein"]
    assert inspection.train_counts.sum() + inspection.test_counts.sum() == 21
    names = inspection.class_names
    assert names == ["Käfer", "allein", "große Tiere"] and inspection.broken.tolist() == [1, 0, 1]
    sides = {name: [] for name in names}
    for path in folder.rglob("*.*"):
        if path.name not in ("Bild 03 ä.jpg", "Bild 12 ä.jpg"):
            with Image.open(path) as image:
                sides[path.parent.name].append(min(image.size))
    assert inspection.smallest_sides.tolist() == [min(sides[name]) for name in names]
    text = inspection.summary()
    assert "(imbalance " in text and "few " in text and "wide.png" in text
    assert "Nothing found" in inspect_images(load_image_data("digits").cut(max_train_per_class=5)).summary()


def test_a_row_per_class(folder, photographs):
    for name, row in (("copy.png", 0), ("other copy.jpg", 1)):
        path = folder / "große Tiere" / name
        with Image.open(io.BytesIO(photographs[row])) as image:
            image.convert("RGB").save(path) if path.suffix == ".png" else path.write_bytes(photographs[row])
    inspection = inspect_images(load_image_data(str(folder), test_fraction=0.3, validation_split=None).hold_out(0.2))
    counts = [inspection.train_counts, inspection.validation_counts, inspection.test_counts]
    assert np.sum(counts, axis=0).tolist() == [6, 14] and inspection.duplicates.tolist() == [0, 4]
    rows = inspection.class_table().splitlines()
    assert rows[0].split() == ["class", "training", "validation", "test", "broken", "duplicates", "smallest", "side"]
    first = [each[1] for each in (*counts, inspection.broken, inspection.duplicates, inspection.smallest_sides)]
    assert rows[1].rsplit(maxsplit=6) == ["große Tiere", *map(str, first)] and len(rows) == 3
    assert len({len(row) for row in rows}) == 1
    record = json.loads(json.dumps(inspection.record()))
    assert record["broken"] == [1, 1] and record["class_names"] == ["Käfer", "große Tiere"]
    assert record["validation_counts"] == inspection.validation_counts.tolist()


def test_of_very_many_classes_the_ends_are_shown():
    inspection = inspect_images(load_image_data("digits").cut(imbalance_factor=10, max_train_per_class=20))
    rows = inspection.class_table(most=5).splitlines()
    assert rows[4] == "... 5 classes ..." and [row.split()[0] for row in rows if row != rows[4]] == [
        "class", "zero", "one", "two", "eight", "nine",
    ]  # fmt: skip


def test_files_are_written_aside(tmp_path):
    atomic_write(tmp_path / "new" / "a.json", b"one")
    atomic_write(tmp_path / "new" / "a.json", b"two")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
    assert json.dumps("two").strip('"') == (tmp_path / "new" / "a.json").read_text()
