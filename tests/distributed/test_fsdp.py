"""Two real processes over gloo whose model FSDP2 shards, against one process with the same images.

Accelerate wraps, clips, saves and loads as it does on GPUs; `sharded.py` says how it is brought to.
"""

import pytest
import torch
import yaml
from distributed.launching import CONFIGS, HERE, Launched, batches, distance, environments, moved
from peft import PeftModel
from running import QUICKSTART, finetune, processes
from safetensors.torch import load_file
from sharpness.models import BACKBONES, make_model, relative_error
from test_trainer import trainer_for
from transformers import Dinov2ForImageClassification

from ft_focalsam.models import LongTailClassifier
from ft_focalsam.trainer.checks import refuse_what_is_not_exact
from ft_focalsam.trainer.sharding import layers_to_shard

pytestmark = pytest.mark.slow

METHODS = ("sam", "weighted_sam", "imbsam", "focal_sam")
TUNINGS = ("lora", "full")
CLIPPED = {"max_grad_norm": 0.5}  # below the norms that occur
SHORT = {"max_steps": 3, "learning_rate": 0.005}
RECOMPUTES = {"FSDP_ACTIVATION_CHECKPOINTING": "true"}
# The weights with the highest loss: those of step 1, and not of step 3
BEST = {
    "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.02,
    "load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True,
}  # fmt: skip
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}

# Name -> (settings, batches of one process, batches of each of two that see the same images in each optimizer step)
SAME = {
    f"{method}, {tuning}{name}": ({"sharpness": method, "tuning": tuning, "imbsam_eta": 3, **CLIPPED}, *sizes)
    for method in ("none", *METHODS)
    for tuning in TUNINGS
    for name, sizes in {
        "": (batches(12), batches(6)),
        ", accumulated": (batches(4, 3), batches(2, 3)),
    }.items()
}
SAME |= {
    name: ({"tuning": "lora", **changes}, *sizes)
    for name, changes, sizes in (
        ("adaptive radius", {"adaptive_rho": True}, (batches(12), batches(6))),
        ("interval", {"ascent_interval": 2}, (batches(4, 3), batches(2, 3))),
        ("uneven, part", {}, (batches(14), batches(7))),
        ("uneven, nothing", {}, (batches(10, 2), batches(5, 2))),
        ("skipping", {"sharpness": "imbsam", "imbsam_eta": 3, "max_steps": 8}, (batches(2, 2), batches(1, 2))),
        ("evaluated", EVALUATED, (batches(12), batches(6))),
        ("evaluated, accumulated", {**EVALUATED, "tuning": "full"}, (batches(6, 2), batches(3, 2))),
        ("recomputed", {"tuning": "full", "environment": RECOMPUTES}, (batches(12), batches(6))),
        ("layer decay", {"tuning": "full", "layer_decay": 0.5, "head_learning_rate": 0.01}, (batches(12), batches(6))),
        ("evaluated first", {"evaluates_first": True}, (batches(12), batches(6))),
        ("best", BEST, (batches(12), batches(6))),
    )
}
LOOPS = {
    f"loop, {tuning}, {gamma}, {evaluates}": {
        "in_a_loop": True, "tuning": tuning, "gamma": gamma, "evaluates": evaluates,
    }
    for tuning in TUNINGS
    for gamma in (0.0, 2.0)
    for evaluates in (False, True)
}  # fmt: skip
LAYOUTS = ("FULL_STATE_DICT", "SHARDED_STATE_DICT")
RESUMED = {
    f"{kind}, {tuning}, {layout}": {
        "tuning": tuning, "environment": {"FSDP_STATE_DICT_TYPE": layout}, **batches(6), **changes,
    }
    for kind, changes in {"whole": {"saves_model": True}, "cut": {"cut_at": 3}}.items()
    for tuning in TUNINGS
    for layout in LAYOUTS
}  # fmt: skip
VERSION_1 = {"environment": {"FSDP_VERSION": "1", "FSDP_SYNC_MODULE_STATES": "false"}}
REFUSED = {
    "version 1": (VERSION_1, "set fsdp_version to 2, as in accelerate_configs/fsdp2.yaml"),
    "offloaded": ({"environment": {"FSDP_OFFLOAD_PARAMS": "true"}}, "fsdp_offload_params keeps parameters on the CPU"),
    "cc_sam": ({"sharpness": "cc_sam"}, "cc_sam runs the classifier head by itself"),
    "local": ({"perturbation_scope": "local"}, "perturbation_scope is 'local', and under FSDP"),
    "norms": ({"perturb": "norms"}, "perturb is 'norms', and FSDP leaves a part of what that needs"),
    "momentum": ({"ascent": "momentum"}, "ascent is 'momentum', and FSDP leaves a part of what that needs"),
}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    runs = {name: {**SHORT, **settings, **alone} for name, (settings, alone, _) in SAME.items()} | LOOPS
    return Launched(tmp_path_factory.mktemp("one") / "runs", runs)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """fsdp2.yaml for two processes on the CPU."""
    path = tmp_path_factory.mktemp("config") / "fsdp2.yaml"
    content = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())
    content |= {"use_cpu": True, "mixed_precision": "no", "num_processes": 2}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def two(config, tmp_path_factory):
    runs = {name: {**SHORT, **settings, **each} for name, (settings, _, each) in SAME.items()}
    runs |= LOOPS | RESUMED
    runs |= {name: {"tuning": "lora", "is_refused": True, **settings} for name, (settings, _) in REFUSED.items()}
    return Launched(tmp_path_factory.mktemp("two") / "runs", runs, config)


def check_equal(alone, several, tuning):
    change = moved(alone, tuning)
    assert max(float(value.abs().max()) for value in change.values()) > 0.01  # it did train
    for weights in several:
        assert relative_error(moved(weights, tuning), change) <= 1e-10


