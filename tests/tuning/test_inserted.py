"""Adapters and prompts alike: what trains, exact gradients, checkpointing, the Trainer, saving, errors."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from sharpness.models import COUNTS, make_batch, naive_gradient, relative_error, run_step
from torch import nn
from torch.utils.data import Dataset
from tuning.tiny import FAMILIES, LAYERS, NAMES, build, inserted, logits_of, make_images, randomise

from ft_focalsam import FocalSAMTrainer, FocalSAMTrainingArguments, LongTailClassifier, apply_tuning, class_weights
from ft_focalsam.models import INSERTED_MODULES, load_backbone
from ft_focalsam.sharpness import SharpnessStep

METHODS = ("adaptformer", "adapter", "vpt_shallow", "vpt_deep")
KINDS = {"adaptformer": "adaptformer", "adapter": "adapter", "vpt_shallow": "prompts", "vpt_deep": "prompts"}
SIZES = {"adapter_width": 8, "prompt_length": 4}
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])

every_family = pytest.mark.parametrize("family", FAMILIES)
every_method = pytest.mark.parametrize("tuning", METHODS)


# ---- what trains ----


@every_method
@every_family
def test_what_is_new_and_the_head_train_and_nothing_else(tiny_backbones, family, tuning):
    path = tiny_backbones[family]
    model = build(path, tuning, **SIZES)
    new = inserted(model)
    in_a_layer = {"adaptformer": 7, "adapter": 6, "vpt_shallow": 1, "vpt_deep": 1}[tuning]
    assert len(new) == in_a_layer * (1 if tuning == "vpt_shallow" else LAYERS)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "head.weight",
        *(f"backbone.{name}" for name in new),
    }
    old = [p for name, p in model.backbone.named_parameters() if name not in new]
    plain = list(load_backbone(path).parameters())
    assert sorted(map(tuple, (p.shape for p in old))) == sorted(map(tuple, (p.shape for p in plain)))


# ---- the sharpness-aware update ----


@every_method
def test_one_backward_pass_also_from_the_zero_start(tiny_backbones, tuning):
    """Behind weights that are 0 nothing has a gradient yet: what is trusted at first is checked when it wakes."""
    model = build(tiny_backbones["vit"], tuning, **SIZES).double()
    weights = class_weights("focal_sam", COUNTS, {"gamma": 2.0, "lam": 1.1})
    step = SharpnessStep(model, weights, rho=0.1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for seed in range(8):
        images, labels = make_batch(seed=seed)
        expected = naive_gradient(model, images, labels, weights, 0.1)
        assert relative_error(run_step(step, model, images, labels), expected) <= 1e-10
        optimizer.step()
    assert step.separate_reason is None
    assert step.backward_passes == 1


# ---- activation checkpointing, dtypes, the Trainer ----


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@every_method
@every_family
@pytest.mark.parametrize("reentrant", [False, True], ids=["non_reentrant", "reentrant"])
def test_activation_checkpointing_gives_the_same_gradients(tiny_backbones, family, tuning, reentrant):
    model = randomise(build(tiny_backbones[family], tuning, **SIZES)).train()
    runs = []
    last = model.family.blocks(model.backbone)[-1]
    norm = next(m for m in last.modules() if isinstance(m, nn.LayerNorm) and not m.weight.requires_grad)
    norm.register_forward_hook(lambda *args: runs.append(1))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(make_images(), labels=LABELS).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    expected = gradients()
    assert len(runs) == 1
    weights = class_weights("focal_sam", COUNTS).float()
    naive = naive_gradient(model, make_images(), LABELS, weights, 0.1)
    runs.clear()
    if reentrant:  # which sees no gradient to keep where the input of a block does not require one
        embeddings = next(m for n, m in model.backbone.named_modules() if n.rpartition(".")[2] == "embeddings")
        embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    actual = gradients()
    assert len(runs) == 2  # once more in the backward pass
    assert relative_error(actual, expected) <= 1e-6
    step = SharpnessStep(model, weights, rho=0.1)
    assert relative_error(run_step(step, model, make_images(), LABELS), naive) <= 1e-4
    assert step.backward_passes == 1


@every_method
@every_family
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_new_modules_are_float32_in_a_half_precision_backbone(tiny_backbones, family, tuning, dtype):
    model = randomise(build(tiny_backbones[family], tuning, dtype=dtype, **SIZES))
    assert {p.dtype for p in inserted(model).values()} == {torch.float32}
    frozen = {p.dtype for p in model.backbone.parameters() if not p.requires_grad}
    assert frozen == {getattr(torch, dtype)}
    reference = build(tiny_backbones[family], tuning, **SIZES)
    reference.load_state_dict(model.state_dict())
    features, expected = model.features(make_images()), reference.features(make_images())
    assert features.dtype == getattr(torch, dtype)
    assert (features.float() - expected).norm() <= (0.05 if dtype == "bfloat16" else 0.01) * expected.norm()
    model(make_images(), labels=LABELS).loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in inserted(model).values())


class Images(Dataset):
    """16 random images of five classes."""

    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = (0,) * 7 + (1,) * 4 + (2,) * 2 + (3,) * 2 + (4,)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.targets[index]}


@pytest.mark.parametrize(
    ("family", "tuning"),
    [
        *((family, tuning) for family in ("vit", "clip") for tuning in (*METHODS, "norms,sparse", "lora,norms")),
        ("vit", "clip_adapter,norms"),
        ("clip", "context_prompts"),
        ("clip", "lora,text_lora"),
    ],
)
def test_the_trainer_trains_saves_and_resumes(tiny_backbones, tmp_path, family, tuning):
    def trainer(folder: str, steps: int) -> FocalSAMTrainer:
        args = FocalSAMTrainingArguments(
            str(tmp_path / folder), sharpness="focal_sam", rho=0.1, max_steps=steps, save_steps=2, learning_rate=0.05,
            per_device_train_batch_size=8, optim="sgd", lr_scheduler_type="constant", report_to="none", use_cpu=True,
            disable_tqdm=True, resume_changed=True,
        )  # fmt: skip
        model = randomise(build(tiny_backbones[family], tuning, **SIZES))
        return FocalSAMTrainer(model, args, train_dataset=Images(), eval_dataset=Images())

    whole = trainer("whole", 4)
    start = {name: p.detach().clone() for name, p in whole.model.named_parameters() if p.requires_grad}
    whole.train()
    trained = {name: p.detach() for name, p in whole.model.named_parameters() if p.requires_grad}
    assert all(not torch.equal(value, start[name]) for name, value in trained.items())
    expected = logits_of(whole.model.eval())
    loaded = LongTailClassifier.from_pretrained(tmp_path / "whole" / "checkpoint-4")
    torch.testing.assert_close(logits_of(loaded), expected, rtol=0, atol=1e-6)
    trainer("parts", 2).train()
    resumed = trainer("parts", 4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    torch.testing.assert_close(logits_of(resumed.model.eval()), expected, rtol=0, atol=1e-6)


# ---- saving and loading ----


@every_method
@every_family
def test_round_trip_with_chosen_layers(tiny_backbones, tmp_path, family, tuning):
    model = randomise(build(tiny_backbones[family], tuning, tuned_layers=[2, 1], **SIZES))
    model.save_pretrained(tmp_path)
    settings = {"layers": [0] if tuning == "vpt_shallow" else [1, 2]}
    settings |= {"length": 4} if KINDS[tuning] == "prompts" else {"width": 8}
    settings |= {"scale": 1.0} if tuning == "adaptformer" else {}
    note = {"format": 2, "modules": [{"name": KINDS[tuning], "settings": settings}]}
    assert json.loads((tmp_path / "config.json").read_text())["inserted"] == note
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    names = {f"backbone.{name}" for name in inserted(model)}
    assert set(load_file(tmp_path / "model.safetensors")) == names | {"head.weight"}
    loaded = LongTailClassifier.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=0, atol=1e-6)
    assert set(inserted(loaded)) == set(inserted(model))
    assert loaded.config.inserted == note


def test_nothing_is_noted_where_nothing_was_inserted(tiny_backbones, tmp_path):
    build(tiny_backbones["vit"], "linear_probe").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).get("inserted") is None
    assert not inserted(LongTailClassifier.from_pretrained(tmp_path))


def rewrite(folder, change) -> None:
    """Replace the note of a checkpoint by change(note)."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["inserted"] = change(config["inserted"])
    path.write_text(json.dumps(config))


