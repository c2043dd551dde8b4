"""Shallow and deep visual prompts: against a forward pass written by hand, their start, their sizes, their place."""

import pytest
import torch
import torch.nn.functional as F
from transformers import ViTModel
from tuning.tiny import (
    FAMILIES,
    HIDDEN_SIZE,
    LAYERS,
    NAMES,
    PATCHES,
    PlainBackbone,
    build,
    inserted,
    logits_of,
    make_images,
    randomise,
)

from ft_focalsam.models import LongTailClassifier
from ft_focalsam.tuning import TuningOptions, apply_tuning

PROMPTS = ("vpt_shallow", "vpt_deep")

every_family = pytest.mark.parametrize("family", FAMILIES)
every_kind = pytest.mark.parametrize("tuning", PROMPTS)


def prompts_by_layer(model: LongTailClassifier) -> dict[int, torch.Tensor]:
    """Number of the block -> prompts, shape (P, D)."""
    return {
        next(int(part) for part in name.split(".") if part.isdigit()): parameter.detach()
        for name, parameter in inserted(model).items()
    }


@torch.no_grad()
def logits_by_hand(path: str, model: LongTailClassifier) -> torch.Tensor:
    """Embeddings; in front of each block the class token, the prompts, the patches; final norm; class token."""
    plain = PlainBackbone(path)
    tokens = plain.tokens(make_images())
    for index in range(LAYERS):
        if index in prompts_by_layer(model):
            class_token, patches = tokens[:, :1], tokens[:, -PATCHES:]
            fresh = torch.stack([prompts_by_layer(model)[index]] * len(tokens))
            tokens = torch.cat([class_token, fresh, patches], dim=1)
        tokens = plain.run_block(index, tokens)
    features = plain.features(tokens)
    return 25 * F.normalize(features, dim=1) @ F.normalize(model.head.weight, dim=1).T


@every_kind
@every_family
def test_logits_equal_the_forward_pass_by_hand(tiny_backbones, family, tuning):
    path = tiny_backbones[family]
    model = randomise(build(path, tuning, prompt_length=4))
    assert list(prompts_by_layer(model)) == ([0] if tuning == "vpt_shallow" else [0, 1, 2])
    without = randomise(build(path, "linear_probe"))
    without.head.load_state_dict(model.head.state_dict())
    assert (logits_of(model) - logits_of(without)).abs().max() > 0.1
    torch.testing.assert_close(logits_of(model), logits_by_hand(path, model), rtol=0, atol=2e-4)


@every_family
@pytest.mark.parametrize("layers", [[1], [0, 2], [2, 1]], ids=["middle", "first_and_last", "unordered"])
def test_deep_prompts_act_on_the_chosen_layers(tiny_backbones, family, layers):
    path = tiny_backbones[family]
    model = randomise(build(path, "vpt_deep", prompt_length=4, tuned_layers=layers))
    assert list(prompts_by_layer(model)) == sorted(layers)
    torch.testing.assert_close(logits_of(model), logits_by_hand(path, model), rtol=0, atol=2e-4)


@every_kind
@every_family
@pytest.mark.parametrize("length", [1, 7])
def test_length_arrives_and_the_start_is_the_published_one(tiny_backbones, family, tuning, length):
    model = build(tiny_backbones[family], tuning, prompt_length=length)
    bound = (6 / (3 * 4 * 4 + HIDDEN_SIZE)) ** 0.5  # patches of 4 x 4 pixels
    for prompts in prompts_by_layer(model).values():
        assert prompts.shape == (length, HIDDEN_SIZE)
        assert 0.7 * bound < prompts.abs().max() <= bound
    assert TuningOptions().prompt_length == 10


def test_long_prompts_are_spread_uniformly(tiny_backbones):
    model = build(tiny_backbones["vit"], "vpt_shallow", prompt_length=500)
    bound = (6 / (3 * 4 * 4 + HIDDEN_SIZE)) ** 0.5
    prompts = prompts_by_layer(model)[0]
    assert prompts.std() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert prompts.mean().abs() < 0.02 * bound and prompts.min() < -0.99 * bound


@every_kind
@every_family
def test_a_prompt_module_gives_the_sequence_with_the_prompts_in_it(tiny_backbones, family, tuning):
    """Each is a leaf, whose output alone tells its gradient."""
    model = build(tiny_backbones[family], tuning, prompt_length=4)
    seen = {}
    for name, module in model.named_modules():
        own = {parameter_name for parameter_name, p in module.named_parameters(recurse=False) if p.requires_grad}
        if own and name != "head":
            assert not list(module.children())
            module.register_forward_hook(lambda m, args, output, name=name: seen.update({name: (m, *args, output)}))
    logits_of(model)
    assert len(seen) == len(inserted(model))
    for module, tokens, output in seen.values():
        assert output.shape == (6, 1 + 4 + PATCHES, HIDDEN_SIZE)
        assert torch.equal(output[:, 0], tokens[:, 0]) and torch.equal(output[:, -PATCHES:], tokens[:, -PATCHES:])
        assert torch.equal(output[:, 1:5], next(module.parameters()).expand(6, -1, -1))


@every_kind
def test_eager_attention_takes_the_longer_sequence(tiny_backbones, tuning):
    path = tiny_backbones["vit"]
    model = randomise(build(path, tuning, prompt_length=4))
    expected = logits_of(model)
    eager = ViTModel.from_pretrained(path, add_pooling_layer=False, attn_implementation="eager")
    other = LongTailClassifier.from_backbone(path, NAMES)
    other.backbone = eager.requires_grad_(False)
    apply_tuning(other, tuning, TuningOptions(prompt_length=4))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits_of(other.eval()), expected, rtol=0, atol=1e-5)


# ---- errors ----


@pytest.mark.parametrize("length", [0, -3])
def test_length_out_of_range(length):
    with pytest.raises(ValueError, match=rf"prompt_length is {length}; set it to 1 or more"):
        TuningOptions(prompt_length=length)


@pytest.mark.parametrize("layer", [LAYERS, LAYERS + 4])
def test_layer_that_does_not_exist(tiny_backbones, layer):
    path = tiny_backbones["clip"]
    model = LongTailClassifier.from_backbone(path, NAMES)
    with pytest.raises(
        ValueError, match=rf"tuned_layers names {layer}, .*'{path}' has the blocks 0 to 2; choose among"
    ):
        apply_tuning(model, "vpt_deep", TuningOptions(tuned_layers=[layer]))
    assert not inserted(model)
