"""Saved models, adapters and backbones that are made to run code, to hang, or to exhaust the memory."""

import json
import os
import time

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor

from ft_focalsam import LongTailClassifier, TuningOptions, apply_tuning
from ft_focalsam.data import eval_transform
from ft_focalsam.models import load_backbone, load_classifier, load_image_processor, load_text_tower
from ft_focalsam.models.backbones import resolve_name

HANGS = r"(\w+\.?)+!"  # doubles the time of `re` with every character


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model = LongTailClassifier.from_backbone("tiny_clip", ["a", "b"])
    apply_tuning(model, "lora")
    model.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(saved, tmp_path):
    for name, content in saved.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def change(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def backbone(tmp_path):
    """A copy of the tiny CLIP to be changed."""
    (tmp_path / "clip").mkdir()
    for name in os.listdir(resolve_name("tiny_clip")):
        with open(os.path.join(resolve_name("tiny_clip"), name), "rb") as file:
            (tmp_path / "clip" / name).write_bytes(file.read())
    return tmp_path / "clip"


# ---- weights ----


@pytest.mark.parametrize("file", ["model.safetensors", "adapter_model.safetensors"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (lambda t: t.to(torch.int64), "holds int64, not float32"), (lambda t: t > 0, "holds bool, not float32"),
        (lambda t: t.to(torch.complex64), "holds complex64, not float32"),
        (lambda t: t / 0, "has entries that are no finite numbers"),
        (lambda t: torch.full_like(t, float("inf")), "has entries that are no finite numbers"),
    ],
    ids=["int64", "bool", "complex64", "nan", "inf"],
)  # fmt: skip
def test_weights_of_another_kind_are_refused_by_name(file, kind, message, folder):
    tensors = load_file(folder / file)
    name = sorted(tensors)[0]
    save_file({**tensors, name: kind(tensors[name])}, folder / file)
    with pytest.raises(ValueError, match=rf"The tensor '{name}' in '{folder / file}' {message}; train the classifier"):
        LongTailClassifier.from_pretrained(folder)


def test_a_backbone_without_finite_weights_is_refused(backbone):
    tensors = load_file(backbone / "model.safetensors")
    name = next(name for name in tensors if name.startswith("vision_model") and name.endswith("fc1.bias"))
    save_file({**tensors, name: tensors[name] / 0}, backbone / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"The weight '.*fc1.bias' of the backbone '.*/clip' has entries that are no"):
        load_backbone(str(backbone))


@pytest.mark.parametrize("header", [(2**40).to_bytes(8, "little"), (2**63).to_bytes(8, "little")])
def test_a_header_that_claims_gigabytes_is_refused(header, folder):
    (folder / "model.safetensors").write_bytes(header + (folder / "model.safetensors").read_bytes()[8:])
    with pytest.raises(ValueError, match=r"holds no classifier that can be loaded \(SafetensorError: .*header"):
        LongTailClassifier.from_pretrained(folder)


def test_tensors_that_claim_gigabytes_are_refused(folder):
    table = {"head.weight": {"dtype": "F32", "shape": [2**20, 2**18], "data_offsets": [0, 2**40]}}
    text = json.dumps(table).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 64)
    with pytest.raises(ValueError, match=r"holds no classifier that can be loaded \(SafetensorError: "):
        LongTailClassifier.from_pretrained(folder)


# ---- patterns ----


def test_a_pattern_that_never_ends_is_matched_in_no_time(folder):
    change(folder / "adapter_config.json", target_modules=HANGS)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"target_modules is '.*', which fits no layer; list the names of the layers"):
        LongTailClassifier.from_pretrained(folder)
    model = LongTailClassifier.from_backbone("tiny_clip", ["a", "b"])
    options = TuningOptions(peft_config={"peft_type": "LORA", "target_modules": HANGS})
    with pytest.raises(ValueError, match=r"peft_config with peft_type 'LORA' does not fit .* which fits no layer"):
        apply_tuning(model, "peft", options)
    with pytest.raises(ValueError, match="fits no layer"):
        model.wrap_backbone(LoraConfig(target_modules=HANGS))
    assert time.monotonic() - started < 20