@pytest.mark.parametrize("name", SAME)
def test_two_processes_do_what_one_does_with_the_same_images(name, one, two):
    (alone,) = one.reports(name)
    for report in two.reports(name):
        assert report["is_sharded"] and report["wrapper"].startswith("FSDP")
        assert report["evaluations"] == pytest.approx(alone["evaluations"], rel=1e-6)
    check_equal(*one.weights(name), two.weights(name), SAME[name][0]["tuning"])


@pytest.mark.parametrize("name", [*SAME, *LOOPS, *RESUMED])
def test_processes_hold_equal_weights(name, two):
    assert distance(*two.weights(name)) == 0


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_of_ones_own_does_what_one_process_does(name, one, two):
    check_equal(*one.weights(name), two.weights(name), LOOPS[name]["tuning"])


# ---- what goes over the wire ----


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize(
    ("method", "accumulation", "expected"),
    [
        ("none", 1, 1),
        ("none", 3, 1),
        # One for the ascent and one for the descent, whatever the accumulation
        ("sam", 1, 2),
        ("sam", 3, 2),
        # L_c and L of each batch, and the second passes
        ("focal_sam", 1, 3),
        ("focal_sam", 3, 7),
    ],
)
def test_gradients_are_sharded_no_more_often_than_needed(method, accumulation, expected, tuning, two):
    def numbers(method, accumulation):
        name = f"{method}, {tuning}" + (", accumulated" if accumulation > 1 else "")
        return [report["reduce_scatters"] for report in two.reports(name)]

    (units, *_), _ = numbers("none", 1)  # each of the modules that FSDP2 shards by itself has its own
    assert units > 1
    assert numbers(method, accumulation) == [[expected * units] * 3] * 2


# ---- checkpoints ----


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_run_that_was_cut_ends_as_one_that_was_not(tuning, layout, two):
    cut, whole = (two.weights(f"{kind}, {tuning}, {layout}") for kind in ("cut", "whole"))
    assert [distance(a, b) for a, b in zip(cut, whole, strict=True)] == [0, 0]
    # From the checkpoint, and not from the beginning
    seen = [report["seen"] for report in two.reports(f"cut, {tuning}, {layout}")]
    assert [len(batches) for batches in seen] == [3, 3]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_saved_model_is_whole(tuning, layout, two):
    name = f"whole, {tuning}, {layout}"
    folder = two.folder / name / "model"
    if tuning == "lora":
        model = PeftModel.from_pretrained(BACKBONES["dinov2"][0](), folder)
    else:
        model = Dinov2ForImageClassification.from_pretrained(folder)
        assert model.config.architectures == ["Dinov2ForImageClassification"]
    trained = two.weights(name)[0]
    before = make_model("dinov2", tuning).state_dict()
    changed = [name for name in trained if not torch.equal(trained[name], before[name])]
    saved = model.state_dict()
    assert len(changed) > 4
    assert all(torch.equal(saved[name].double(), trained[name].to(saved[name].dtype).double()) for name in changed)


# ---- the recipe ----


def test_the_recipe_shards_its_classifier_and_saves_it_whole(config, tmp_path):
    """Evaluated before and after training; LoRA's B starts at 0, so that it is what was learnt."""
    options = ["--max_steps", "3", "--save_strategy", "no", "--use_cpu", "true", "--augmentation", "none"]
    sizes = ["--per_device_train_batch_size", "16"], ["--per_device_train_batch_size", "32"]
    arguments = [[*options, *size, "--output_dir", str(tmp_path / size[1])] for size in sizes]
    sharded = processes(environments(config), HERE / "finetune_sharded.py", QUICKSTART, *arguments[0])
    for result in (*sharded, finetune(*arguments[1])):
        assert result.returncode == 0, result.stderr[-4000:]
    several, alone = (load_file(tmp_path / size[1] / "model.safetensors") for size in sizes)
    learnt = [name for name in alone if "lora_B" in name]
    assert several.keys() == alone.keys() and len(learnt) > 4
    assert relative_error({n: several[n] for n in learnt}, {n: alone[n] for n in learnt}) <= 1e-3
    loaded = LongTailClassifier.from_pretrained(tmp_path / sizes[0][1]).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in several.items())


# ---- which layers are sharded by themselves ----


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: make_model("vit", "lora"), ["ViTLayer"]),
        (lambda: make_model("dinov2", "full"), ["Dinov2Layer"]),
        (lambda: LongTailClassifier.from_backbone("tiny_clip", ["a", "b"]), ["CLIPEncoderLayer"]),
        (lambda: LongTailClassifier.from_backbone("scratch:resnet32", ["a", "b"]), []),
        (lambda: torch.nn.Linear(2, 2), []),
    ],
)
def test_transformer_blocks_are_sharded_by_themselves(build, expected):
    assert layers_to_shard(build()) == expected


def test_a_model_that_accelerate_cannot_shard_is_refused():
    with pytest.raises(ValueError, match=r"does not name its input embeddings, .* returns None, or use"):
        layers_to_shard(make_model("clip", "full"))


# ---- what is refused ----


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_exact_is_refused_before_training(name, two):
    for rank in range(2):
        assert REFUSED[name][1] in (two.folder / f"{name} {rank}.txt").read_text()


def test_deepspeed_is_refused_with_the_reason(tmp_path):
    """It is not installed for the tests, so the Trainer is told that it is on."""
    trainer = trainer_for(make_model("vit", "lora", dtype=torch.float32), tmp_path)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match=r"DeepSpeed reduces gradients into buffers of its own .* or fsdp2.yaml"):
        refuse_what_is_not_exact(trainer)
    trainer.args.sharpness = "none"
    refuse_what_is_not_exact(trainer)
