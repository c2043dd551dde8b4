"""Learning rates by layer against depths that are found by what each output depends on."""

import pytest
import torch
from other_libraries import save_others, side_of
from sharpness.models import make_model
from test_trainer import Images, arguments, trainer_for
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification
from tuning.conftest import tiny_backbones  # noqa: F401
from tuning.tiny import FAMILIES, NAMES

from ft_focalsam import (
    FocalSAMTrainer,
    FocalSAMTrainingArguments,
    LongTailClassifier,
    TuningOptions,
    apply_tuning,
)
from ft_focalsam.models.backbones.transformers_models import find_blocks
from ft_focalsam.trainer.checkpointing import CheckpointError

TUNINGS = ("full", "lora", "adaptformer", "adapter", "ssf", "sparse", "bias", "last_blocks", "vpt_deep", "ia3")
OTHERS = ("timm", "timm_registers", "timm_map", "timm_distilled", "timm_eva", "timm_beit", "open_clip")
OTHERS += ("open_clip_scale", "open_clip_coca", "open_clip_timm")
RATES = {"layer_decay": 0.7, "head_learning_rate": 0.3, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def other_backbones(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return save_others(tmp_path_factory.mktemp("others"))


def classifier(backbone: str, tuning: str) -> LongTailClassifier:
    torch.manual_seed(0)
    model = LongTailClassifier.from_backbone(backbone, NAMES)
    apply_tuning(model, tuning, TuningOptions(last_blocks=2))
    return model


def depths_by_dependence(model: nn.Module, blocks, side: int) -> dict[str, int]:
    """Of each trained parameter that the logits depend on, the first of these that depends on it: the input of the
    first block, the output of each block, the logits."""
    seen, hooks = [], []
    hooks.append(blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0])))
    for block in blocks:
        hooks.append(
            block.register_forward_hook(lambda m, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
        )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    logits = model.eval()(pixel_values=torch.randn(2, 3, side, side, dtype=next(model.parameters()).dtype)).logits
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(blocks) + 1
    found: dict[str, int] = {}
    for depth, output in enumerate([*seen, logits]):
        if not output.requires_grad:
            continue
        gradients = torch.autograd.grad(
            output.sum(), list(trained.values()), allow_unused=True, retain_graph=True, materialize_grads=False
        )
        for name, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                found.setdefault(name, depth)
    return found


def rates_of(trainer: FocalSAMTrainer) -> dict[str, float]:
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    found = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found)
    return found


def check(model, blocks, folder, *, side, is_head=lambda name: name.startswith("head.")):
    trainer = trainer_for(model, folder, **RATES)
    table = depths_by_dependence(model, blocks, side)
    rates = rates_of(trainer)
    assert table.keys() <= rates.keys()
    expected = {
        name: 0.3 if is_head(name) else 0.05 * 0.7 ** (len(blocks) + 1 - depth) for name, depth in table.items()
    }
    assert {name: rates[name] for name in table} == pytest.approx(expected)
    assert len(set(expected.values())) >= 2
    return trainer, rates


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("family", ["clip", "vit"])
def test_each_tuning_method(family, tuning, tiny_backbones, tmp_path):  # noqa: F811
    model = classifier(tiny_backbones[family], tuning)
    check(model, model.family.blocks(model.backbone), tmp_path, side=8)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("clip", "vit")])
def test_each_architecture_of_transformers(family, tiny_backbones, tmp_path):  # noqa: F811
    model = classifier(tiny_backbones[family], "full")
    check(model, model.family.blocks(model.backbone), tmp_path, side=8)


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("name", OTHERS)
def test_each_other_library(name, tuning, other_backbones, tmp_path):
    model = classifier(other_backbones[name], tuning)
    check(model, model.family.blocks(model.backbone), tmp_path, side=side_of(name))


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("backbone", ["vit", "dinov2", "clip"])
def test_models_of_transformers_and_peft(backbone, tuning, tmp_path):
    model = make_model(backbone, tuning)
    inner = model.get_base_model() if tuning == "lora" else model
    blocks = {"vit": "vit.layers", "dinov2": "dinov2.encoder.layer", "clip": "vision_model.encoder.layers"}[backbone]
    blocks = inner.get_submodule(blocks)
    assert blocks is find_blocks(inner)
    check(model, blocks, tmp_path, side=8, is_head=lambda name: "classifier." in name)


