"""The recipe that evaluates a classifier, as users run it: real processes, real files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import python
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel

from ft_focalsam import LongTailClassifier
from ft_focalsam.cli import evaluate as evaluate_images
from ft_focalsam.data import eval_transform, load_image_data
from ft_focalsam.evaluation import Predictions, compare, fit_temperature, mcnemar
from ft_focalsam.models import init_head, load_image_processor

pytestmark = pytest.mark.slow

COLORS = {"größer": (200, 30, 30), "ein Stück": (30, 200, 30), "<b>": (30, 30, 200)}


def evaluate(*arguments):
    result = python("ft-focalsam", "evaluate", *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def main(*arguments):
    """The recipe in this process, which saves the start of another one."""
    return evaluate_images.main(list(map(str, arguments)))


def write_images(folder, names, colors, each=6):
    rng = np.random.default_rng(len(names))
    for name, color in zip(names, colors, strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = np.clip(np.array(color) + rng.integers(-90, 90, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number} ü.png")
    return folder


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@torch.no_grad()
def logits_of(model, processor, images):
    transform = eval_transform(processor)
    return model.eval()(pixel_values=torch.stack([transform(image) for image in images])).logits


def test_zero_shot_by_class_names(tmp_path):
    template = "a photo of the digit {}."
    output = evaluate(
        "tiny_clip",
        "--datasets",
        "digits",
        "--prompt_templates",
        template,
        "--output_dir",
        tmp_path,
    )
    data = load_image_data("digits")
    model = LongTailClassifier.from_backbone("tiny_clip", data.class_names)
    init_head(model, "text", templates=[template])
    expected = logits_of(model, load_image_processor("tiny_clip"), data.test["image"]).log_softmax(dim=1)
    saved = Predictions.load(tmp_path / "predictions" / "digits.safetensors")
    np.testing.assert_allclose(saved.log_probabilities, expected, atol=1e-4)
    assert saved.labels.tolist() == data.test["labels"]
    (record,) = read(tmp_path / "metrics.json").values()
    is_hit = expected.argmax(dim=1).numpy() == saved.labels
    assert record["accuracy"] == pytest.approx(is_hit.mean())
    assert record["accuracy"] > 0.85
    low, high = record["intervals"]["accuracy"]
    assert low < record["accuracy"] < high
    assert "many" not in record  # nobody knows what it was trained on
    assert f"{100 * is_hit.mean():.1f}" in output and str(tmp_path) in output
    assert {"report.html", "report.md", "report_images", "per_class"} <= {path.name for path in tmp_path.iterdir()}


def test_our_checkpoint_on_a_folder_with_a_class_missing_against_an_earlier_evaluation(tmp_path):
    names = [*COLORS]
    torch.manual_seed(0)
    model = LongTailClassifier.from_backbone("tiny_clip", names)
    run = tmp_path / "runs" / "größe"
    model.save_pretrained(run)
    with (run / "per_class.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["name", "train_images"], *zip(names, [300, 50, 5], strict=True)])
    present = ["<b>", "größer"]
    folder = write_images(tmp_path / "Bilder ü", present, [COLORS[name] for name in present])
    common = [run, "--datasets", folder, "--batch_size", 5]
    main(*common, "--views", "flip", "--logit_adjustment_tau", 2, "--output_dir", tmp_path / "earlier")
    output = evaluate(
        *common, "--compare", tmp_path / "earlier", "--seeds", tmp_path / "earlier", "--output_dir", tmp_path / "now"
    )
    assert "logits restricted to its 2 of the model's 3 classes" in output
    (path,) = (tmp_path / "now" / "predictions").iterdir()
    now, earlier = Predictions.load(path), Predictions.load(tmp_path / "earlier" / "predictions" / path.name)
    assert now.class_names == ["größer", "<b>"]
    for row, name in enumerate(now.ids):
        image = Image.open(tmp_path / name)
        assert now.class_names[now.labels[row]] == Path(name).parent.name
        both = [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
        own, mirrored = logits_of(model, load_image_processor("tiny_clip"), both)[:, [0, 2]]
        np.testing.assert_allclose(now.log_probabilities[row], own.log_softmax(dim=0), atol=1e-4)
        adjusted = (own + mirrored) / 2 - 2 * torch.tensor([300, 5]).log()
        np.testing.assert_allclose(earlier.log_probabilities[row], adjusted.log_softmax(dim=0), atol=1e-3)
    *_, record = read(tmp_path / "now" / "metrics.json").values()
    assert {"many", "few"} <= set(record) and "medium" not in record
    with (tmp_path / "now" / "per_class" / path.with_suffix(".csv").name).open(encoding="utf-8", newline="") as file:
        assert [(row["name"], row["group"]) for row in csv.DictReader(file)] == [("größer", "many"), ("<b>", "few")]
    page = (tmp_path / "now" / "report.html").read_text(encoding="utf-8")
    test = compare(earlier.outcomes(), now.outcomes())
    assert f"p = {mcnemar(earlier.outcomes().is_hit, now.outcomes().is_hit):.3f} (McNemar" in page
    assert f"{100 * test.differences['accuracy']:+.1f}".lstrip("-+") in page and "Over 2 seeds" in page


def save_vit(folder, names):
    torch.manual_seed(1)
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "intermediate_size": 16}
    config = ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, id2label=dict(enumerate(names)))
    model = ViTForImageClassification(config)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


def test_a_classifier_of_transformers_on_test_sets_named_by_synsets(tmp_path):
    synsets = ["n01440764", "n02012849", "n01622779", "n03126707"]
    model = save_vit(tmp_path / "vit", ["tench", "crane", "great grey owl", "crane"])
    (tmp_path / "index.json").write_text(json.dumps({i: [synset] for i, synset in enumerate(synsets)}))
    colors = [*COLORS.values(), (120, 120, 20)]
    whole = write_images(tmp_path / "whole", [synsets[i] for i in (3, 1, 0, 2)], colors, each=8)
    part = write_images(tmp_path / "part", [synsets[3], synsets[1]], colors[:2], each=8)
    output = evaluate(
        tmp_path / "vit", "--datasets", whole, part, "--class_index", tmp_path / "index.json",
        "--temperature_fraction", 0.5, "--output_dir", tmp_path / "out",
    )  # fmt: skip
    records = read(tmp_path / "out" / "metrics.json")
    assert [record["images"] for record in records.values()] == [16, 8]
    assert "restricted to its 2 of the model's 4 classes" in output
    paths = sorted((tmp_path / "out" / "predictions").iterdir())
    saved = {path.stem.rpartition("_")[2]: Predictions.load(path) for path in paths}
    assert saved["part"].class_names == ["crane", "crane"]
    for name, kept in (("whole", [0, 1, 2, 3]), ("part", [1, 3])):
        files = sorted((tmp_path / name).glob("*/*.png"))
        logits = logits_of(model, ViTImageProcessor.from_pretrained(tmp_path / "vit"), map(Image.open, files))[:, kept]
        labels = np.array([kept.index(synsets.index(file.parent.name)) for file in files])
        scored = [i for file in saved[name].ids for i, f in enumerate(files) if "/".join(f.parts[-3:]) == file]
        held_out = np.setdiff1d(np.arange(len(files)), scored)
        temperature = fit_temperature(logits[held_out].numpy(), labels[held_out])
        expected = (logits[scored] / temperature).log_softmax(dim=1)
        np.testing.assert_allclose(saved[name].log_probabilities, expected, atol=2e-3)
        assert saved[name].labels.tolist() == labels[scored].tolist()
        assert f"temperature {temperature:.2f}" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{vit}", "--views", "six_crop"], "Unknown kind of views 'six_crop'; choose one of center"),
        (["{vit}", "--average", "median"], "Unknown average 'median'"),
        (["{vit}", "--temperature_fraction", "1.5"], "temperature_fraction is 1.5; set it between 0 and 1"),
        (["{vit}", "--num_workers", "-1"], "num_workers is -1; set it to 0 or more"),
        (["{vit}", "--few_shot_threshold", "200"], "few_shot_threshold is 200 and many_shot_threshold 100; set 0 <="),
        (["{vit}", "--datasets", "digits", "--split", "tst"], "has a test split of its own; drop --split tst"),
        (["{vit}", "--split", "tst"], "has no split 'tst'; set --split to one of 'train'"),
        (["{vit}", "--compare", "/does/not/exist"], "The folder '/does/not/exist' to compare with does not exist"),
        (["{vit}", "--datasets", "/does/not/exist"], "The data set folder '/does/not/exist' does not exist"),
        (["/does/not/exist"], "The model folder '/does/not/exist' does not exist"),
        (["{vit}"], "The class 'a' of '{folder}' is none of the model's 2 classes"),
        (
            ["{vit}", "--datasets", "{pets}", "{images}"],
            "The class 'a' of '{folder}' is none of the model's 2 classes",
        ),
        (["tiny_clip", "--datasets", "{images}", "{synsets}"], "a class index that has its name"),
        (["{backbone}"], "has no classification head and no text tower"),
        (["{headless}"], "has no weights for 'classifier.bias', which would stay random"),
        (["tiny_clip", "--logit_adjustment_tau", "1"], "give --train_counts"),
        (["tiny_clip", "--compare", "{out}"], "is where this evaluation writes to; set another --output_dir"),
        (["tiny_clip", "--compare", "{vit}"], "has no predictions for"),
        (["tiny_clip", "--datasets", "{images}", "{images}"], "give each set once"),
        (["tiny_clip", "--class_index", "{images}"], "cannot be read as JSON"),
        (["tiny_clip", "--train_counts", "{counts}"], "lack 'b' and 0 others of the model's 2 classes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_one_sentence_before_predicting(arguments, message, tmp_path):
    images = write_images(tmp_path / "images", ["a", "b"], list(COLORS.values())[:2], each=2)
    save_vit(tmp_path / "vit", ["cat", "dog"])
    model = save_vit(tmp_path / "headless", ["cat", "dog"])
    ViTModel(model.config).save_pretrained(tmp_path / "backbone")
    if "{headless}" in arguments:
        config = (tmp_path / "headless" / "config.json").read_text()
        ViTModel(model.config).save_pretrained(tmp_path / "headless")
        (tmp_path / "headless" / "config.json").write_text(config)
    (tmp_path / "counts.json").write_text('{"a": 3}')
    write_images(tmp_path / "pets", ["cat", "dog"], list(COLORS.values())[:2], each=2)
    write_images(tmp_path / "synsets", ["n01440764", "n01443537"], list(COLORS.values())[:2], each=2)
    values = {name: tmp_path / name for name in ("vit", "backbone", "headless", "images", "pets", "synsets", "out")}
    values |= {"counts": tmp_path / "counts.json", "folder": "/".join(images.parts[-2:])}
    arguments = [argument.format(**values) for argument in arguments]
    if "--datasets" not in arguments:
        arguments += ["--datasets", str(images)]
    with pytest.raises((ValueError, OSError)) as error:
        main(*arguments, "--output_dir", tmp_path / "out")
    assert message.format(**values) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
