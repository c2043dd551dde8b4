"""The recipes about data as users run them: a folder with all that goes wrong, a list, a stream, the benchmark."""

import importlib
import json
import re
import runpy
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image

from ft_focalsam.cli.config import ConfigError
from ft_focalsam.data import BadImageError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = str(ROOT / "recipes" / "configs" / "quickstart.yaml")
FOLDER = str(ROOT / "recipes" / "configs" / "image_folder" / "clip_vit_b16_lora.yaml")


def recipe(name: str):
    """A command as a module, whose `main` takes its arguments; starting Python anew takes longer."""
    return importlib.import_module(f"ft_focalsam.cli.{name}")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep what `datasets` prepares out of the user's cache, and the tests off the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)  # 5 s a streamed pass


@pytest.fixture
def photographs(shared, tmp_path):
    """The files of the ImageNet sample."""
    path = str(shared / "data" / "imagenet_sample" / "test-00000-of-00001.parquet")
    dataset = datasets.Dataset.from_parquet(path, cache_dir=str(tmp_path / "cache"))
    return [record["bytes"] for record in dataset.cast_column("image", datasets.Image(decode=False))["image"]]


@pytest.fixture
def folder(photographs, tmp_path):
    """Spaces and umlauts, a broken file, the same image in two classes, a class of one image."""
    root = tmp_path / "Meine Bilder ü"
    for name, rows in (("große Tiere", range(12)), ("kleine Käfer", range(12, 18)), ("einzeln", [18])):
        (root / name).mkdir(parents=True)
        for row in rows:
            (root / name / f"Bild {row:02} ä.jpg").write_bytes(photographs[row])
    (root / "große Tiere" / "kaputt.jpg").write_bytes(photographs[0][:4000])
    for number in range(2):
        (root / "kleine Käfer" / f"noch einmal {number}.jpg").write_bytes(photographs[1])
    return root


def test_a_folder_is_inspected(folder, tmp_path, capsys):
    inspection = recipe("inspect").main(
        [FOLDER, "--dataset", str(folder), "--test_fraction", "0.2", "--output_dir", str(tmp_path / "o")]
    )
    text = capsys.readouterr().out
    assert re.search(r"1\d training images of 3 classes, \d+ to 1 a class \(imbalance \d+\.0\); \d test images", text)
    assert "Classes with a single training image: 1\n  einzeln" in text
    assert "kaputt.jpg' cannot be read (" in text
    found = json.loads((tmp_path / "o" / "inspection.json").read_text(encoding="utf-8"))
    assert found["class_names"] == ["einzeln", "große Tiere", "kleine Käfer"]
    assert found["train_counts"] == inspection.train_counts.tolist()
    assert sum(found["train_counts"] + found["test_counts"]) == 22
    twice = {case for heading, cases in found["findings"].items() for case in cases if "is the same as" in case}
    assert twice and all("noch einmal" in case for case in twice)
    with Image.open(tmp_path / "o" / "class_counts.png") as plot:
        assert plot.width > 600


def test_an_inspection_goes_to_a_folder_of_its_own_and_over_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    config = tmp_path / "config.yaml"
    config.write_text("dataset: digits\noutput_dir: run\n")
    inspect = recipe("inspect").main
    for options in ([], [], ["--validation_fraction", "0.2"], ["--output_dir", "run"]):
        inspect([str(config), *options])
    written = {path.parent.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("inspection.json")}
    assert set(written) == {"inspections/digits", "inspections/digits-2", "inspections/digits-3", "run"}
    sizes = json.loads(written["inspections/digits-3"].read_text(encoding="utf-8"))["sizes"]
    assert list(sizes) == ["Training", "Test", "Validation"]


def test_a_mistake_ends_the_inspection_with_one_sentence(folder):
    inspect = recipe("inspect").main
    with pytest.raises(ConfigError, match="Unknown key 'on_bad_imag' on the command line; did you mean"):
        inspect([FOLDER, "--dataset", str(folder), "--on_bad_imag", "skip"])
    with pytest.raises(FileNotFoundError, match="folder '/does/not/exist' does not exist"):
        inspect([FOLDER, "--dataset", "/does/not/exist"])


def finetune(config: str, tmp_path, **options) -> dict:
    """The recipe on the embedded CLIP, two steps of it unless said otherwise."""
    options = {"head_start": "class_means", "augmentation": "crop_flip", "save_strategy": "no"} | options
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return recipe("train").main([config, "--output_dir", str(tmp_path / "o"), *arguments])