def rewrite_module(folder, **changes) -> None:
    rewrite(folder, lambda note: note | {"modules": [note["modules"][0] | changes]})


@every_method
def test_a_checkpoint_of_format_1_is_read(tiny_backbones, tmp_path, tuning):
    model = randomise(build(tiny_backbones["vit"], tuning, **SIZES))
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda note: {"format": 1, **note["modules"][0]})
    loaded = LongTailClassifier.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert loaded.config.inserted == model.config.inserted


@every_method
def test_weights_that_are_not_in_the_checkpoint(tiny_backbones, tmp_path, tuning):
    model = build(tiny_backbones["vit"], tuning, **SIZES)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = f"backbone.{list(inserted(model))[-1]}"
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"weights in '{tmp_path}' do not fit the model at '{lost}'"):
        LongTailClassifier.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("tuning", "settings", "place"),
    [
        ("adapter", {"layers": [0], "width": 5}, "down"),
        ("vpt_deep", {"layers": [0], "length": 5}, "prompts"),
    ],
)
def test_weights_of_another_size(tiny_backbones, tmp_path, tuning, settings, place):
    build(tiny_backbones["vit"], tuning, tuned_layers=[0], **SIZES).save_pretrained(tmp_path)
    rewrite_module(tmp_path, settings=settings)
    with pytest.raises(ValueError, match=rf"weights in '{tmp_path}' do not fit the model at '.*{place}"):
        LongTailClassifier.from_pretrained(tmp_path)


