"""ResNet-32 against its published size and against the shortcut written by hand; networks with random weights."""

import pytest
import torch
import torch.nn.functional as F

from ft_focalsam import LongTailClassifier, apply_tuning
from ft_focalsam.models import init_head
from ft_focalsam.models.resnet import ResidualBlock, ResNet32

NAMES = [f"class {i}" for i in range(10)]


def from_scratch(name="scratch:resnet32", tuning="full", **options):
    torch.manual_seed(0)
    model = LongTailClassifier.from_backbone(name, NAMES, head="linear", **options)
    init_head(model, "kaiming")
    apply_tuning(model, tuning)
    return model


def test_it_has_the_published_size_and_learns_from_its_start():
    model = from_scratch()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 464_154
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) + 1 == 32
    for layer in [*convolutions, model.head]:
        fan_in = layer.weight[0].numel()
        assert abs(layer.weight.std().item() * (fan_in / 2) ** 0.5 - 1) < 0.15


def test_the_shortcut_takes_every_other_pixel_and_pads_channels_with_zeros():
    torch.manual_seed(0)
    block = ResidualBlock(16, 32).eval()
    with torch.no_grad():
        block.conv2.weight.zero_()
    x = torch.randn(2, 16, 8, 8)
    expected = torch.zeros(2, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.allclose(block(x), F.relu(expected))


def test_features_of_a_batch_and_the_layout_of_memory_changes_nothing():
    torch.manual_seed(0)
    model, images = ResNet32().eval(), torch.randn(3, 3, 32, 32)
    features = model(images)
    assert features.shape == (3, 64)
    assert torch.allclose(features[1:2], model(images[1:2]), atol=1e-5)
    channels_last = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(features, channels_last, atol=1e-5)


@pytest.mark.parametrize("name", ["scratch:resnet32", "scratch:test_resnet"])
def test_all_of_a_network_from_scratch_is_saved_running_statistics_too(name, tmp_path):
    model = from_scratch(name).train()
    images = torch.randn(8, 3, 32, 32)
    model(images).logits.square().mean().backward()  # moves the running statistics
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    model.eval().save_pretrained(tmp_path)
    torch.manual_seed(1)
    loaded = LongTailClassifier.from_pretrained(tmp_path)
    assert torch.equal(loaded(images).logits, model(images).logits)
    assert not torch.allclose(from_scratch(name).eval()(images).logits, model(images).logits)


def test_random_weights_that_stay_frozen_are_saved_too(tmp_path):
    model, images = from_scratch(tuning="linear_probe").eval(), torch.randn(2, 3, 32, 32)
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    assert torch.equal(LongTailClassifier.from_pretrained(tmp_path)(images).logits, model(images).logits)


def test_a_convolutional_network_takes_images_of_any_size():
    assert from_scratch("scratch:test_resnet", image_size=48)(torch.randn(2, 3, 48, 48)).logits.shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("scratch:resnet31", {}, "timm has no usable model 'resnet31'"),
        ("scratch:mixer_s32_224", {"image_size": 64}, "takes no other size than its own; leave image_size out"),
        ("scratch:resnet32", {"features": "cls"}, "are its own; leave backbone_features out"),
    ],
)
def test_what_there_is_not(name, options, message):
    with pytest.raises(ValueError, match=message):
        LongTailClassifier.from_backbone(name, NAMES, **options)


def test_there_are_no_blocks_to_tune():
    model = LongTailClassifier.from_backbone("scratch:resnet32", NAMES)
    with pytest.raises(ValueError, match="no transformer blocks to tune; set tuning to full"):
        apply_tuning(model, "adaptformer")
