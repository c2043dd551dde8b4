"""Backbones with batch normalisation, random and pretrained, against the paper's algorithm by hand; with its running
statistics moving, and kept."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import save_for_hf

from ft_focalsam import FocalSAMTrainer, FocalSAMTrainingArguments, LongTailClassifier, apply_tuning
from ft_focalsam.models import init_head, keep_batch_norms_in_eval
from ft_focalsam.sharpness import class_weights

pytestmark = pytest.mark.slow

COUNTS = [60, 20, 6, 2]
RHO, GAMMA, LAMBDA, DECAY = 0.3, 3.2, 0.8, 0.01
PRETRAINED = "pretrained"  # stands for the fixture of that name


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> str:
    """An EfficientNet of timm, with running statistics of some images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_efficientnet", num_classes=0)
        for _ in range(5):
            model.train()(torch.randn(8, 3, 32, 32) + 0.5)
    path = tmp_path_factory.mktemp("pretrained")
    save_for_hf(model, path, safe_serialization=True)
    return f"timm:{path}"


def network(backbone, *, tuning="full", batch_norm_eval=False):
    torch.manual_seed(0)
    model = LongTailClassifier.from_backbone(backbone, list("abcd"), head="linear", image_size=32)
    if batch_norm_eval:
        keep_batch_norms_in_eval(model)
    init_head(model, "kaiming")
    apply_tuning(model, tuning)
    model.config.backbone_dtype = "float64"
    return model.double()


class Images(torch.utils.data.Dataset):
    def __init__(self):
        torch.manual_seed(1)
        self.pixels, self.targets = torch.randn(24, 3, 32, 32).double(), torch.randint(0, 4, (24,)).numpy()

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": int(self.targets[index])}


def by_hand(model, data):
    """The paper's algorithm, three backward passes, each with a forward pass of its own, and SGD that decays all."""
    weights = class_weights("focal_sam", COUNTS, {"gamma": GAMMA, "lam": LAMBDA}).double()
    parameters = [p for p in model.parameters() if p.requires_grad]
    momentum = [torch.zeros_like(p) for p in parameters]
    for pixels, labels in zip(data.pixels.split(8), torch.as_tensor(data.targets).split(8), strict=True):
        c = weights[labels]

        def gradient(factor, pixels=pixels, labels=labels):
            losses = F.cross_entropy(model(pixels).logits, labels, reduction="none")
            return torch.autograd.grad((factor * losses).mean(), parameters)

        rest = gradient(1 - c)
        statistics = {name: value.clone() for name, value in model.named_buffers()}
        ascent = gradient(c)
        norm = torch.sqrt(sum(g.square().sum() for g in ascent))
        kept = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, g in zip(parameters, ascent, strict=True):
                p += RHO * g / norm
        flat = gradient(c)
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(statistics[name])
            for p, old, m, g, f in zip(parameters, kept, momentum, rest, flat, strict=True):
                m.mul_(0.9).add_(g + f + DECAY * old)
                p.copy_(old - 0.05 * m)
    return model


def train(model, data, folder):
    args = FocalSAMTrainingArguments(
        str(folder),
        rho=RHO,
        focal_gamma=GAMMA,
        focal_lambda=LAMBDA,
        learning_rate=0.05,
        weight_decay=DECAY,
        decay_norms_and_biases=True,
        optim="sgd",
        optim_args="momentum=0.9",
        lr_scheduler_type="constant",
        max_grad_norm=0,
        per_device_train_batch_size=8,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
    )
    trainer = FocalSAMTrainer(model, args, train_dataset=data, class_counts=COUNTS)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("backbone", "tuning"),
    [("scratch:test_resnet", "full"), (PRETRAINED, "full"), (PRETRAINED, "norms"), (PRETRAINED, "bias")],
)
def test_training_is_exact_and_statistics_move_once(pretrained, tmp_path, backbone, tuning):
    backbone = pretrained if backbone == PRETRAINED else backbone
    data = Images()
    trainer = train(network(backbone, tuning=tuning), data, tmp_path)
    assert "BatchNorm" in trainer.sharpness_step.separate_reason
    expected = by_hand(network(backbone, tuning=tuning).train(), data)
    start, trained = network(backbone).state_dict(), {n for n, p in expected.named_parameters() if p.requires_grad}
    buffers = {name for name, _ in expected.named_buffers()}
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-9, atol=1e-10, msg=name)
        assert torch.equal(value, start[name]) == (name not in trained | buffers), name


@pytest.mark.parametrize("tuning", ["full", "norms", "bias"])
def test_kept_statistics_need_no_further_backward_pass(pretrained, tmp_path, tuning):
    data, start = Images(), network(pretrained)
    trainer = train(network(pretrained, tuning=tuning, batch_norm_eval=True), data, tmp_path)
    assert trainer.sharpness_step.separate_reason is None
    expected = by_hand(network(pretrained, tuning=tuning).eval(), data).state_dict()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-10, msg=name)
    for name, value in trainer.model.named_buffers():
        assert torch.equal(value, start.get_buffer(name)), name


def test_modes_of_a_classifier_whose_statistics_are_kept(pretrained):
    model = network(pretrained, batch_norm_eval=True)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for mode in (True, False, True):
        assert model.train(mode) is model
        assert model.training == model.head.training == model.backbone.conv_stem.training == mode
        assert norms and not any(norm.training for norm in norms)


@pytest.mark.parametrize(
    ("backbone", "lacks"), [("tiny_clip", "batch normalisation"), ("scratch:resnet32", "running statistics of images")]
)
def test_backbones_without_statistics_to_keep(backbone, lacks):
    model = LongTailClassifier.from_backbone(backbone, list("abcd"))
    with pytest.raises(ValueError, match=f"batch_norm_eval is true, and the backbone '{backbone}' has no {lacks}"):
        keep_batch_norms_in_eval(model)