def test_weight_decay_and_the_logged_rate_stay(tmp_path):
    plain = trainer_for(make_model("vit", "full"), tmp_path, weight_decay=0.1, learning_rate=0.05)
    layered = trainer_for(make_model("vit", "full"), tmp_path, weight_decay=0.1, **RATES)
    decays = []
    for trainer in (plain, layered):
        names = {id(p): name for name, p in trainer.model.named_parameters()}
        groups = trainer.create_optimizer().param_groups
        decays.append({names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]})
    assert decays[0] == decays[1] and set(decays[0].values()) == {0.0, 0.1}
    layered.train()
    logged = [entry["learning_rate"] for entry in layered.state.log_history if "learning_rate" in entry]
    assert logged == [0.05] * 4


@pytest.mark.parametrize("sharpness", ["none", "sam", "focal_sam", "cc_sam"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_step_moves_each_parameter_by_its_rate(tuning, sharpness, tmp_path):
    changes = {"max_steps": 1, "sharpness": sharpness, "lr_scheduler_type": "cosine"}
    moves, rates = [], {}
    for own in ({"learning_rate": 1.0}, {**RATES, "learning_rate": 0.05}):
        model = make_model("dinov2", tuning)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer = trainer_for(model, tmp_path, dataset=Images(torch.float64), **changes, **own)
        trainer.train()
        moves.append({name: p.detach() - before[name] for name, p in model.named_parameters() if p.requires_grad})
        rates = {
            name: group["initial_lr"]
            for group in trainer.optimizer.optimizer.param_groups
            for name, p in model.named_parameters()
            if any(p is q for q in group["params"])
        }
    assert len(set(rates.values())) >= 3
    for name, unit in moves[0].items():
        torch.testing.assert_close(moves[1][name], rates[name] * unit, rtol=1e-9, atol=1e-13)
    assert max(float(move.abs().max()) for move in moves[1].values()) > 1e-4


def test_a_resumed_run_ends_at_the_same_weights(tmp_path):
    settings = {**RATES, "optim": "adamw_torch", "lr_scheduler_type": "cosine", "learning_rate": 0.003}
    settings |= {"save_strategy": "steps", "save_steps": 2, "layer_decay": 0.5}
    whole = trainer_for(make_model("vit", "lora", dtype=torch.float32), tmp_path / "whole", **settings)
    whole.train()
    resumed = trainer_for(make_model("vit", "lora", dtype=torch.float32), tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    weights, again = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    changed = trainer_for(
        make_model("vit", "lora", dtype=torch.float32), tmp_path / "changed", **{**settings, "layer_decay": 0.6}
    )
    with pytest.raises(CheckpointError, match=r"layer_decay was 0.5 and is 0.6"):
        changed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))


def test_without_either_the_optimizer_is_the_trainers(tmp_path):
    assert len(trainer_for(make_model("vit", "full"), tmp_path).create_optimizer().param_groups) == 2


def test_what_has_no_layers_or_no_head_is_refused(tmp_path):
    stages = ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=5)
    )
    with pytest.raises(ValueError, match=r"layer_decay is 0.7, and 'ResNetForImageClassification' has no transformer"):
        trainer_for(stages, tmp_path, layer_decay=0.7)
    scratch = LongTailClassifier.from_backbone("scratch:resnet32", NAMES)
    with pytest.raises(ValueError, match=r"layer_decay is 0.7, and 'scratch:resnet32' has no transformer blocks"):
        trainer_for(scratch, tmp_path, layer_decay=0.7)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with pytest.raises(ValueError, match=r"head_learning_rate is 0.3, and the head of a Sequential cannot be told"):
        trainer_for(plain, tmp_path, head_learning_rate=0.3)
    with pytest.raises(ValueError, match="layer_decay is 0; set it to a number above 0 and at most 1"):
        arguments(tmp_path, layer_decay=0)
    with pytest.raises(ValueError, match="head_learning_rate is -1; set it to"):
        arguments(tmp_path, head_learning_rate=-1)
    model = make_model("vit", "full")
    with pytest.raises(ValueError, match=r"layer_decay is 0.7, and FocalSAMTrainer was given an optimizer"):
        FocalSAMTrainer(
            model,
            arguments(tmp_path, layer_decay=0.7),
            class_counts=[1] * 5,
            optimizers=(torch.optim.SGD(model.parameters(), lr=1.0), None),
        )


def test_the_old_name_of_weight_decay_warns_and_works(tmp_path):
    with pytest.warns(FutureWarning, match="decay_everything is called decay_norms_and_biases now"):
        args = FocalSAMTrainingArguments(str(tmp_path), report_to="none", decay_everything=True)
    assert args.decay_norms_and_biases and args.decay_everything is None