def test_broken_images_stop_a_run_or_are_skipped(folder, tmp_path, capsys):
    options = {"dataset": folder, "backbone": "tiny_clip", "dataloader_num_workers": 0, "max_steps": 2}
    options |= {"per_device_train_batch_size": 8, "test_fraction": 0.2}
    (folder / "einzeln" / "zwei.png").write_bytes(b"no image")
    with pytest.raises(BadImageError, match=r"The image '.*' cannot be read .*, or set --on_bad_image skip"):
        finetune(FOLDER, tmp_path, **options)
    options |= {"on_bad_image": "skip", "cache_resized": tmp_path / "small", "cache_resized_side": 40}
    metrics = finetune(FOLDER, tmp_path, **options)
    text = capsys.readouterr().out
    assert len(re.findall(r"images cannot be read and are skipped:\n  The image '", text)) >= 1
    assert "kaputt.jpg' cannot be read" in text and "zwei.png' cannot be read" in text
    for name in ("report.html", "report.md", "run.json"):
        told = (tmp_path / "o" / name).read_text(encoding="utf-8")
        assert "images cannot be read and are skipped" in told and "zwei.png" in told
        assert str(folder) not in told and folder.as_posix().replace("_", "\\_") not in told
    assert list(metrics) == ["class means", "focal_sam"]
    copies = [path for path in (tmp_path / "small").rglob("*") if path.is_file() and path.name != "index.json"]
    assert copies and {min(Image.open(path).size) for path in copies} == {40}


def test_a_list_of_the_literature_is_trained_on(folder, tmp_path):
    paths = sorted(path.relative_to(folder) for path in folder.rglob("Bild*.jpg"))
    lines = [f"{path} {index % 2}\n" for index, path in enumerate(paths)]
    for name, part in (("train", lines[:14]), ("test", lines[14:])):
        (tmp_path / f"X_LT_{name}.txt").write_text("".join(part), encoding="utf-8")
    options = {"dataset": tmp_path / "X_LT_train.txt", "test_dataset": tmp_path / "X_LT_test.txt"}
    (tmp_path / "names.txt").write_text("beetle\nowl\n")
    options |= {"image_root": folder, "class_names": tmp_path / "names.txt", "imbalance_factor": 1, "max_steps": 1}
    finetune(QUICKSTART, tmp_path, **options)
    assert "0,beetle,few,7,3," in (tmp_path / "o" / "per_class.csv").read_text()


def test_a_stream_is_trained_on(shared, tmp_path, capsys):
    source = shared / "data" / "cifar10" / "test-00000-of-00001.parquet"
    images = datasets.Dataset.from_parquet(str(source), cache_dir=str(tmp_path / "cache"))
    (tmp_path / "stream").mkdir()
    for split, rows in (("train", range(40)), ("test", range(40, 60))):
        images.select(rows).to_parquet(str(tmp_path / "stream" / f"{split}.parquet"))
    config = tmp_path / "stream.yaml"
    config.write_text(Path(QUICKSTART).read_text().replace("imbalance_factor: 50\n", ""))
    options = {"dataset": tmp_path / "stream", "streaming": True, "head_start": "random"}
    with pytest.raises(ValueError, match=r"set --max_steps, for the 40 images and num_train_epochs 2 to 3\."):
        finetune(str(config), tmp_path, **options, num_train_epochs=2)
    finetune(str(config), tmp_path, **options, max_steps=2)
    assert "40 training and 20 test images, 10 classes" in capsys.readouterr().out
    assert sum(json.loads((tmp_path / "o" / "class_counts.json").read_text()).values()) == 40


def test_the_benchmark_measures_every_pipeline(shared, capsys, monkeypatch):
    arguments = ["--dataset", str(shared / "data" / "imagenet_sample"), "--images", "12", "--repeats", "1"]
    arguments += ["--loader_images", "20", "--num_workers", "1", "--batch_size", "8"]
    monkeypatch.setattr(sys, "argv", ["data_speed.py", *arguments])
    runpy.run_path(str(ROOT / "recipes/benchmarks/data_speed.py"))["main"]()
    text, _, loaders = capsys.readouterr().out.partition("worker processes")
    rows = dict(re.findall(r"^\| ([\w, ]+) \|.* ([\d.]+) \|$", text, flags=re.MULTILINE))
    differences = {name: float(value) for name, value in rows.items()}
    assert differences["evaluation, plain"] == differences["training, plain"] == 0
    assert differences["evaluation, ours"] < 1 and differences["training, ours, full decode"] < 1
    speeds = re.findall(r"^\| (\d) \| ([\d,]+) \| ([\d,]+) \|$", loaders, flags=re.MULTILINE)
    assert [row[0] for row in speeds] == ["0", "1"] and all(int(n) > 0 for row in speeds for n in row[1:])
    assert differences["training, ours"] < 4 and 0 < differences["training, ours, cached"] < 6