def test_an_exclusion_that_never_ends_is_matched_too(folder):
    change(folder / "adapter_config.json", exclude_modules=HANGS)
    LongTailClassifier.from_pretrained(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers_pattern", HANGS), ("layers_pattern", [HANGS]), ("modules_to_save", [HANGS]),
        ("rank_pattern", {HANGS: 4}), ("alpha_pattern", {HANGS: 4}), ("target_modules", "a" * 1001),
    ],
)  # fmt: skip
def test_where_a_name_belongs_no_pattern_is_read(field, value, folder):
    change(folder / "adapter_config.json", **{field: value})
    with pytest.raises(ValueError, match=f"The field '{field}' in adapter_config.json of '.*' is .*, which"):
        LongTailClassifier.from_pretrained(folder)
    fields = {"peft_type": "LORA", "target_modules": ["q_proj"], field: value}
    model = LongTailClassifier.from_backbone("tiny_clip", ["a", "b"])
    with pytest.raises(ValueError, match=f"The field '{field}' in peft_config is .*, which"):
        apply_tuning(model, "peft", TuningOptions(peft_config=fields))


@pytest.mark.parametrize("pattern", ["(a", "(?=a)b", r"(.)\1"])
def test_what_the_matcher_does_not_know_is_said(pattern):
    model = LongTailClassifier.from_backbone("tiny_clip", ["a", "b"])
    with pytest.raises(ValueError, match=r"target_modules is '.*', no regular expression that is read"):
        model.wrap_backbone(LoraConfig(target_modules=pattern))


def test_a_pattern_tunes_what_it_tuned_and_loads_back(tmp_path):
    pattern = r".*\.(0|1)\.self_attn\.(q|v)_proj"
    tuned = {}
    for targets in (pattern, ["0.self_attn.q_proj", "0.self_attn.v_proj", "1.self_attn.q_proj", "1.self_attn.v_proj"]):
        model = LongTailClassifier.from_backbone("tiny_clip", ["a", "b"])
        apply_tuning(model, "peft", TuningOptions(peft_config={"peft_type": "LORA", "target_modules": targets}))
        tuned[str(targets)] = [name for name, p in model.named_parameters() if p.requires_grad]
    first, second = tuned.values()
    assert first == second and len(first) > 4
    model.save_pretrained(tmp_path)
    loaded = LongTailClassifier.from_pretrained(tmp_path)
    assert [name for name, p in loaded.named_parameters() if p.requires_grad] == first


# ---- adapters and configurations that lead to code or to other models ----


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("megatron_config", {"tensor_model_parallel_size": 2}), ("r", 10**9), ("layer_replication", [[0, 2]] * 50),
        ("init_lora_weights", "pissa_niter_100000"), ("lora_alpha", float("nan")),
        ("corda_config", {"cache_file": "/etc/passwd"}),
    ],
)  # fmt: skip
def test_fields_that_load_import_or_allocate_are_refused(field, value, folder):
    change(folder / "adapter_config.json", **{field: value})
    with pytest.raises(ValueError, match=f"The field '{field}' in adapter_config.json of '.*' is .*, which"):
        LongTailClassifier.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["XLORA", "SHADOW", "PROMPT_TUNING", "NOTHING", None, ["LORA"]])
def test_kinds_of_adapters_that_load_others_are_refused(kind, folder):
    change(folder / "adapter_config.json", peft_type=kind, adapters={"a": "user/name"})
    with pytest.raises(ValueError, match=r"The field 'peft_type' in adapter_config.json of '.*' is .*; set it to"):
        LongTailClassifier.from_pretrained(folder)


def test_what_is_not_of_a_classifier_is_left_out_of_its_configuration(folder):
    """Attention kernels of the Hub among it, whose code transformers would fetch and run."""
    keys = {"attn_implementation": "user/kernel", "_attn_implementation": "user/kernel", "auto_map": {"a": "b.c"}}
    keys |= {"quantization_config": {"quant_method": "awq"}, "trust_remote_code": True, "forward": 3}
    change(folder / "config.json", **keys)
    config = LongTailClassifier.from_pretrained(folder).config
    assert config._attn_implementation == "sdpa"
    assert not [key for key in keys if getattr(config, key, None) == keys[key]]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_implementation", "user/kernel"), ("_attn_implementation", "flash_attention_2"),
        ("attn_implementation", {"": "user/kernel"}), ("quantization_config", {"quant_method": "bitsandbytes"}),
        ("trust_remote_code", True), ("configuration_files", ["config.9.json"]), ("transformers_weights", "x.bin"),
        ("dtype", "load"), ("custom_pipelines", {"a": {"impl": "b.C"}}), ("num_labels", 10**9), ("use_kernels", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("inside", [None, "vision_config"])
def test_keys_of_a_backbone_that_load_code_are_refused(key, value, inside, backbone):
    content = json.loads((backbone / "config.json").read_text())
    (content if inside is None else content[inside])[key] = value
    (backbone / "config.json").write_text(json.dumps(content))
    for use in (load_backbone, load_classifier):
        with pytest.raises(ValueError, match=f"The key '{key}' in the config.json of '.*/clip' is .*, which"):
            use(str(backbone))


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 10**7), ("hidden_size", 2**20), ("image_size", 10**6), ("patch_size", 2**40)],
)
def test_sizes_of_a_backbone_are_bounded(key, value, backbone):
    content = json.loads((backbone / "config.json").read_text())
    content["vision_config"][key] = value
    (backbone / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"The key '{key}' in the config.json of '.*/clip' is {value}, which is not"):
        load_backbone(str(backbone))


