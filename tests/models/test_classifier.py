"""`LongTailClassifier` for every backbone, head and tuning method: what trains, what is saved, what is loaded back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from running import python
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPVisionModelWithProjection, Dinov2Model, ViTModel

from ft_focalsam.models import LongTailClassifier, init_head, load_image_processor
from ft_focalsam.tuning import TuningOptions, apply_tuning

FAMILIES = ("vit", "dinov2", "clip")
HEADS = ("linear", "cosine")
INSERTED = ("adaptformer", "adapter", "vpt_shallow", "vpt_deep")
TUNINGS = ("lora", "linear_probe", "full", *INSERTED)
NEW = (".lora_", ".adapter.", ".scale.", ".prompts.")  # in the names of what a tuning method adds
NAMES = ("owl", "red_fox", "newt", "moth", "carp")

every_family = pytest.mark.parametrize("family", FAMILIES)
every_head = pytest.mark.parametrize("head", HEADS)
every_tuning = pytest.mark.parametrize("tuning", TUNINGS)

# Their gradient is zero: a bias on the keys shifts all scores of a query alike, and nothing is masked.
WITHOUT_GRADIENT = ("key.bias", "k_proj.bias", "mask_token")


def make_images(size: int = 16) -> torch.Tensor:
    return torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(1))


def build(backbone: Path, *, head: str = "cosine", tuning: str = "lora", **options) -> LongTailClassifier:
    torch.manual_seed(2)
    model = LongTailClassifier.from_backbone(str(backbone), NAMES, head=head, **options)
    apply_tuning(model, tuning, TuningOptions(lora_rank=2, lora_alpha=4, adapter_width=4, prompt_length=3))
    return model


def train(model: LongTailClassifier, *, size: int = 16) -> LongTailClassifier:
    """Two steps: the first cannot move what is in front of a weight that starts at 0, as the A of LoRA."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(make_images(size), labels=torch.tensor([0, 1, 2, 3, 4, 0])).loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def logits_of(model: LongTailClassifier, *, size: int = 16) -> torch.Tensor:
    return model(make_images(size)).logits


def assert_same(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def is_trained(name: str, tuning: str) -> bool:
    return name.startswith("head.") or tuning == "full" or any(part in name for part in NEW)


# ---- the model itself ----


@every_family
def test_features_are_those_of_plain_transformers(backbones, family):
    path = backbones[family]
    with torch.no_grad():
        actual = build(path).eval().features(make_images())
        if family == "clip":
            expected = CLIPModel.from_pretrained(path).get_image_features(make_images()).pooler_output
        elif family == "dinov2":
            expected = Dinov2Model.from_pretrained(path)(make_images()).pooler_output
        else:
            expected = ViTModel.from_pretrained(path, add_pooling_layer=False)(make_images()).last_hidden_state[:, 0]
    assert_same(actual, expected)


def test_loss_is_the_mean_cross_entropy_of_the_logits(backbones):
    labels = torch.tensor([4, 0, 1, 1, 2, 3])
    output = build(backbones["vit"], head="linear").eval()(make_images(), labels=labels)
    expected = -output.logits.double().log_softmax(dim=1)[torch.arange(6), labels].mean()
    torch.testing.assert_close(output.loss.double(), expected, rtol=1e-6, atol=0)
    assert build(backbones["vit"])(make_images()).loss is None


@every_tuning
@every_family
def test_two_steps_move_what_is_tuned_and_nothing_else(backbones, family, tuning):
    model = build(backbones[family], tuning=tuning)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    expected = {name for name in before if is_trained(name, tuning) and not name.endswith(WITHOUT_GRADIENT)}
    assert {name for name in moved if not name.endswith(WITHOUT_GRADIENT)} == expected
    assert all(is_trained(name, tuning) for name in moved)


# ---- saving and loading ----


@every_tuning
@every_head
@every_family
def test_round_trip_gives_the_same_logits(backbones, tmp_path, family, head, tuning):
    model = build(backbones[family], head=head, tuning=tuning, head_scale=10.0)
    assert getattr(model.head, "scale", 10.0) == 10.0
    untrained = logits_of(model.eval())
    expected = logits_of(train(model))
    assert (expected - untrained).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    loaded = LongTailClassifier.from_pretrained(tmp_path)
    assert not loaded.training
    assert_same(logits_of(loaded), expected)
    assert loaded.config.id2label == dict(enumerate(NAMES))
    assert type(loaded.head) is type(model.head)


@every_tuning
@every_family
def test_a_loaded_model_trains_and_saves_what_was_tuned(backbones, tmp_path, family, tuning):
    model = train(build(backbones[family], tuning=tuning))
    model.save_pretrained(tmp_path / "first")
    loaded = LongTailClassifier.from_pretrained(tmp_path / "first")
    trainable = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in model.named_parameters() if p.requires_grad}
    expected = logits_of(train(loaded))
    loaded.save_pretrained(tmp_path / "second")
    assert_same(logits_of(LongTailClassifier.from_pretrained(tmp_path / "second")), expected)


