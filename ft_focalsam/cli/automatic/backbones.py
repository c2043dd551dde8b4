"""Which backbone: the best of those known that is complete in the Hugging Face cache, else one to download."""

import json
import math
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from ...base.finding import check_repository

LARGE_NEEDS = 12 * 2**30  # bytes of device memory below which ViT-L is left to those who ask for it
BASE_WIDTH = 768
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model")


@dataclass(frozen=True)
class Backbone:
    """A vision transformer, as far as choices depend on it.

    Args:
        name (`str`): As `--backbone` takes it.
        width, depth (`int`): Size of a token; number of blocks.
        patch (`int`): Side of a patch in pixels.
        image_size (`int`): Side in pixels of the images that it is made for.
        has_text (`bool`): Whether class names can start its head.
        megabytes (`int`): Size of its weights, for those that are proposed for download.
        is_described (`bool`): Whether these numbers are its own, and not a guess.
    """

    name: str
    width: int
    depth: int
    patch: int
    image_size: int
    has_text: bool = False
    megabytes: int = 0
    is_described: bool = True

    @property
    def parameters(self) -> int:
        """Weights in its blocks, 12 width^2 each."""
        return 12 * self.width**2 * self.depth

    def tokens(self, image_size: int) -> int:
        """Patches of an image, and the class token."""
        return (image_size // self.patch) ** 2 + 1


# The best first: those without a text tower by linear probes, those with one by zero-shot accuracy on ImageNet, as
# published (DINOv3, DINOv2, SigLIP 2, CLIP: arXiv 2508.10104, 2304.07193, 2502.14786, 2103.00020). Of equal width,
# those without a text tower come first, and are passed over where class names are words.
KNOWN = (
    Backbone("facebook/dinov3-vitl16-pretrain-lvd1689m", 1024, 24, 16, 224),
    Backbone("facebook/dinov3-vitb16-pretrain-lvd1689m", 768, 12, 16, 224),
    Backbone("facebook/dinov3-vits16-pretrain-lvd1689m", 384, 12, 16, 224),
    Backbone("facebook/dinov2-large", 1024, 24, 14, 224),
    Backbone("facebook/dinov2-base", 768, 12, 14, 224, megabytes=346),
    Backbone("facebook/dinov2-small", 384, 12, 14, 224, megabytes=88),
    Backbone("google/siglip2-large-patch16-256", 1024, 24, 16, 256, has_text=True),
    Backbone("google/siglip-large-patch16-256", 1024, 24, 16, 256, has_text=True),
    Backbone("openai/clip-vit-large-patch14", 1024, 24, 14, 224, has_text=True),
    Backbone("google/siglip2-base-patch16-224", 768, 12, 16, 224, has_text=True),
    Backbone("google/siglip-base-patch16-224", 768, 12, 16, 224, has_text=True),
    Backbone("openai/clip-vit-base-patch16", 768, 12, 16, 224, has_text=True, megabytes=599),
    Backbone("openai/clip-vit-base-patch32", 768, 12, 32, 224, has_text=True),
    Backbone("google/vit-large-patch16-224-in21k", 1024, 24, 16, 224),
    Backbone("google/vit-base-patch16-224-in21k", 768, 12, 16, 224),
)
_BY_NAME = {backbone.name: backbone for backbone in KNOWN}
FOR_WORDS, FOR_OTHERS, FOR_CPU = "openai/clip-vit-base-patch16", "facebook/dinov2-base", "facebook/dinov2-small"


def choose_backbone(*, has_words: bool, is_cpu: bool, memory: int) -> tuple[Backbone, str]:
    """A backbone, and why.

    Where class names are words, one with a text tower is preferred: its head starts at zero-shot accuracy, which rare
    classes profit from most. On an accelerator large ones are preferred, if it has 12 GiB; on a CPU small ones.

    Args:
        has_words (`bool`): Whether class names are words.
        is_cpu (`bool`): Whether there is no accelerator.
        memory (`int`): Bytes of the device.

    Raises:
        FileNotFoundError: If none is in the cache and the Hub cannot be asked; says what to download.
    """

    def rank(backbone: Backbone) -> tuple:
        too_large = backbone.width > BASE_WIDTH and memory < LARGE_NEEDS
        return has_words and not backbone.has_text, too_large, backbone.width if is_cpu else -backbone.width

    cached = sorted((backbone for backbone in KNOWN if is_cached(backbone)), key=rank)
    if cached:
        best = cached[0]
        of = f"the best for this data of {len(cached)} image backbones" if len(cached) > 1 else "the image backbone"
        return best, f"{of} in the local Hugging Face cache{_why_text(best, has_words)}"
    missing = _BY_NAME[FOR_WORDS if has_words else FOR_CPU if is_cpu else FOR_OTHERS]
    try:
        check_repository("The backbone", missing.name)
    except FileNotFoundError as error:
        offline = constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else "the Hub cannot be reached"
        raise FileNotFoundError(
            f"No backbone is complete in the Hugging Face cache '{constants.HF_HUB_CACHE}', and {reason}; run "
            f"`{'HF_HUB_OFFLINE=0 ' if offline else ''}hf download {missing.name} --exclude '*.h5' '*.msgpack'` "
            f"({missing.megabytes:,} MB) where there is a connection, or give one by --backbone, as the folder of a "
            "model of transformers (or tiny_clip, which ships with the package, to try the command)."
        ) from error
    return missing, f"none is in the local cache, so it is downloaded ({missing.megabytes:,} MB)"


def _why_text(backbone: Backbone, has_words: bool) -> str:
    if backbone.has_text and has_words:
        return "; its text tower knows the class names"
    return "" if has_words else "; class names are not words, so no text tower is needed"


def is_cached(backbone: Backbone) -> bool:
    """Whether all that is loaded of a model of the Hub is in the local cache."""
    name = backbone.name
    needed = ["config.json", "preprocessor_config.json"]
    if not all(_cached(name, file) for file in needed):
        return False
    if backbone.has_text and not any(_cached(name, file) for file in _TOKENIZERS):
        return False
    if any(_cached(name, file) for file in _WEIGHTS):
        return True
    index = _cached(name, "model.safetensors.index.json")
    if index is None:
        return False
    shards = set(json.loads(Path(index).read_text(encoding="utf-8")).get("weight_map", {}).values())
    return bool(shards) and all(_cached(name, shard) for shard in shards)


def _cached(name: str, file: str) -> str | None:
    path = try_to_load_from_cache(name, file, cache_dir=constants.HF_HUB_CACHE)
    return path if isinstance(path, str) else None


def describe_backbone(name: str) -> Backbone:
    """What choices have to know of a backbone that the user named, from its configuration where that is on this
    machine; of others, those of a ViT-B/16."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    folder = files("ft_focalsam") / "assets" / name if name == "tiny_clip" else Path(name).expanduser()
    config = _read(folder / "config.json", _cached_of(name, "config.json"))
    vision = config.get("vision_config", config)
    width, depth = vision.get("hidden_size", BASE_WIDTH), vision.get("num_hidden_layers", 12)
    patch = vision.get("patch_size", 16)
    if not all(isinstance(value, int) and value > 0 for value in (width, depth, patch)):
        width, depth, patch = BASE_WIDTH, 12, 16
    processor = _read(
        folder / "preprocessor_config.json", folder / "processor_config.json",
        _cached_of(name, "preprocessor_config.json"),
    )  # fmt: skip
    has_text = "text_config" in config or name.startswith("open_clip:")
    size = _image_size(processor, vision)
    return Backbone(name, width, depth, patch, size, has_text=has_text, is_described=bool(config))


def _cached_of(name: str, file: str) -> Path | None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or os.path.exists(name):
        return None
    path = _cached(name, file)
    return None if path is None else Path(path)


def _read(*paths) -> dict:
    path = next((path for path in paths if path is not None and path.is_file()), None)
    content = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _image_size(processor: dict, vision: dict) -> int:
    """Side of what the image processor gives, else of what the model is made for."""
    processor = processor.get("image_processor", processor)
    for size in (processor.get("crop_size"), processor.get("size"), vision.get("image_size")):
        if isinstance(size, dict):
            size = size.get("height", size.get("shortest_edge"))
        if isinstance(size, int) and size > 0:
            return size
    return 224


def are_words(class_names: Sequence[str]) -> bool:
    """Whether class names say what the images show, so that a text tower can make use of them.

    They do where the Latin letters alone, without digits, tell nearly all classes apart, and are 3 or more: class_1,
    n01440764, 007 and 猫 are no words to CLIP; bobcat, 001.Black_footed_Albatross and Möwe are.
    """
    letters = [" ".join(filter(_is_latin, re.findall(r"[^\W\d_]+", name))).lower() for name in class_names]
    needed = math.ceil(0.9 * len(letters))
    long_enough = sum(len(text.replace(" ", "")) >= 3 for text in letters)
    return long_enough >= needed and len(set(letters)) >= needed


def _is_latin(word: str) -> bool:
    return all(unicodedata.name(letter, "").startswith("LATIN") for letter in word)


def are_characters(class_names: Sequence[str]) -> bool:
    """Whether classes are letters or digits, whose mirror images are other characters or none."""
    digits = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}
    return all(len(name) == 1 or name.lower() in digits for name in class_names)
