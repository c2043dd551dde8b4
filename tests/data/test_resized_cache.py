"""Cached images are the sources made smaller, once; a changed source is made anew; processes share a folder."""

import io
import multiprocessing
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from ft_focalsam.data import BadImageError, DataArguments, label_array, prepare_images, resize_into_cache
from ft_focalsam.data import resized_cache as module


@pytest.fixture
def folder(tmp_path, photographs):
    """Ten photographs of two classes."""
    root = tmp_path / "Bilder ü"
    for row in range(10):
        path = root / ("a b" if row < 6 else "ö") / f"{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photographs[row])
    return root


def all_of(folder) -> datasets.Dataset:
    return datasets.load_dataset("imagefolder", data_dir=str(folder), split="train").rename_column("label", "labels")


def files_of(cache) -> dict:
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


def test_images_are_the_sources_resized(folder, tmp_path):
    dataset = all_of(folder)
    cached = resize_into_cache(dataset, tmp_path / "resized", side=128)
    assert cached.features == dataset.features
    assert label_array(cached).tolist() == label_array(dataset).tolist()
    for source, copy in zip(dataset["image"], cached["image"], strict=True):
        assert copy.size == tuple(length * 128 // min(source.size) for length in source.size)
        expected = np.asarray(source.convert("RGB").resize(copy.size, Image.Resampling.BICUBIC), dtype=float)
        assert np.abs(np.asarray(copy) - expected).mean() < 4


def test_small_images_stay_as_they_are(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)).save(buffer, "PNG")
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.ClassLabel(names=["a"])})
    columns = {"image": [{"bytes": buffer.getvalue(), "path": None}], "labels": [0]}
    cached = resize_into_cache(datasets.Dataset.from_dict(columns, features), tmp_path, side=30)
    path = cached.cast_column("image", datasets.Image(decode=False))[0]["image"]["path"]
    assert Path(path).read_bytes() == buffer.getvalue()


def test_made_once_by_content_and_anew_when_a_source_changes(folder, tmp_path, monkeypatch):
    cache = tmp_path / "resized"
    dataset = all_of(folder)
    first = resize_into_cache(dataset, cache, side=64)
    before = files_of(cache)
    assert len(before) == 11  # ten images and the index
    monkeypatch.setattr(module.StoredImage, "read", None)  # known files are not even opened
    assert resize_into_cache(dataset, cache, side=64)["image"] == first["image"]
    monkeypatch.undo()
    assert files_of(cache) == before
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert resize_into_cache(all_of(tmp_path / "elsewhere"), cache, side=64)["image"] == first["image"]
    assert len(files_of(cache)) == 11 and {p: t for p, t in files_of(cache).items() if p.name != "index.json"} == {
        p: t for p, t in before.items() if p.name != "index.json"
    }
    Image.new("RGB", (300, 200), (1, 200, 3)).save(folder / "a b" / "0.jpg")
    changed = resize_into_cache(dataset, cache, side=64)
    assert changed[0]["image"].size == (96, 64) and changed[0]["image"].getpixel((9, 9))[1] > 190
    assert changed["image"][1:] == first["image"][1:]
    resize_into_cache(dataset, cache, side=32)
    assert len({path.parts[-3] for path in files_of(cache) if path.name != "index.json"}) == 2


def _fill(folder, cache, cache_of_datasets):
    datasets.config.HF_DATASETS_CACHE = cache_of_datasets
    resize_into_cache(all_of(folder), cache, side=64)


def test_two_processes_fill_one_folder(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_fill, args=(folder, tmp_path / "shared", str(tmp_path / f"d{i}"))) for i in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    alone = tmp_path / "alone"
    resize_into_cache(all_of(folder), alone, side=64)

    def contents(cache):
        return {p.name: p.read_bytes() for p in cache.rglob("*") if p.is_file() and p.name != "index.json"}

    assert contents(tmp_path / "shared") == contents(alone)  # and no file that was written aside is left


def test_a_run_trains_on_the_copies_and_tests_on_the_originals(folder, tmp_path):
    cache = tmp_path / "resized"
    options = {"dataset": str(folder), "test_fraction": 0.2, "cache_resized": str(cache), "cache_resized_side": 96}
    originals = prepare_images(DataArguments(dataset=str(folder), test_fraction=0.2)).train
    trained_on = {Path(r["path"]).name for r in originals.cast_column("image", datasets.Image(decode=False))["image"]}
    data = prepare_images(DataArguments(**options))
    assert {min(image.size) for image in data.train["image"]} == {96}
    assert min(min(image.size) for image in data.test["image"]) > 96
    with pytest.raises(ValueError, match="cache_resized_side is 8; set it to 16 or more"):
        prepare_images(DataArguments(**options | {"cache_resized_side": 8}))
    name = next(path for path in folder.rglob("*.jpg") if path.name in trained_on)
    name.write_bytes(b"no image")
    with pytest.raises(BadImageError, match=rf"image '.*{name.name}' cannot be read"):
        prepare_images(DataArguments(**options, on_bad_image="unchecked"))
