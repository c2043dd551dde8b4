"""AdaptFormer and sequential adapters: their formula, their start, their sizes, their place."""

import json

import pytest
import torch
import torch.nn.functional as F
from tuning.tiny import (
    FAMILIES,
    HIDDEN_SIZE,
    LAYERS,
    NAMES,
    PlainBackbone,
    build,
    inserted,
    logits_of,
    make_images,
    randomise,
)

from ft_focalsam.models import LongTailClassifier
from ft_focalsam.tuning import TuningOptions, apply_tuning

ADAPTERS = ("adaptformer", "adapter")

every_family = pytest.mark.parametrize("family", FAMILIES)
every_adapter = pytest.mark.parametrize("tuning", ADAPTERS)


def layer_of(name: str) -> int:
    return next(int(part) for part in name.split(".") if part.isdigit())


def weights_by_layer(model) -> dict[int, dict[str, torch.Tensor]]:
    """Number of the block -> last two parts of the name -> weight."""
    found = {}
    for name, parameter in inserted(model).items():
        found.setdefault(layer_of(name), {})[".".join(name.split(".")[-2:])] = parameter.detach()
    return found


def bottleneck(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    x = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * w["norm.weight"] + w["norm.bias"]
    hidden = (x @ w["down.weight"].T + w["down.bias"]).clamp(min=0)
    return hidden @ w["up.weight"].T + w["up.bias"]


@torch.no_grad()
def logits_by_formula(path: str, model: LongTailClassifier, tuning: str) -> torch.Tensor:
    """The plain backbone, in which the output of each MLP is replaced by the formula of the paper."""
    plain = PlainBackbone(path)
    for index, w in weights_by_layer(model).items():
        first, last = plain.mlp_ends(index)
        inputs = []

        def remember(module, args, inputs=inputs):
            inputs[:] = args[:1]

        def replace(module, args, output, inputs=inputs, w=w):
            if tuning == "adaptformer":
                return output + w["scale.weight"] * bottleneck(w, inputs[0])
            return output + bottleneck(w, output)

        first.register_forward_pre_hook(remember)
        last.register_forward_hook(replace)
    features = plain.features_of(make_images())
    return 25 * F.normalize(features, dim=1) @ F.normalize(model.head.weight, dim=1).T


@every_adapter
@every_family
@pytest.mark.parametrize("layers", [[], [0, 2], [1]], ids=["all", "first_and_last", "middle"])
def test_logits_equal_the_formula(tiny_backbones, family, tuning, layers):
    path = tiny_backbones[family]
    model = build(path, tuning, adapter_width=3, tuned_layers=layers)
    start = logits_of(model)
    randomise(model)
    actual = logits_of(model)
    assert (actual - start).abs().max() > 0.1
    torch.testing.assert_close(actual, logits_by_formula(path, model, tuning), rtol=0, atol=2e-4)


@every_adapter
@every_family
def test_new_adapters_leave_the_features_as_they_are(tiny_backbones, family, tuning):
    path = tiny_backbones[family]
    model = build(path, tuning)
    with torch.no_grad():
        expected = PlainBackbone(path).features_of(make_images())
        torch.testing.assert_close(model.features(make_images()), expected, rtol=0, atol=1e-6)


@every_adapter
def test_start_is_the_published_one(tiny_backbones, tuning):
    model = build(tiny_backbones["vit"], tuning, adapter_width=64)
    for w in weights_by_layer(model).values():
        for name in ("down.bias", "up.weight", "up.bias", "norm.bias"):
            assert not w[name].any(), name
        assert (w["norm.weight"] == 1).all()
        deviation = (3 * HIDDEN_SIZE) ** -0.5  # Kaiming's normal one with a = sqrt(5)
        assert w["down.weight"].std() == pytest.approx(deviation, rel=0.1)
        within = [(w["down.weight"].abs() < k * deviation).double().mean() for k in (1, 2)]
        assert within == pytest.approx([0.683, 0.954], abs=0.04)  # 0.577 and 1 if it were uniform
        assert ("scale.weight" in w) == (tuning == "adaptformer")
        assert tuning == "adapter" or w["scale.weight"].tolist() == [1]


@every_adapter
@pytest.mark.parametrize("note_format", [1, 2])
def test_models_saved_with_the_former_start_load_unchanged(tiny_backbones, tmp_path, tuning, note_format):
    """Until it was that of LIFT, the scale started at 0.1 and the down projection from a uniform distribution."""
    model = build(tiny_backbones["vit"], tuning, adapter_width=3, adapter_scale=0.1)
    for layer in weights_by_layer(model).values():
        torch.nn.init.kaiming_uniform_(layer["down.weight"], a=5**0.5)
        torch.nn.init.normal_(layer["up.weight"])
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if note_format == 1:
        config["inserted"] = {"format": 1, **config["inserted"]["modules"][0]}
        (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = LongTailClassifier.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model))
    kept = inserted(loaded)
    assert all(torch.equal(kept[name], value) for name, value in inserted(model).items())
    scales = [value.item() for name, value in kept.items() if name.endswith("scale.weight")]
    assert scales == pytest.approx([0.1] * LAYERS * (tuning == "adaptformer"))


