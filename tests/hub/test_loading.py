"""Loading from the Hub by name: classifier, adapter, images; the card's own lines; what is refused."""

import csv
import itertools
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from ft_focalsam import ImageClassifier, LongTailClassifier
from ft_focalsam.cli import predict
from ft_focalsam.data import eval_transform
from ft_focalsam.models import load_backbone, load_image_processor

pytestmark = pytest.mark.slow

PREDICT = predict.main


@pytest.fixture(scope="module")
def expected(pushed, images):
    """Logits of the folder that was pushed."""
    transform = eval_transform(load_image_processor(pushed.folder))
    with torch.no_grad():
        return LongTailClassifier.from_pretrained(pushed.folder)(torch.stack([transform(i) for i in images])).logits


def test_by_name_in_a_fresh_process_the_logits_are_the_same_bit_for_bit(hub, client, pushed, expected, tmp_path):
    """With an empty cache, so that every byte comes over HTTP."""
    client.forget()
    code = f"""
import torch
from ft_focalsam import LongTailClassifier
from ft_focalsam.data import eval_transform, load_image_data
from transformers import AutoImageProcessor

images = [load_image_data("digits").test[row]["image"] for row in range(0, 480, 60)]
transform = eval_transform(AutoImageProcessor.from_pretrained("alice/trained"))
model = LongTailClassifier.from_pretrained("alice/trained")
with torch.no_grad():
    torch.save(model(torch.stack([transform(image) for image in images])).logits, {str(tmp_path / "logits.pt")!r})
"""
    before = len(hub.requests)
    result = client(code=code)
    assert result.status == 0, result.output[-3000:]
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), expected)
    fetched = [path for method, path, status in hub.requests[before:] if method == "GET" and status == 200]
    assert any(path.endswith("/model.safetensors") for path in fetched)
    assert not [path for path in fetched if path.endswith((".html", ".png"))]


def test_the_adapter_is_peft_s_own(client, pushed, images, tmp_path):
    code = f"""
import torch
from peft import PeftModel
from ft_focalsam.models import load_backbone

torch.manual_seed(0)
pixels = torch.randn(2, 3, 32, 32)
backbone = PeftModel.from_pretrained(load_backbone("tiny_clip"), "alice/trained")
with torch.no_grad():
    torch.save(backbone(pixel_values=pixels).image_embeds, {str(tmp_path / "features.pt")!r})
"""
    assert client(code=code).status == 0, client.said[-1][-3000:]
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = LongTailClassifier.from_pretrained(pushed.folder).backbone(pixel_values=pixels).image_embeds
        untuned = load_backbone("tiny_clip")(pixel_values=pixels).image_embeds
    assert torch.equal(torch.load(tmp_path / "features.pt", weights_only=True), features)
    assert not torch.equal(features, untuned)


