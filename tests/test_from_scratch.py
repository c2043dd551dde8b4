"""Training from scratch by the recipe: exact with batch normalisation, resumable, refused where it makes no sense."""

import json

import pytest
import torch
import torch.nn.functional as F
from running import ROOT, python
from safetensors.torch import load_file

from ft_focalsam import FocalSAMTrainer, FocalSAMTrainingArguments, LongTailClassifier, apply_tuning
from ft_focalsam.cli import compare
from ft_focalsam.hub.card import make_card
from ft_focalsam.models import init_head
from ft_focalsam.sharpness import class_weights

pytestmark = pytest.mark.slow

CONFIG = "recipes/configs/cifar10_lt/resnet32.yaml"
SMALL = ["--dataset", "digits", "--backbone", "scratch:test_resnet", "--image_size", "32", "--learning_rate", "0.02"]
SMALL += ["--max_train_per_class", "20", "--imbalance_factor", "5", "--max_test_per_class", "10"]
SMALL += ["--per_device_train_batch_size", "8", "--save_total_limit", "9"]
COUNTS = [60, 20, 6, 2]
RHO, GAMMA, LAMBDA, DECAY = 0.3, 3.2, 0.8, 0.01


def network():
    torch.manual_seed(0)
    model = LongTailClassifier.from_backbone("scratch:test_resnet", list("abcd"), head="linear", image_size=32)
    init_head(model, "kaiming")
    apply_tuning(model, "full")
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


def by_hand(model, batches):
    """The paper's algorithm, three backward passes, each with a forward pass of its own, and SGD that decays all."""
    weights = class_weights("focal_sam", COUNTS, {"gamma": GAMMA, "lam": LAMBDA}).double()
    parameters = list(model.parameters())
    momentum = [torch.zeros_like(p) for p in parameters]
    for pixels, labels in batches:
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


def test_batch_normalisation_is_exact_and_its_statistics_move_once(tmp_path):
    args = FocalSAMTrainingArguments(
        str(tmp_path),
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
    data = Images()
    trainer = FocalSAMTrainer(network(), args, train_dataset=data, class_counts=COUNTS)
    trainer.train()
    assert "BatchNorm" in trainer.sharpness_step.separate_reason
    labels = torch.as_tensor(data.targets)
    batches = [(data.pixels[i : i + 8], labels[i : i + 8]) for i in range(0, 24, 8)]
    expected = by_hand(network().train(), batches).state_dict()
    start = network().state_dict()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-10, msg=name)
        assert not torch.equal(value, start[name]), f"{name} has not moved"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run by the command, and the same one stopped after two of its four epochs and resumed."""
    folder = tmp_path_factory.mktemp("scratch")
    arguments = [CONFIG, *SMALL, "--num_train_epochs", "4"]
    whole = python("recipes/train_from_scratch.py", *arguments, "--output_dir", folder / "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    return folder, arguments, whole


def test_the_recipe_learns_and_says_how_fast(trained):
    folder, _, whole = trained
    assert " images a second; 4 epochs took " in whole.stdout
    assert "Trained parameters" in whole.stdout
    assert "(100.00%)" in whole.stdout
    metrics = json.loads((folder / "whole" / "metrics.json").read_text())
    assert list(metrics) == ["random weights", "focal_sam"]
    assert metrics["focal_sam"]["accuracy"] > metrics["random weights"]["accuracy"] + 0.2
    card = str(make_card(folder / "whole"))
    assert "trained from scratch on long-tailed images by Focal-SAM" in card
    assert "base_model" not in card
    assert "the backbone keeps its own" not in card
    loaded = LongTailClassifier.from_pretrained(folder / "whole")
    assert float(loaded.backbone.bn1.running_mean.abs().max()) > 0


def test_a_run_that_was_stopped_resumes_to_the_same_weights_and_statistics(trained):
    folder, arguments, _ = trained
    checkpoints = sorted((folder / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(checkpoints) == 4
    resumed = [*arguments, "--resume_from_checkpoint", str(checkpoints[1])]
    result = python("recipes/train_from_scratch.py", *resumed, "--output_dir", folder / "resumed")
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (load_file(folder / name / "model.safetensors") for name in ("whole", "resumed"))
    assert first.keys() == second.keys()
    assert any("running_var" in name for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "tiny_clip", "--image_size", "64"], "The backbone 'tiny_clip' is pretrained; train it with"),
        (
            ["--dataloader_num_workers", "2"],
            "on_device keeps all images on the device; set dataloader_num_workers to 0",
        ),
        (["--augmentation", "crop_flip"], "The augmentation 'crop_flip' is not one of those on the device"),
    ],
)
def test_what_does_not_go_together(tmp_path, arguments, message):
    result = python("recipes/train_from_scratch.py", CONFIG, *SMALL, *arguments, "--output_dir", tmp_path)
    assert result.returncode == 1
    assert f"Error: {message}" in result.stderr
    assert "Traceback" not in result.stderr


def test_runs_side_by_side_are_those_of_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = [str(ROOT / CONFIG), *SMALL, "--max_steps", "2", "--methods", "none", "--seeds", "0", "1"]
    compare.main([*arguments, "--output_dir", str(tmp_path / "one")])
    compare.main([*arguments, "--output_dir", str(tmp_path / "two"), "--jobs", "2"])
    for seed in ("seed_0", "seed_1"):
        one, two = (load_file(tmp_path / name / "none" / seed / "model.safetensors") for name in ("one", "two"))
        assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert "run" in (tmp_path / "two" / "none" / "seed_0_log.txt").read_text()
    with pytest.raises(ValueError, match="--jobs is 0; set it to 1 or more"):
        compare.main([*arguments, "--output_dir", str(tmp_path / "three"), "--jobs", "0"])