@every_adapter
@every_family
@pytest.mark.parametrize(
    ("layers", "expected"), [([], [0, 1, 2]), ([2, 0, 2], [0, 2]), ([1], [1])], ids=["all", "unordered", "one"]
)
def test_width_scale_and_layers_arrive(tiny_backbones, family, tuning, layers, expected):
    options = {"adapter_width": 5, "adapter_scale": 0.7, "tuned_layers": layers}
    found = weights_by_layer(build(tiny_backbones[family], tuning, **options))
    shapes = {
        "norm.weight": (HIDDEN_SIZE,),
        "norm.bias": (HIDDEN_SIZE,),
        "down.weight": (5, HIDDEN_SIZE),
        "down.bias": (5,),
        "up.weight": (HIDDEN_SIZE, 5),
        "up.bias": (HIDDEN_SIZE,),
    }
    if tuning == "adaptformer":
        shapes["scale.weight"] = (1,)
    assert list(found) == expected
    for w in found.values():
        assert {name: tuple(value.shape) for name, value in w.items()} == shapes
        assert tuning == "adapter" or w["scale.weight"].tolist() == pytest.approx([0.7])


@every_adapter
@pytest.mark.parametrize(
    ("classes", "width"),
    [(2, 1), (6, 1), (11, 1), (12, 2), (23, 2), (24, 4), (47, 4), (48, 8), (100, 16), (1000, 128)],
)
def test_default_width_is_the_published_rule(tiny_backbones, tuning, classes, width):
    """2^floor(log2(C / 2L)), at least 1, here for L = 3 blocks."""
    assert width <= max(1, classes / (2 * LAYERS)) < 2 * width or width == 1
    model = LongTailClassifier.from_backbone(tiny_backbones["vit"], [str(i) for i in range(classes)])
    apply_tuning(model, tuning, TuningOptions(tuned_layers=[1]))
    assert weights_by_layer(model)[1]["down.weight"].shape == (width, HIDDEN_SIZE)


@every_adapter
def test_adapters_sit_inside_the_layer_scale_of_dinov2(tiny_backbones, tuning):
    """With a layer scale of 0 behind the MLP nothing that happens at the MLP can be seen."""
    model = build(tiny_backbones["dinov2"], tuning)
    for block in model.family.blocks(model.backbone):
        block.layer_scale2.lambda1.data.zero_()
    before = model.features(make_images())
    randomise(model)
    assert torch.equal(model.features(make_images()), before)


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter_width": 0}, r"adapter_width is 0; set it to 1 or more, or leave it out"),
        ({"adapter_width": -4}, r"adapter_width is -4; set it"),
        ({"adapter_scale": 0.0}, r"adapter_scale is 0\.0; set it to a number above 0"),
        ({"adapter_scale": -1.0}, r"adapter_scale is -1\.0; set"),
        ({"adapter_scale": float("nan")}, r"adapter_scale is nan; set"),
        ({"adapter_scale": float("inf")}, r"adapter_scale is inf; set"),
    ],
    ids=["width_zero", "width_negative", "scale_zero", "scale_negative", "scale_nan", "scale_infinite"],
)
def test_size_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        TuningOptions(**options)


@every_adapter
@pytest.mark.parametrize("layer", [LAYERS, LAYERS + 4])
def test_layer_that_does_not_exist(tiny_backbones, tuning, layer):
    path = tiny_backbones["vit"]
    model = LongTailClassifier.from_backbone(path, NAMES)
    before = [name for name, _ in model.named_parameters()]
    with pytest.raises(
        ValueError, match=rf"tuned_layers names {layer}, .*'{path}' has the blocks 0 to 2; choose among"
    ):
        apply_tuning(model, tuning, TuningOptions(tuned_layers=[0, layer]))
    assert [name for name, _ in model.named_parameters()] == before