SAVED = [
    f"{family}-{tuning}"
    for family in FAMILIES
    for tuning in ("lora", *INSERTED, "sparse,norms", "ssf,bias,last_blocks")
]


LOADING = """
import sys, numpy, torch
from ft_focalsam import LongTailClassifier

root, *names = sys.argv[1:]
images = torch.from_numpy(numpy.load(root + "/images.npy"))
for name in names:
    logits = LongTailClassifier.from_pretrained(f"{root}/{name}")(images).logits
    numpy.save(f"{root}/{name}.npy", logits.detach().numpy())
"""


@pytest.fixture(scope="module")
def fresh_process(backbones, tmp_path_factory) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By family and tuning: the logits of a saved model here, and those a new Python process gets from its folder."""
    root = tmp_path_factory.mktemp("saved")
    expected = {}
    for name in SAVED:
        family, tuning = name.split("-")
        model = train(build(backbones[family], tuning=tuning))
        expected[name] = logits_of(model)
        model.save_pretrained(root / name)
    np.save(root / "images.npy", make_images().numpy())
    (root / "loading.py").write_text(LOADING)
    result = python(root / "loading.py", root, *SAVED)
    assert result.returncode == 0, result.stderr[-3000:]
    return {name: (torch.from_numpy(np.load(root / f"{name}.npy")), expected[name]) for name in SAVED}


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.slow
def test_a_fresh_process_gives_the_same_logits(fresh_process, name):
    assert_same(*fresh_process[name])


@every_tuning
@every_family
def test_folder_holds_what_was_trained_and_no_more(backbones, tmp_path, family, tuning):
    model = train(build(backbones[family], tuning=tuning))
    model.save_pretrained(tmp_path)
    files = {"config.json", "model.safetensors"}
    if tuning == "lora":
        files |= {"adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == files
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == {name for name in model.state_dict() if is_trained(name, tuning)}
    if tuning != "full":
        size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
        assert size < 0.2 * (backbones[family] / "model.safetensors").stat().st_size


def test_weights_given_as_state_dict_are_saved_in_place_of_the_models_own(backbones, tmp_path):
    model = train(build(backbones["clip"]))
    state = {name: value + 0.5 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved and all(torch.equal(value, state[name]) for name, value in saved.items())
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    own = {f"backbone.{name}".replace(".weight", ".default.weight"): value for name, value in adapter.items()}
    assert own and all(torch.equal(value, state[name]) for name, value in own.items())


def test_only_the_main_process_writes(backbones, tmp_path):
    build(backbones["vit"]).save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own use
@every_family
def test_peft_loads_the_folder_onto_the_plain_backbone(backbones, tmp_path, family):
    model = train(build(backbones[family]))
    model.save_pretrained(tmp_path)
    if family == "clip":
        plain = CLIPVisionModelWithProjection.from_pretrained(backbones[family])
    elif family == "dinov2":
        plain = Dinov2Model.from_pretrained(backbones[family])
    else:
        plain = ViTModel.from_pretrained(backbones[family], add_pooling_layer=False)
    with torch.no_grad():
        tuned = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
        output = tuned(pixel_values=make_images())
        features = output.image_embeds if family == "clip" else output.last_hidden_state[:, 0]
        assert_same(features, model.features(make_images()))
        with tuned.disable_adapter():
            output = tuned(pixel_values=make_images())
            untuned = output.image_embeds if family == "clip" else output.last_hidden_state[:, 0]
    assert (features - untuned).abs().max() > 1e-3


@every_tuning
@every_family
def test_bfloat16_backbone_trains_in_float32(backbones, tmp_path, family, tuning):
    model = build(backbones[family], tuning=tuning, dtype="bfloat16")
    for name, parameter in model.named_parameters():
        expected = torch.float32 if is_trained(name, tuning) else torch.bfloat16
        assert (parameter.dtype, parameter.requires_grad) == (expected, is_trained(name, tuning)), name
    untrained = logits_of(model.eval())
    expected = logits_of(train(model))
    assert expected.dtype == torch.float32
    assert (expected - untrained).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    loaded = LongTailClassifier.from_pretrained(tmp_path)
    assert {n: p.dtype for n, p in loaded.named_parameters()} == {n: p.dtype for n, p in model.named_parameters()}
    assert_same(logits_of(loaded), expected)


@every_family
def test_other_image_size_works_and_round_trips(backbones, tmp_path, family):
    model = train(build(backbones[family], image_size=32), size=32)
    model.save_pretrained(tmp_path)
    loaded = LongTailClassifier.from_pretrained(tmp_path)
    assert loaded.config.image_size == 32
    assert_same(logits_of(loaded, size=32), logits_of(model, size=32))


@every_family
def test_image_size_of_the_backbone_itself_changes_nothing(backbones, family):
    same = build(backbones[family], image_size=16).eval()
    assert_same(logits_of(same), logits_of(build(backbones[family]).eval()))


def test_backbone_that_has_moved_is_found_with_the_override(backbones, tmp_path):
    shutil.copytree(backbones["dinov2"], tmp_path / "old")
    model = train(build(tmp_path / "old"))
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(FileNotFoundError, match=rf"'{tmp_path}/old' does not exist.*backbone="):
        LongTailClassifier.from_pretrained(tmp_path / "saved")
    loaded = LongTailClassifier.from_pretrained(tmp_path / "saved", backbone=str(tmp_path / "new"))
    assert_same(logits_of(loaded), logits_of(model))
    loaded.save_pretrained(tmp_path / "saved again")
    adapter = json.loads((tmp_path / "saved again" / "adapter_config.json").read_text())
    assert loaded.config.backbone == adapter["base_model_name_or_path"] == str(tmp_path / "new")


@pytest.mark.filterwarnings("error")
def test_embedded_backbone_is_saved_by_its_name(tmp_path):
    train(build(Path("tiny_clip"), image_size=16)).save_pretrained(tmp_path)
    for name, key in (("config.json", "backbone"), ("adapter_config.json", "base_model_name_or_path")):
        assert json.loads((tmp_path / name).read_text())[key] == "tiny_clip"
    assert LongTailClassifier.from_pretrained(tmp_path).config.backbone == "tiny_clip"


@every_family
def test_image_processor_is_the_backbones_own(backbones, family):
    image = np.full((16, 16, 3), 255, dtype=np.uint8)
    pixels = load_image_processor(str(backbones[family]))(image, return_tensors="pt")["pixel_values"]
    mean, std = (0.48145466, 0.26862954) if family == "clip" else (0.5, 0.5)
    torch.testing.assert_close(pixels[0, 0], torch.full((16, 16), (1 - mean) / std), rtol=1e-5, atol=0)


# ---- errors: what was given, where, and what to do ----


def test_unknown_head(backbones):
    with pytest.raises(ValueError, match=r"Unknown head 'softmax'; choose one of .*linear, cosine"):
        LongTailClassifier.from_backbone(str(backbones["vit"]), NAMES, head="softmax")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_head_scale_out_of_range(backbones, scale):
    with pytest.raises(ValueError, match=rf"head_scale is {scale}; set it above 0"):
        LongTailClassifier.from_backbone(str(backbones["vit"]), NAMES, head_scale=scale)


@pytest.mark.parametrize("dtype", ["float33", "int8"])
def test_unknown_dtype(backbones, dtype):
    with pytest.raises(ValueError, match=rf"dtype .* is '{dtype}'; choose one of float32, bfloat16, float16"):
        LongTailClassifier.from_backbone(str(backbones["vit"]), NAMES, dtype=dtype)


def test_unknown_tuning_method(backbones):
    with pytest.raises(ValueError, match=r"Unknown tuning method 'lroa'; choose one of .*lora"):
        build(backbones["vit"], tuning="lroa")


@pytest.mark.parametrize("place", ["absolute", "relative"])
def test_missing_backbone_folder(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    name = str(tmp_path / "gone") if place == "absolute" else "./gone"
    with pytest.raises(FileNotFoundError, match=rf"The backbone folder '{name}' does not exist; check the path"):
        build(name)


@pytest.mark.parametrize("place", ["absolute", "relative", "home"])
def test_missing_classifier_folder(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    name = {"absolute": str(tmp_path / "gone"), "relative": "runs/cifar/gone", "home": "~/runs/gone"}[place]
    with pytest.raises(FileNotFoundError, match=rf"'{name}'.*check the path"):
        LongTailClassifier.from_pretrained(name)


@every_head
@pytest.mark.parametrize("family", ["vit", "dinov2", "clip_vision"])
def test_text_start_without_text_tower(backbones, family, head):
    model = build(backbones[family], head=head, tuning="linear_probe")
    with pytest.raises(ValueError, match=rf"'{backbones[family]}'.*no text tower.*head_start to class_means, lin"):
        init_head(model, "text", batches=list)


@every_family
def test_lora_target_that_does_not_exist(backbones, family):
    model = LongTailClassifier.from_backbone(str(backbones[family]), NAMES)
    with pytest.raises(ValueError, match=r"lora_target_modules names \['qkv'\].*choose among .*(v_proj|value)"):
        apply_tuning(model, "lora", TuningOptions(lora_target_modules=["qkv"]))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_folder_without(backbones, tmp_path, name):
    build(backbones["vit"]).save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"'{tmp_path}' has no {name}; give a folder that save_pretrained"):
        LongTailClassifier.from_pretrained(tmp_path)


def cosine_for_linear(backbones, folder: Path) -> str:
    return save_two(backbones["vit"], folder, config={"head": "linear"}, weights={"head": "cosine"})


def linear_for_cosine(backbones, folder: Path) -> str:
    return save_two(backbones["vit"], folder, config={"head": "cosine"}, weights={"head": "linear"})


def adapter_left_out(backbones, folder: Path) -> str:
    save_two(backbones["vit"], folder, config={"tuning": "lora"}, weights={"tuning": "linear_probe"})
    return "lora_A"


def other_rank(backbones, folder: Path) -> str:
    build(backbones["vit"]).save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 2', '"r": 3'))
    return "lora_A"


def save_two(backbone: Path, folder: Path, *, config: dict, weights: dict) -> str:
    """The configuration of one classifier beside the weights of another; returns where they differ."""
    build(backbone, **config).save_pretrained(folder)
    build(backbone, **weights).save_pretrained(folder / "other")
    shutil.copy(folder / "other" / "model.safetensors", folder)
    return "head.bias"


@pytest.mark.parametrize("save", [cosine_for_linear, linear_for_cosine, adapter_left_out, other_rank])
def test_weights_that_do_not_fit(backbones, tmp_path, save):
    name = save(backbones, tmp_path)
    with pytest.raises(ValueError, match=rf"weights in '{tmp_path}' do not fit the model at '.*{name}.*another head"):
        LongTailClassifier.from_pretrained(tmp_path)


def test_weights_of_another_backbone(backbones, tmp_path):
    build(backbones["vit"], tuning="full").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"weights in '{tmp_path}' do not fit the model at '.*another backbone"):
        LongTailClassifier.from_pretrained(tmp_path, backbone=str(backbones["clip"]))


@pytest.mark.parametrize("names", [[], 10, "cat", [0, 1]], ids=["none", "number", "text", "numbers"])
def test_class_names_are_a_list_of_texts(names):
    with pytest.raises(ValueError, match=r"class_names is .*; give a list of one name per class, in the order of the"):
        LongTailClassifier.from_backbone("tiny_clip", names)


def test_a_class_name_twice():
    with pytest.raises(ValueError, match="class_names has 'a' 2 times; give each class its own name"):
        LongTailClassifier.from_backbone("tiny_clip", ["a", "b", "a"])