def test_class_names_are_no_keys(backbone):
    """A class may be called like one."""
    change(backbone / "config.json", label2id={"trust_remote_code": 1, "layers": 5000}, id2label={"0": "dtype"})
    load_backbone(str(backbone))


def test_an_adapter_beside_a_backbone_is_not_loaded_on_the_way(backbone, folder):
    (backbone / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    with pytest.raises(ValueError, match=r"has an adapter of peft \(adapter_config.json\) beside its model"):
        load_backbone(str(backbone))


def test_code_that_a_tokenizer_brings_is_not_run(tmp_path):
    """open_clip hands what a configuration says on to transformers, `trust_remote_code` among it."""
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", None]}})
    )
    text = {"context_length": 8, "vocab_size": 99, "width": 16, "heads": 2, "layers": 1, "hf_tokenizer_name": "x"}
    text["tokenizer_kwargs"] = {"trust_remote_code": True}
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    content = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"The key 'trust_remote_code' in the open_clip_config.json of '.*' is True"):
        load_backbone(f"open_clip:{tmp_path}")
    del text["tokenizer_kwargs"]
    vision["timm_model_name"] = "hf-hub:user/name"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"The key 'timm_model_name' in the open_clip_config.json of '.*' is"):
        load_backbone(f"open_clip:{tmp_path}")
    assert not (tmp_path / "ran").exists()


# ---- sizes ----


@pytest.mark.parametrize(
    "changes",
    [
        {"id2label": {str(n): "x" for n in range(2**20 + 1)}},
        {"feature_size": 2**20, "id2label": {str(n): "x" for n in range(300)}},
    ],
    ids=["classes", "weights"],
)
@pytest.mark.slow
def test_a_head_that_no_memory_has_room_for_is_refused(changes, folder):
    change(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=r"asks for a head of [\d,]+ classes and [\d,]+ features, which no data set"):
        LongTailClassifier.from_pretrained(folder)


@pytest.mark.parametrize(
    "settings", [{"layers": [0], "width": 10**9, "scale": 1.0}, {"layers": [0] * 5000, "width": 1}]
)
def test_inserted_modules_that_no_memory_has_room_for_are_refused(settings, folder):
    note = {"format": 2, "modules": [{"name": "adaptformer", "settings": settings}]}
    change(folder / "config.json", inserted=note)
    with pytest.raises(ValueError, match=r"The key 'inserted' in config.json of '.*' cannot be"):
        LongTailClassifier.from_pretrained(folder)


def test_class_names_with_control_characters_are_refused(folder):
    change(folder / "config.json", id2label={"0": "a", "1": "b\x1b[2J"})
    with pytest.raises(ValueError, match=r"The key 'id2label' in config.json of '.*' cannot be") as error:
        LongTailClassifier.from_pretrained(folder)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 100_000, "width": 100_000}, "do_center_crop": False},
        {"size": {"shortest_edge": 224}, "crop_size": {"height": 100_000, "width": 100_000}},
        {"size": {"shortest_edge": 10**9}}, {"size": {"height": -1, "width": 3}, "do_center_crop": False},
        {"image_std": [0, 0, 0]}, {"image_mean": "x"}, {"rescale_factor": 0}, {"image_mean": [float("nan")] * 3},
        {"resample": 99},
    ],
    ids=str,
)  # fmt: skip
def test_an_image_processor_out_of_bounds_is_refused(settings):
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"CLIPImageProcessor (resizes or crops to|has no usable).*; correct its"):
        eval_transform(CLIPImageProcessor(**settings))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("file", "use"),
    [
        ("config.json", load_backbone),
        ("config.json", load_classifier),
        ("processor_config.json", load_image_processor),
        ("tokenizer_config.json", load_text_tower),
    ],
)
def test_files_of_a_backbone_that_nest_without_end_are_refused(file, use, backbone):
    (backbone / file).write_text('{"a":' * 50_000)
    with pytest.raises(ValueError, match=f"The {file} of '.*/clip' is not valid JSON"):
        use(str(backbone))