@pytest.mark.parametrize("number", [0, 3, None])
def test_format_of_another_version(tiny_backbones, tmp_path, number):
    build(tiny_backbones["vit"], "adapter").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda note: note | {"format": number})
    with pytest.raises(
        ValueError,
        match=rf"'{tmp_path}' notes its inserted modules in format {number}, .*reads formats 1 to 2; install",
    ):
        LongTailClassifier.from_pretrained(tmp_path)


def test_unknown_kind_of_inserted_modules(tiny_backbones, tmp_path):
    build(tiny_backbones["vit"], "adapter").save_pretrained(tmp_path)
    rewrite_module(tmp_path, name="adaptor")
    with pytest.raises(ValueError, match=r"Unknown kind of inserted modules 'adaptor'; choose one of .*adapter"):
        LongTailClassifier.from_pretrained(tmp_path)


# ---- a second tuning ----


@pytest.mark.parametrize("second", ["lora", "linear_probe", "full", "adaptformer", "vpt_deep"])
@every_method
def test_second_tuning_is_refused(tiny_backbones, tuning, second):
    model = build(tiny_backbones["vit"], tuning)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    with pytest.raises(ValueError, match=rf"is tuned already, by {KINDS[tuning]}; start from a new one"):
        apply_tuning(model, second)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable


@every_method
def test_tuning_after_lora_is_refused(tiny_backbones, tuning):
    model = build(tiny_backbones["vit"], "lora")
    with pytest.raises(ValueError, match="is tuned already, by lora; start from a new one: from_backbone"):
        apply_tuning(model, tuning)
    assert model.config.inserted is None


def test_second_insertion_of_a_kind_is_refused(tiny_backbones):
    model = build(tiny_backbones["vit"], "adapter")
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match="has modules of the kind 'adapter' already; insert each kind once"):
        model.insert("adapter", layers=[0], width=2)
    assert [name for name, _ in model.named_parameters()] == names


@every_method
def test_backbone_without_transformer_blocks(tiny_backbones, tuning):
    model = LongTailClassifier.from_backbone(tiny_backbones["vit"], NAMES)
    model.backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 16))
    with pytest.raises(ValueError, match=r"a Sequential, has no transformer blocks .*; choose another tuning method"):
        apply_tuning(model, tuning)


def test_a_kind_of_your_own_is_saved_and_loaded(tiny_backbones, tmp_path, monkeypatch):
    class Shifted(nn.Module):
        def __init__(self, mlp: nn.Module, start: float):
            super().__init__()
            self.mlp, self.shift = mlp, nn.Parameter(torch.full((16,), start))

        def forward(self, x):
            return self.mlp(x) + self.shift

    def insert_shift(model, *, start):
        model.family.wrap_mlp(model.family.blocks(model.backbone)[-1], lambda mlp: Shifted(mlp, start))

    monkeypatch.setitem(INSERTED_MODULES, "shift", insert_shift)
    model = LongTailClassifier.from_backbone(tiny_backbones["dinov2"], NAMES).eval()
    before = logits_of(model)
    model.insert("shift", start=0.5)
    assert (logits_of(model) - before).abs().max() > 1e-2
    randomise(model).save_pretrained(tmp_path)
    assert torch.equal(logits_of(LongTailClassifier.from_pretrained(tmp_path)), logits_of(model))