def test_the_lines_of_the_card_run_as_they_are(client, pushed):
    blocks = re.findall(r"```python\n(.*?)```", (pushed.folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2 and all("alice/trained" in block for block in blocks)
    for block in blocks:
        assert len([line for line in block.splitlines() if line]) <= 10
    result = client(code=blocks[0] + '\nassert type(model).__name__ == "LongTailClassifier"')
    assert result.status == 0, result.output[-3000:]
    lines = [line for line in result.output.splitlines() if re.fullmatch(r"\d\.\d{3}  \w+", line)]
    scores = [line.split()[0] for line in lines]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)
    result = client(code=blocks[1] + '\nassert "Peft" in type(backbone).__name__')
    assert result.status == 0, result.output[-3000:]


def test_a_branch_and_a_commit_load_by_revision(hub, client, folder):
    from safetensors.torch import load_file, save_file

    assert client("ft-focalsam", "push", folder, "alice/revised").status == 0
    commit = hub.repositories["model", "alice/revised"].branches["main"]
    tensors = load_file(folder / "model.safetensors")
    changed = {name: value + name.startswith("head.") for name, value in tensors.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    assert client("ft-focalsam", "push", folder, "alice/revised", "--revision", "next").status == 0
    code = f"""
from ft_focalsam import ImageClassifier, LongTailClassifier

old, new = (LongTailClassifier.from_pretrained("alice/revised", revision=r) for r in ({commit!r}, "next"))
first, second = (next(model.head.parameters()) for model in (old, new))
assert (second - first).abs().min() > 0.9, (first, second)
third = next(ImageClassifier.from_pretrained("alice/revised", revision="next").model.head.parameters())
assert (third == second).all()
"""
    assert client(code=code).status == 0, client.said[-1][-3000:]


@pytest.mark.parametrize("load", ["LongTailClassifier", "ImageClassifier"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alice/nothing", "was not found here or on the Hub; check the name"),
        ("alice/trained@gone", "revision"),
        ("alice/pickled", "weights as a pickle .pytorch_model.bin.* safetensors"),
    ],
    ids=["no repository", "no such revision", "pickled weights"],
)
def test_what_cannot_be_loaded_says_why_in_one_sentence(hub, client, pushed, load, name, message):
    if ("model", "alice/pickled") not in hub.repositories:
        repository = hub.make("model", "alice/pickled")
        files = {name: (pushed.folder / name).read_bytes() for name in ("config.json", "preprocessor_config.json")}
        files["pytorch_model.bin"] = b"\x80\x04 a pickle"
        repository.commit({path: hub.keep(content) for path, content in files.items()}, "main")
    name, _, revision = name.partition("@")
    before = len(hub.requests)
    code = f"""
from ft_focalsam import ImageClassifier, LongTailClassifier
try:
    {load}.from_pretrained({name!r}, revision={revision or None!r})
except FileNotFoundError as error:
    print("SENTENCE", error)
"""
    result = client(code=code)
    assert result.status == 0, result.output[-3000:]
    assert re.search(f"SENTENCE .*{message}", result.last)
    assert not [path for _, path, _ in hub.requests[before:] if path.endswith(".bin")]


def test_a_private_repository_loads_for_its_owner_only(client, pushed):
    client.forget()
    code = 'from ft_focalsam import LongTailClassifier\nLongTailClassifier.from_pretrained("alice/trained")'
    result = client(code=code, token="")
    assert result.status == 1 and "if it is private, log in by `hf auth login`" in result.last
    assert client(code=code).status == 0


def test_code_in_a_repository_is_never_run(hub, client, pushed, tmp_path):
    files = {name: (pushed.folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    files |= {"adapter_config.json": (pushed.folder / "adapter_config.json").read_bytes()}
    ran = tmp_path / "ran"
    processor = json.loads((pushed.folder / "preprocessor_config.json").read_text())
    processor |= {"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "mine.Mine"}}
    files["preprocessor_config.json"] = json.dumps(processor).encode()
    files["mine.py"] = f"open({str(ran)!r}, 'w')".encode()
    hub.make("model", "alice/code").commit({path: hub.keep(content) for path, content in files.items()}, "main")
    result = client(code='from ft_focalsam import ImageClassifier\nImageClassifier.from_pretrained("alice/code")')
    assert result.status == 1 and not ran.exists()


# ---- images ----


def test_guesses_are_the_softmax_of_the_classifiers_logits(pushed, images, expected):
    classify = ImageClassifier.from_pretrained(pushed.folder)
    names = list(LongTailClassifier.from_pretrained(pushed.folder).config.id2label.values())
    probabilities = expected.double().softmax(dim=1).numpy()
    guesses = classify(images, top_k=10, batch_size=3)
    for row, each in zip(probabilities, guesses, strict=True):
        order = np.argsort(-row)
        assert [guess["label"] for guess in each] == [names[index] for index in order]
        assert [guess["score"] for guess in each] == pytest.approx(row[order], abs=1e-6)
    assert classify(images[0], top_k=2) == classify([images[0]], top_k=99)[0][:2]
    with pytest.raises(ValueError, match="top_k is 0; set it to 1 or more"):
        classify(images[0], top_k=0)


def test_images_are_read_as_in_training(pushed, images, tmp_path):
    """A path, its text and the image itself; grey, CMYK, and turned by EXIF."""
    classify = ImageClassifier.from_pretrained(pushed.folder)
    image = images[1].convert("RGB").resize((64, 64))
    image.save(tmp_path / "ä b.png")
    upright = classify(image)
    assert classify(tmp_path / "ä b.png") == classify(str(tmp_path / "ä b.png")) == upright
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    assert classify(tmp_path / "turned.png") == upright
    image.convert("CMYK").save(tmp_path / "cmyk.tiff")
    image.convert("L").save(tmp_path / "grey.png")
    for name in ("cmyk.tiff", "grey.png"):
        assert classify(tmp_path / name, top_k=1)[0]["label"] == upright[0]["label"]
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(ValueError, match=r"broken.jpg' cannot be read"):
        classify([tmp_path / "ä b.png", tmp_path / "broken.jpg"])


def test_a_folder_of_images_by_a_name_on_the_hub(client, pushed, images, tmp_path):
    folder = tmp_path / "Bilder zum Prüfen"
    for index, image in enumerate(images):
        (folder / f"={index % 2} Größe").mkdir(parents=True, exist_ok=True)
        image.save(folder / f"={index % 2} Größe" / f"{index} x.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "=0 Größe" / "kaputt ä.JPG").write_bytes(b"\xff\xd8\xff nothing")
    output = tmp_path / "out" / "predictions.csv"
    options = ("--output", output, "--top_k", "3", "--batch_size", "4")
    command = ("ft-focalsam", "predict", "alice/trained", folder, *options)
    result = client(*command, "--on_bad_image", "fail")
    assert result.status == 1 and not output.exists()
    assert result.last.startswith("Error: The image '") and "kaputt ä.JPG' cannot be read" in result.last
    result = client(*command)
    assert result.status == 0, result.output[-3000:]
    assert "Skipped: The image '" in result.output and "kaputt ä.JPG" in result.output
    assert "9/9" in result.output  # the progress bar
    assert result.last == f"9 images are in {output}; 1 of them could not be read, see its column error."
    with output.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    (broken,) = [row for row in rows if row["error"]]
    assert (
        broken["path"] == "'=0 Größe/kaputt ä.JPG" and broken["label_1"] == "" and "cannot be read" in broken["error"]
    )
    rows.remove(broken)
    guesses = ImageClassifier.from_pretrained(pushed.folder)(images, top_k=3)
    # no formula for a spreadsheet
    assert [row["path"] for row in rows] == sorted(f"'={i % 2} Größe/{i} x.png" for i in range(8))
    for row in rows:
        each = guesses[int(row["path"].partition("/")[2][0])]
        assert [row[f"label_{rank}"] for rank in (1, 2, 3)] == [guess["label"] for guess in each]
        assert [float(row[f"probability_{rank}"]) for rank in (1, 2, 3)] == pytest.approx(
            [guess["score"] for guess in each], abs=1e-5
        )
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_without_an_end_is_classified_as_it_comes(pushed, images, num_workers):
    """What is read ahead is a few batches."""
    classify = ImageClassifier.from_pretrained(pushed.folder)
    expected = classify(images, top_k=1)
    taken = itertools.count()
    endless = (images[index % len(images)] for index in taken)
    results = classify.stream(endless, top_k=1, batch_size=2, num_workers=num_workers)
    for index, guesses in enumerate(itertools.islice(results, 30)):
        assert guesses[0]["label"] == expected[index % len(images)][0]["label"]
    assert next(taken) <= 30 + 2 * 2 * (num_workers + 1)


def test_cells_that_a_spreadsheet_would_run_are_text(pushed, images, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    names = ["=HYPERLINK(1).png", "+1.png", "-1.png", "@SUM(1).png", "a=1.png"]
    for name in names:
        images[0].save(folder / name)
    assert PREDICT([str(pushed.folder), str(folder), "--output", str(tmp_path / "out.csv")]) == 5
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert sorted(paths) == sorted([*(f"'{name}" for name in names[:4]), names[4]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "{model} {images}s --output o.csv",
            r"folder '.*/imagess' does not exist; check the path. Did you mean '.*images'",
        ),
        ("{model} {images}/a.png --output o.csv", "'.*/a.png' is no folder; give the folder that holds the images"),
        ("{model} {empty} --output o.csv", "There is no image in '.*/empty'"),
        ("{model} {images} --output {empty}", "--output is '.*/empty', a folder; set it to a CSV file in it"),
        ("{model} {images} --output {images}/a.png/o.csv", "cannot be written to .*; set --output to another one"),
        (
            "{model} {images} --output o.csv --device gpu",
            "device is 'gpu', which PyTorch does not know; set it",
        ),
        (
            "{model} {images} --output o.csv --device cpu:x",
            "device is 'cpu:x', which PyTorch does not know; set it",
        ),
        ("{model} {images} --output o.csv --batch_size 0", "--batch_size is 0; set it to 1 or more"),
        ("{model}x {images} --output o.csv", r"The model folder '.*x' does not exist; check the path. Did you mean '"),
        ("{images} {images} --output o.csv", "The model '.*images' could not be read: it has no config.json; give"),
    ],
    ids=[
        "folder",
        "file",
        "empty",
        "output",
        "output_in_a_file",
        "device",
        "device_number",
        "batch",
        "model",
        "no_model",
    ],
)
def test_what_cannot_be_predicted_is_told_before_the_model_is_loaded(
    arguments, message, pushed, images, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("images", "empty"):
        (tmp_path / name).mkdir()
    images[0].save(tmp_path / "images" / "a.png")
    values = {"model": pushed.folder, "images": tmp_path / "images", "empty": tmp_path / "empty"}
    with pytest.raises((ValueError, OSError), match=message):
        PREDICT([word.format(**values) for word in arguments.split()])
    assert not list(tmp_path.glob("*.csv"))


def test_what_is_no_image_and_no_classifier(pushed, images):
    with pytest.raises(TypeError, match=r"An image is a ndarray; give paths or PIL images"):
        ImageClassifier.from_pretrained(pushed.folder)([np.asarray(images[0])])
    with pytest.raises(TypeError, match=r"classifier is a str; load one by name with ImageClassifier.from_pretrained"):
        ImageClassifier("user/name")
    with pytest.raises(ValueError, match="'tiny_clip' is a backbone, which tells class_names apart; give these"):
        ImageClassifier.from_pretrained("tiny_clip")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_a_device_that_is_not_here():
    with pytest.raises(ValueError, match="device is 'cuda', and PyTorch finds no such device here; set it to cpu"):
        ImageClassifier.from_pretrained("/does/not/exist", device="cuda")


@pytest.mark.parametrize("recipe", ["predict", "evaluate", "export", "push"])
def test_a_mistyped_folder_is_told_at_once_with_the_nearest(recipe, hub, client, pushed, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(pushed.folder)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    further = {
        "predict": ["images", "--output", "o.csv"],
        "evaluate": ["--datasets", "digits"],
        "export": ["--format", "onnx", "--output", "exported"],
        "push": ["alice/new"],
    }
    code = f"""
import os
from ft_focalsam.cli.main import main
os.chdir({str(tmp_path)!r})
main({[recipe, "runs/quikstart", *further[recipe]]!r})
"""
    before = len(hub.requests)
    result = client(code=code)
    assert len(hub.requests) - before <= 1  # the name might be that of a repository
    assert result.status == 1
    assert re.search(r"^Error: .*'runs/quikstart' .*Did you mean 'runs/quickstart'\?$", result.last)
