"""Saved classifiers that are damaged or made to do harm, and backbones that bring code."""

import json

import pytest

from ft_focalsam import LongTailClassifier, apply_tuning
from ft_focalsam.models import load_image_processor


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model = LongTailClassifier.from_backbone("tiny_clip", ["a", "b"])
    apply_tuning(model, "lora")
    model.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write(files, folder, name, **changes):
    for file, content in files.items():
        (folder / file).write_bytes(content)
    (folder / name).write_text(json.dumps({**json.loads(files[name]), **changes}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("feature_size", 2**40), ("feature_size", "64"), ("feature_size", True), ("head_scale", 0),
        ("image_size", 10**9), ("backbone", None), ("backbone_dtype", "load"), ("prompt_names", [1]),
        ("inserted", {"format": 2, "modules": [3]}), ("id2label", {"0": "a", "7": "b"}), ("id2label", [1]),
        ("num_labels", 10**9),
    ],
)  # fmt: skip
def test_a_key_of_another_kind_is_refused_by_name(key, value, saved, tmp_path):
    write(saved, tmp_path, "config.json", **{key: value})
    key = "id2label" if key == "num_labels" else key
    with pytest.raises(
        ValueError, match=f"The key '{key}' in config.json of '{tmp_path}' (cannot be|does not number)"
    ):
        LongTailClassifier.from_pretrained(tmp_path)


def test_usual_class_names_that_transformers_leaves_out_load_back(tmp_path):
    LongTailClassifier.from_backbone("tiny_clip", ["LABEL_0", "LABEL_1"]).save_pretrained(tmp_path)
    assert LongTailClassifier.from_pretrained(tmp_path).config.num_labels == 2


def test_an_adapter_that_names_a_module_to_import_is_refused(saved, tmp_path):
    write(saved, tmp_path, "adapter_config.json", megatron_config={}, megatron_core="antigravity")
    with pytest.raises(ValueError, match=r"The field 'megatron_config' in adapter_config.json of '.*' is \{\}, which"):
        LongTailClassifier.from_pretrained(tmp_path)


def test_weights_that_are_cut_short_are_refused_with_the_folder(saved, tmp_path):
    write(saved, tmp_path, "config.json")
    (tmp_path / "model.safetensors").write_bytes(saved["model.safetensors"][:-10])
    with pytest.raises(ValueError, match=rf"'{tmp_path}' holds no classifier that can be loaded \(SafetensorError: "):
        LongTailClassifier.from_pretrained(tmp_path)


def test_pickled_weights_are_refused_with_the_remedy(saved, tmp_path):
    write(saved, tmp_path, "config.json")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch boom'\ntR.")
    message = r"its weights as a pickle \(pytorch_model.bin\), .* is not read; have them saved as safetensors"
    with pytest.raises(FileNotFoundError, match=message):
        LongTailClassifier.from_pretrained(tmp_path)


def test_a_backbone_with_code_of_its_own_is_refused_and_its_code_not_run(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}})
    )
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="brings its own code, which is not run; choose a model whose architecture"):
        LongTailClassifier.from_backbone(str(tmp_path), ["a", "b"])
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "code.Processor"}})
    )
    with pytest.raises(ValueError, match=r"trust_remote_code|own code"):
        load_image_processor(str(tmp_path))
    assert not (tmp_path / "ran").exists()
