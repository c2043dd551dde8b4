"""What cannot be exported: one sentence each, and nothing on the disk."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from export.tiny import build, processor
from transformers import CLIPImageProcessor

from ft_focalsam.base.files import new_folder
from ft_focalsam.cli.main import main
from ft_focalsam.data.preprocessing import read_preprocessing
from ft_focalsam.export import TARGETS, export_onnx, export_open_clip, export_transformers
from ft_focalsam.export.class_vectors import CLASS_VECTORS, class_vectors
from ft_focalsam.export.onnx_export import run_graph
from ft_focalsam.export.preprocessing import to_image_processor, to_json, to_open_clip
from ft_focalsam.models import HEADS

ROOT = Path(__file__).resolve().parents[2]
CROP_OF_LARGER = CLIPImageProcessor(size={"shortest_edge": 10}, crop_size={"height": 8, "width": 8})

# (export, backbone, of `build`, sentence)
REFUSED = {
    "cosine": (export_transformers, "vit", {"head": "cosine"}, "head is 'cosine', .*; train with head linear, or exp"),
    "layer_norm": (
        export_transformers,
        "vit",
        {"head": "layer_norm"},
        "head is 'layer_norm', and an image classifier",
    ),
    "mean of vit": (
        export_transformers,
        "vit",
        {"features": "mean"},
        "reads the features mean of .*, and ViTForImageClassification reads others; train with backbone_features cls",
    ),
    "usual of clip": (
        export_transformers,
        "clip",
        {},
        "reads the features that are usual of .*CLIPForImageClassification reads others; .* backbone_features mean",
    ),
    "dinov3": (export_transformers, "dinov3_vit", {}, r"no image classifier for .* \(dinov3_vit\); export to onnx\."),
    "open_clip": (export_transformers, "open_clip", {}, r"no image classifier for .*; export to open_clip or onnx\."),
    "adapters": (export_transformers, "vit", {"tuning": "adaptformer"}, "'adaptformer', which cannot be folded"),
    "two heads": (export_transformers, "timm_distilled", {}, "in timm is a .* and not one linear layer; export to on"),
    "size of a trunk": (
        export_open_clip,
        "open_clip_timm",
        {"image_size": 64},
        "image_size is 64, which an open",
    ),
    "no towers": (export_open_clip, "vit", {}, "is no CLIP with two towers.*; export to transformers or onnx"),
    "one tower": (export_open_clip, "deep_clip_vision_model", {}, "is no CLIP with two towers"),
    "mean of clip": (export_open_clip, "clip", {"features": "mean"}, "reads the features mean, .*; train without"),
    "prompts": (export_open_clip, "open_clip", {"tuning": "vpt_deep"}, "'prompts', which cannot be folded"),
    "crop": (
        export_open_clip,
        "open_clip",
        {},
        r"resized to 10 pixels \(bicubic\) and cropped to \(8, 8\), and open_",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(backbones, tmp_path, case):
    export, backbone, options, sentence = REFUSED[case]
    model = build(backbones[backbone], **options)
    with pytest.raises(ValueError, match=sentence):
        export(model, tmp_path / "out", image_processor=CROP_OF_LARGER)
    assert not list(tmp_path.iterdir())


def test_other_activations_are_refused_by_open_clip(backbones, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    source = ROOT / "ft_focalsam" / "assets" / "tiny_clip"
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "relu"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="activations quick_gelu and relu, and open_clip knows"):
        export_open_clip(build(str(folder)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        "ft_focalsam.export.onnx_export.find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(ValueError, match=rf"needs the package {package}.*pip install 'ft-focalsam\[onnx\]'"):
        export_onnx(build("tiny_clip"), tmp_path / "out")


def test_nothing_is_left_of_an_export_that_fails(backbones, tmp_path, monkeypatch):
    build_vit = TARGETS["vit"]

    def build_another(model):
        target = build_vit(model)
        target.classifier.bias.data += 1
        return target

    monkeypatch.setitem(TARGETS, "vit", build_another)
    with pytest.raises(ValueError, match=r"ViTForImageClassification made of the classifier gives .* differs by 1 "):
        export_transformers(build(backbones["vit"]), tmp_path / "out", image_processor=processor())
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_is_left_alone(backbones, tmp_path):
    (tmp_path / "note").write_text("mine")
    model = build(backbones["vit"])
    for export in (export_transformers, export_open_clip, export_onnx):
        for output in (tmp_path, tmp_path / "note"):
            with pytest.raises(FileExistsError, match="exists and is not an empty folder; choose another one"):
                export(model, output)
    assert (tmp_path / "note").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as path:
        (path / "new").write_text("")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["new"]


@pytest.mark.parametrize("head", HEADS)
def test_class_vectors_give_the_logits_of_the_head(head):
    torch.manual_seed(0)
    model = build("tiny_clip", head=head)
    features = 3 * torch.randn(7, model.config.feature_size) + 1
    with torch.no_grad():
        torch.testing.assert_close(class_vectors(model).logits(features), model.head(features), atol=1e-5, rtol=1e-5)


def test_a_head_that_is_no_class_vectors_is_refused(tmp_path, monkeypatch):
    monkeypatch.delitem(CLASS_VECTORS, "cosine")
    with pytest.raises(ValueError, match="head is 'cosine', which is not one vector a class; export to onnx"):
        export_open_clip(build("tiny_clip", head="cosine"), tmp_path / "out")


def test_preprocessing_in_other_terms():
    squash = CLIPImageProcessor(
        size={"height": 12, "width": 12}, do_center_crop=False, resample=2, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    preprocessing = read_preprocessing(squash, image_size=10)
    assert read_preprocessing(to_image_processor(preprocessing)) == preprocessing
    assert to_open_clip(preprocessing) == {
        "size": [10, 10],
        "mean": pytest.approx([0.5] * 3),
        "std": pytest.approx([0.25] * 3),
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    assert to_json(preprocessing)["resize"] == {"height": 10, "width": 10}
    assert to_json(preprocessing)["center_crop"] is None


def test_a_graph_of_one_batch_size_is_refused(tmp_path):
    images = onnx.helper.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, [2, 3, 8, 8])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [2, 3, 8, 8])
    nodes = [onnx.helper.make_node("Identity", ["pixel_values"], ["logits"])]
    graph = onnx.helper.make_graph(nodes, "fixed", [images], [logits])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="takes batches of 2 images only, as a module"):
        run_graph(tmp_path / "model.onnx", torch.zeros(2, 3, 8, 8))


# ---- the recipe ----


def _recipe(*arguments):
    main(["export", *map(str, arguments)])


def test_recipe_writes_a_folder_and_says_how_to_use_it(tmp_path, capfd):
    build("tiny_clip", "lora", head="cosine").save_pretrained(tmp_path / "run")
    capfd.readouterr()
    _recipe(tmp_path / "run", "--format", "open_clip", "--output", tmp_path / "out")
    expected = f"The classifier is in {tmp_path}/out. To use it: the lines in {tmp_path}/out/README.md\n"
    assert capfd.readouterr().out == expected
    assert {"README.md", "open_clip_model.safetensors", "classifier.safetensors", "classifier.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_recipe_gives_one_sentence_for_what_cannot_be(tmp_path):
    build("tiny_clip", "lora", head="cosine").save_pretrained(tmp_path / "run")
    for arguments, sentence in (
        ((tmp_path / "run", "--format", "transformers"), "Error: The head is 'cosine'"),
        ((tmp_path / "gone", "--format", "onnx"), "Error: The classifier '.*gone' does not exist; check the path"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            _recipe(*arguments, "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"Error: The output '.*run' exists"):
        _recipe(tmp_path / "gone", "--format", "onnx", "--output", tmp_path / "run")
    assert not (tmp_path / "out").exists()
