"""ResNet-32 against its published size and against the shortcut written by hand."""

import torch
import torch.nn.functional as F

from ft_focalsam.models.resnet import ResidualBlock, ResNet32


def test_it_has_the_published_size_and_learns_from_its_start():
    model = ResNet32(10)
    assert sum(p.numel() for p in model.parameters()) == 464_154
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) + 1 == 32
    for convolution in convolutions:
        fan_in = convolution.weight[0].numel()
        assert abs(float(convolution.weight.std()) * (fan_in / 2) ** 0.5 - 1) < 0.15


def test_the_shortcut_takes_every_other_pixel_and_pads_channels_with_zeros():
    torch.manual_seed(0)
    block = ResidualBlock(16, 32).eval()
    with torch.no_grad():
        block.conv2.weight.zero_()
    x = torch.randn(2, 16, 8, 8)
    expected = torch.zeros(2, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.allclose(block(x), F.relu(expected))


def test_logits_of_a_batch():
    torch.manual_seed(0)
    model, images = ResNet32(7).eval(), torch.randn(3, 3, 32, 32)
    logits = model(images).logits
    assert logits.shape == (3, 7)
    assert torch.allclose(logits[1:2], model(images[1:2]).logits, atol=1e-5)
