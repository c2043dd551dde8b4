"""Damaged and hostile files: configurations, lists of images, saved classifiers. What comes of each is a result, or
one sentence that the recipes print as `Error: ...`; nothing is written anywhere."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from ft_focalsam import FocalSAMTrainingArguments, LongTailClassifier, TuningOptions, apply_tuning
from ft_focalsam.cli.arguments import ModelArguments
from ft_focalsam.cli.config import parse_config
from ft_focalsam.data import DataArguments, load_image_data
from ft_focalsam.trainer.checkpointing import find_fault

pytestmark = pytest.mark.slow

TYPES = (DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments)


def fuzz(examples):
    return settings(
        derandomize=True, deadline=None, max_examples=examples, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],  # to shrink an example takes minutes
    )  # fmt: skip


def snapshot(folder):
    """Every file of a tree with its size and time of change."""
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tree to look after, with the place for the files that are made up in the middle of it."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "secret.png").write_bytes(b"secret")
    (folder / "inner" / "images").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(folder / "inner" / "images" / name)
    os.symlink(folder / "secret.png", folder / "inner" / "images" / "link.png")
    (folder / "inner" / "base.yaml").write_text("rho: 0.1\n")
    model = LongTailClassifier.from_backbone("tiny_clip", ["a", "b", "c"])
    apply_tuning(model, "lora,ssf")
    model.save_pretrained(folder / "inner" / "saved")
    return folder


def attempt(world, use):
    """Use what was made up; an error has to be a sentence, and the tree as it was."""
    before = snapshot(world)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return use()
    except (ValueError, OSError) as error:
        said = str(error)
        assert len(said) > 20 and "\n" not in said.strip(), repr(said)
    finally:
        assert snapshot(world) == before
    return None


scalars = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats() | st.text(max_size=12)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip

# ---- configuration files ----

KEYS = [
    *(
        "rho",
        "tuning",
        "backbone",
        "head_scale",
        "prompt_templates",
        "lora_rank",
        "loss",
        "imbalance_factor",
        "dataset",
    ),
    *("augmentation", "optim_args", "sharpness", "max_steps", "learning_rate", "label_names", "lr_scheduler_kwargs"),
    *("fsdp_config", "accelerator_config", "report_to", "max_nonfinite_steps", "many_shot_threshold", "base", "rhoo"),
]
BASES = ("base.yaml", "made.yaml", "../inner/made.yaml", "/etc/passwd", "images", "..", "", "no.yaml", "base.yaml\0")
pairs = st.dictionaries(st.sampled_from(KEYS), values, max_size=4)
based = st.tuples(pairs, st.sampled_from(BASES)).map(lambda both: {**both[0], "base": both[1]})
yaml_files = (pairs | based | values).map(lambda content: yaml.safe_dump(content).encode())


@fuzz(60)
@given(yaml_files | st.binary(max_size=60) | st.text(alphabet="a:-[]{}!&*#|>'\"\n \t%@`", max_size=40).map(str.encode))
def test_configuration_files(world, content):
    path = world / "inner" / "made.yaml"
    path.write_bytes(content)
    argv = [str(path), "--output_dir", str(world / "inner" / "out")]
    attempt(world, lambda: parse_config(TYPES, argv))


# ---- lists of images ----

NAMES = st.text(max_size=8) | st.sampled_from(
    ("a.png", "b.png", "./a.png", "link.png", "../images/a.png", "../../secret.png", "/etc/passwd", "", " ", "a.png\0")
)
NAMES |= st.sampled_from(("http://localhost/a.png", "images", "A" * 300, "a.png/b", "..", "~/a.png", "a\\b.png"))
LABELS = st.integers(-3, 10**30).map(str) | st.sampled_from(["cat", "", "1.5", "٣", "nan"]) | st.text(max_size=5)
lines = st.lists(st.tuples(NAMES, LABELS).map(" ".join) | st.text(max_size=20), max_size=5).map("\n".join)
tables = st.lists(st.lists(NAMES | LABELS, min_size=1, max_size=4).map(",".join), max_size=5).map(
    lambda rows: "\n".join(["path,label", *rows])
)
rows = st.fixed_dictionaries({}, optional={"path": NAMES | values, "label": LABELS | values, "split": values})
json_rows = st.lists(rows.map(json.dumps) | st.text(max_size=20), max_size=4).map("\n".join)
ids = st.integers(0, 2) | values
inaturalist = st.fixed_dictionaries(
    {},
    optional={
        "images": st.lists(st.fixed_dictionaries({"id": ids}, optional={"file_name": NAMES | values}), max_size=3),
        "annotations": st.lists(st.fixed_dictionaries({"image_id": ids, "category_id": ids}), max_size=3) | values,
        "categories": st.lists(st.fixed_dictionaries({"id": ids, "name": values}) | values, max_size=3),
    },
).map(json.dumps)
lists = st.one_of(
    st.tuples(st.just(".txt"), lines), st.tuples(st.just(".csv"), tables | st.text(max_size=40)),
    st.tuples(st.just(".jsonl"), json_rows), st.tuples(st.just(".json"), inaturalist | values.map(json.dumps)),
)  # fmt: skip


@fuzz(120)
@given(lists)
def test_list_files(world, made):
    suffix, text = made
    path = world / "inner" / f"made{suffix}"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    root = world / "inner" / "images"

    def use():
        data = load_image_data(str(path), image_root=str(root))
        return [Path(record["path"]) for record in data.train.with_format("arrow")[:]["image"].to_pylist()]

    for name in attempt(world, use) or ():
        assert name.resolve().is_relative_to(root.resolve()) and name.is_file()


# ---- saved classifiers ----


def mutated_json(draw, content):
    """A JSON object with some keys taken out, others made up."""
    for key in draw(st.lists(st.sampled_from(sorted(content)), max_size=2)):
        content.pop(key, None)
    content |= draw(st.dictionaries(st.sampled_from(SAVED_KEYS), values, max_size=2))
    return json.dumps(content).encode()


SAVED_KEYS = [
    *("backbone", "backbone_family", "feature_size", "head", "head_scale", "image_size", "backbone_dtype", "inserted"),
    *("id2label", "num_labels", "prompt_templates", "auto_map", "architectures", "torch_dtype", "peft_type", "r"),
    *("target_modules", "lora_alpha", "layers_pattern", "rank_pattern", "modules_to_save", "megatron_config", "bias"),
]


@st.composite
def damages(draw):
    """What to do to one file of a saved classifier: (its name, content -> content, None to remove it)."""
    name = draw(
        st.sampled_from(["config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors"])
    )
    kind = draw(st.sampled_from(["cut", "flip", "header", "json", "remove", "noise"]))
    place, other = draw(st.floats(0, 1)), draw(st.integers(0, 255))

    def damage(content: bytes) -> bytes | None:
        if kind == "cut":
            return content[: int(place * len(content))]
        if kind == "flip":
            at = int(place * (len(content) - 1))
            return content[:at] + bytes([other]) + content[at + 1 :]
        if kind == "header" and name.endswith(".safetensors"):
            size = int.from_bytes(content[:8], "little")
            at = 8 + int(place * size)
            return content[:at] + bytes([other]) + content[at + 1 :]
        if kind == "json" and name.endswith(".json"):
            return mutated_json(draw, json.loads(content))
        return None if kind == "remove" else bytes([other]) * 64

    return name, damage


@fuzz(25)
@given(damages())
def test_saved_classifiers(world, made):
    name, damage = made
    folder = world / "inner" / "made"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world / "inner" / "saved", folder)
    content = damage((folder / name).read_bytes())
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    attempt(world, lambda: LongTailClassifier.from_pretrained(folder))
    assert find_fault(folder)  # it is no checkpoint, and to find that out is safe


def test_an_escape_would_be_noticed(world):
    """The tests above can fail: on an error that is no sentence, and on a write."""
    with pytest.raises(KeyError):
        attempt(world, lambda: {}["key"])
    with pytest.raises(AssertionError):
        attempt(world, lambda: [].index(1))
    with pytest.raises(AssertionError):
        attempt(world, lambda: (world / "escaped").touch())
    (world / "escaped").unlink()
