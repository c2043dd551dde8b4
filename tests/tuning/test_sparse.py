"""Sparse tuning: W + S by its formula, which entries are chosen, what is saved."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from tuning.tiny import FAMILIES, NAMES, PlainBackbone, build, inserted, logits_of, make_images, randomise

from ft_focalsam import LongTailClassifier, TuningOptions, apply_tuning
from ft_focalsam.tuning.sparse import SparselyTunedLinear

every_family = pytest.mark.parametrize("family", FAMILIES)


def sparse_layers(model: LongTailClassifier) -> dict[str, SparselyTunedLinear]:
    return {n: m for n, m in model.backbone.named_modules() if isinstance(m, SparselyTunedLinear)}


def matrices(path: str, layers=(0, 1, 2)) -> dict[str, nn.Linear]:
    """The linear layers in the blocks of the plain backbone, by name."""
    plain = PlainBackbone(path)
    wanted = {m for index in layers for m in plain.blocks[index].modules() if isinstance(m, nn.Linear)}
    return {name: m for name, m in plain.model.named_modules() if m in wanted}


@every_family
@pytest.mark.parametrize("layers", [[], [2, 0]], ids=["all", "first_and_last"])
def test_logits_equal_those_of_the_changed_weights(tiny_backbones, family, layers):
    path = tiny_backbones[family]
    model = build(path, "sparse", sparse_ratio=0.2, tuned_layers=layers)
    start = logits_of(model)
    randomise(model)
    plain = PlainBackbone(path)
    for name, layer in sparse_layers(model).items():
        weight = plain.model.get_submodule(name).weight.data
        rows, columns = layer.index // weight.shape[1], layer.index % weight.shape[1]
        for row, column, value in zip(rows.tolist(), columns.tolist(), layer.values.tolist(), strict=True):
            weight[row, column] += value
    with torch.no_grad():
        expected = 25 * F.normalize(plain.features_of(make_images())) @ F.normalize(model.head.weight).T
    actual = logits_of(model)
    assert (actual - start).abs().max() > 0.1
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)


@every_family
@pytest.mark.parametrize("ratio", [0.001, 0.05, 1.0])
def test_share_of_every_matrix(tiny_backbones, family, ratio):
    path = tiny_backbones[family]
    model = build(path, "sparse", sparse_ratio=ratio)
    expected = {name: max(1, round(ratio * m.weight.numel())) for name, m in matrices(path).items()}
    layers = sparse_layers(model)
    assert {name: layer.values.numel() for name, layer in layers.items()} == expected
    assert set(inserted(model)) == {f"{name}.values" for name in expected}
    for layer in layers.values():
        assert len(set(layer.index.tolist())) == layer.values.numel()
        assert layer.index.min() >= 0 and layer.index.max() < layer.weight.numel()
        assert not layer.values.any() and layer.values.dtype == torch.float32


def indices(path: str, **options) -> dict[str, tuple[int, ...]]:
    return {n: tuple(m.index.tolist()) for n, m in sparse_layers(build(path, "sparse", **options)).items()}


def test_entries_follow_from_the_seed_and_the_place(tiny_backbones):
    path = tiny_backbones["vit"]
    first = indices(path, sparse_ratio=0.1)
    torch.manual_seed(99)
    assert indices(path, sparse_ratio=0.1) == first
    other = indices(path, sparse_ratio=0.1, sparse_seed=1)
    assert all(other[name] != first[name] for name in first)
    assert len({index for name, index in first.items() if "q_proj" in name or "k_proj" in name}) == 6
    some = indices(path, sparse_ratio=0.1, tuned_layers=[1])
    assert some == {name: index for name, index in first.items() if "layers.1." in name}


def test_entries_of_a_seed_stay_what_they_are():
    """Checkpoints rely on it."""
    layer = SparselyTunedLinear(nn.Linear(10, 10), 0.05, [0, 1, 2])
    assert layer.index.tolist() == [28, 30, 57, 64, 91]


def test_entries_are_spread_evenly():
    index = SparselyTunedLinear(nn.Linear(200, 100), 0.1, [3, 0, 0]).index
    in_quarters = torch.bincount(index // 5000, minlength=4)
    assert in_quarters.sum() == 2000 and (in_quarters - 500).abs().max() < 100


@every_family
def test_checkpoint_holds_the_values_and_not_the_entries(tiny_backbones, tmp_path, family):
    model = randomise(build(tiny_backbones[family], "sparse", sparse_ratio=0.1, sparse_seed=5, tuned_layers=[2, 1]))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == {f"backbone.{name}.values" for name in sparse_layers(model)} | {"head.weight"}
    settings = {"layers": [1, 2], "ratio": 0.1, "seed": 5}
    note = {"format": 2, "modules": [{"name": "sparse", "settings": settings}]}
    assert json.loads((tmp_path / "config.json").read_text())["inserted"] == note
    loaded = LongTailClassifier.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model))
    for name, layer in sparse_layers(loaded).items():
        assert torch.equal(layer.index, sparse_layers(model)[name].index)


def test_bias_may_be_missing():
    linear = nn.Linear(6, 4, bias=False)
    layer = SparselyTunedLinear(linear, 0.5, [0])
    x = torch.randn(3, 6)
    assert torch.equal(layer(x), linear(x))


def test_small_values_are_kept_beside_half_precision_weights():
    """Values below what the weights could take are summed in float32: two halves of a step make a step."""
    linear = nn.Linear(4, 4, bias=False).bfloat16().requires_grad_(False)
    linear.weight.data.fill_(1.0)
    layer = SparselyTunedLinear(linear, 1.0, [0])
    x = torch.ones(1, 4, dtype=torch.bfloat16)
    layer.values.data += 2**-9
    first = layer(x)
    layer.values.data += 3 * 2**-9
    assert first.dtype == torch.bfloat16 and layer(x).sum() > first.sum()
    layer(x).sum().backward()
    assert layer.values.grad.dtype == torch.float32 and (layer.values.grad == 1).all()


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparse_ratio": 0.0}, r"sparse_ratio is 0\.0; set it to a number above 0 and at most 1"),
        ({"sparse_ratio": 1.5}, r"sparse_ratio is 1\.5; set it"),
        ({"sparse_ratio": float("nan")}, r"sparse_ratio is nan; set it"),
        ({"sparse_seed": -1}, r"sparse_seed is -1; set it to a whole number from 0"),
        ({"sparse_seed": 2**32}, r"sparse_seed is 4294967296; set it"),
    ],
    ids=["ratio_zero", "ratio_above_one", "ratio_nan", "seed_negative", "seed_too_large"],
)
def test_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        TuningOptions(**options)


def test_layer_that_does_not_exist(tiny_backbones):
    model = LongTailClassifier.from_backbone(tiny_backbones["vit"], NAMES)
    with pytest.raises(ValueError, match=r"tuned_layers names 3, .*has the blocks 0 to 2; choose among"):
        apply_tuning(model, "sparse", TuningOptions(tuned_layers=[3]))
    assert model.config.inserted is None
