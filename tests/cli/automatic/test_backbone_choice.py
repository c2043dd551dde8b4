"""The choice of a backbone: by what a cache really holds, the class names and the device."""

import json

import pytest
from huggingface_hub import constants

from ft_focalsam.cli.automatic.backbones import (
    KNOWN,
    are_characters,
    are_words,
    choose_backbone,
    describe_backbone,
    is_cached,
)

GIB = 2**30
BY_NAME = {backbone.name: backbone for backbone in KNOWN}
ALL = ("config.json", "preprocessor_config.json", "model.safetensors", "tokenizer.json")
CLIP, CLIP_L, DINO_S, DINO_B = (
    "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14", "facebook/dinov2-small", "facebook/dinov2-base",
)  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A function (name, *files) that puts files of a model into a Hugging Face cache, as the Hub's client does."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(name, *files):
        folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text("0" * 40)
        for file in files:
            blob = folder / "blobs" / file
            blob.parent.mkdir(exist_ok=True)
            blob.write_text("{}")
            link = folder / "snapshots" / ("0" * 40) / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
        return folder

    return put


def choose(*, has_words=True, is_cpu=False, memory=24 * GIB):
    return choose_backbone(has_words=has_words, is_cpu=is_cpu, memory=memory)


def test_the_best_that_is_complete(cache):
    cache(DINO_S, *ALL[:3])
    backbone, why = choose()
    assert backbone.name == DINO_S and why == "the image backbone in the local Hugging Face cache"
    for name in (DINO_B, CLIP, CLIP_L):
        cache(name, *ALL)
    assert choose()[0].name == CLIP_L
    assert choose()[1].startswith("the best for this data of 4 image backbones in the local")
    assert choose(memory=8 * GIB)[0].name == CLIP
    assert choose(is_cpu=True)[0].name == CLIP
    assert choose(has_words=False, is_cpu=True)[0].name == DINO_S
    assert choose(has_words=False, memory=8 * GIB)[0].name == DINO_B
    assert choose(has_words=False)[0].name == CLIP_L  # the only large one


def test_what_is_not_complete_is_not_chosen(cache):
    folder = cache(CLIP, *ALL)
    (folder / "blobs" / "model.safetensors").unlink()  # of a download that was stopped
    cache(DINO_B, "config.json", "preprocessor_config.json", "tokenizer.json")
    cache(CLIP_L, *ALL[:3])  # its text tower has no tokenizer
    cache(DINO_S, *ALL[:2], "pytorch_model.bin")
    assert [backbone.name for backbone in KNOWN if is_cached(backbone)] == [DINO_S]
    folder = cache(DINO_B, "model.safetensors.index.json", "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "blobs" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert not is_cached(BY_NAME[DINO_B])
    cache(DINO_B, "model-2.safetensors")
    assert is_cached(BY_NAME[DINO_B])


@pytest.mark.parametrize(
    ("options", "name", "megabytes"),
    [({}, CLIP, 599), ({"has_words": False}, DINO_B, 346), ({"has_words": False, "is_cpu": True}, DINO_S, 88)],
)
def test_an_empty_cache_without_the_hub_is_told_in_one_sentence(cache, options, name, megabytes):
    with pytest.raises(FileNotFoundError) as told:
        choose(**options)
    text = str(told.value)
    assert "HF_HUB_OFFLINE is set" in text and "--backbone" in text and "\n" not in text
    assert f"`HF_HUB_OFFLINE=0 hf download {name} --exclude '*.h5' '*.msgpack'` ({megabytes} MB)" in text


def test_parameters_are_those_of_the_published_models():
    # vision towers: ViT-S 21 M, ViT-B 85 M and ViT-L 302 M in their blocks
    assert {backbone.parameters // 10**6 for backbone in KNOWN} == {21, 84, 301}
    assert BY_NAME[CLIP].tokens(224) == 197 and BY_NAME[DINO_S].tokens(224) == 257


def test_a_backbone_that_the_user_names_is_described_by_its_configuration(cache, tmp_path):
    tiny = describe_backbone("tiny_clip")
    assert (tiny.width, tiny.depth, tiny.patch, tiny.image_size, tiny.has_text) == (128, 4, 8, 32, True)
    folder = tmp_path / "vit"
    folder.mkdir()
    config = {"model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12, "patch_size": 14, "image_size": 518}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 256}, "crop_size": {"height": 224}}')
    own = describe_backbone(str(folder))
    assert (own.width, own.patch, own.image_size, own.has_text, own.is_described) == (384, 14, 224, False, True)
    hub = cache("me/mine", "config.json") / "blobs" / "config.json"
    hub.write_text(json.dumps({"vision_config": config, "text_config": {}}))
    assert describe_backbone("me/mine").width == 384 and describe_backbone("me/mine").has_text
    unknown = describe_backbone("timm:vit_base_patch16_224.augreg_in21k")
    assert (unknown.width, unknown.image_size, unknown.is_described) == (768, 224, False)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "red fox", "001.Black_footed_Albatross", "Größe"], True),
        (["n01440764", "n01443537"], False),
        (["0", "1", "2"], False),
        (["class_1", "class_2", "class_3"], False),
        (["猫", "犬"], False),
        (["A1", "B2"], False),
    ],
)
def test_whether_class_names_are_words(names, expected):
    assert are_words(names) == expected


def test_whether_classes_are_characters():
    assert are_characters(["0", "1", "a"]) and are_characters(["zero", "Nine"])
    assert not are_characters(["0", "cat"])
