"""Averages of classifiers against the mean of their merged weights, taken one by one in float64."""

import pytest
import torch
from averaging.ingredients import LOHA, save, save_several
from peft import PeftModel
from tuning.tiny import logits_of

from ft_focalsam import LongTailClassifier
from ft_focalsam.averaging.average import average
from ft_focalsam.averaging.ingredients import read_ingredients
from ft_focalsam.averaging.low_rank import add_updates, truncate
from ft_focalsam.export import merge

WEIGHTS = (0.5, 0.2, 0.3)
# Ways to tune of which the merged weights of the average have to be the average of the merged weights.
LINEAR = {
    "lora": ("lora", {"lora_rank": 2}),
    "lora, more than the layer has": ("lora", {"lora_rank": 8}),
    "rslora": ("lora", {"lora_rank": 3, "lora_rslora": True}),
    "gaussian": ("lora", {"lora_rank": 2, "lora_init": "gaussian"}),
    "lora+norms": ("lora,norms", {"lora_rank": 2}),
    "bias": ("bias", {}),
    "full": ("full", {}),
    "sparse": ("sparse", {"sparse_ratio": 0.1}),
    "ssf": ("ssf", {"tuned_layers": [0, 1, 2]}),
    "ia3": ("ia3", {}),
}
MERGED = {
    "dora": ("lora", {"lora_rank": 2, "lora_dora": True}),
    "pissa": ("lora", {"lora_rank": 2, "lora_init": "pissa"}),
    "olora": ("lora", {"lora_rank": 2, "lora_init": "olora"}),
    "loha": ("peft", {"peft_config": LOHA}),
}


def merged_weights(model: LongTailClassifier) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in merge(model).state_dict().items()}


def assert_is_mean_of_merged(result: LongTailClassifier, folders: list[str], weights=WEIGHTS, *, atol=1e-6):
    every = [merged_weights(LongTailClassifier.from_pretrained(folder)) for folder in folders]
    found = merged_weights(result)
    assert found.keys() == every[0].keys()
    for name in found:
        expected = torch.zeros_like(every[0][name])
        for weight, each in zip(weights, every, strict=True):
            expected += weight * each[name]
        torch.testing.assert_close(found[name], expected, rtol=0, atol=atol, msg=name)
    assert any(not torch.equal(every[0][name], every[1][name]) for name in found)


@pytest.mark.parametrize("family", ["clip", "vit", "dinov2"])
@pytest.mark.parametrize("case", LINEAR)
def test_the_average_has_the_mean_of_the_merged_weights(case, family, tiny_backbones, tmp_path):
    tuning, options = LINEAR[case]
    folders = save_several(tmp_path, tiny_backbones[family], tuning, **options)
    template, ingredients = read_ingredients(folders)
    before = logits_of(template)
    result, error = average(template, ingredients, WEIGHTS)
    assert error == 0 and torch.equal(logits_of(template), before)
    assert isinstance(result.backbone, PeftModel) == (tuning.startswith("lora") or tuning == "ia3")
    assert_is_mean_of_merged(result, folders)


@pytest.mark.parametrize("case", MERGED)
def test_other_adapters_of_peft_are_averaged_as_merged_weights(case, tiny_backbones, tmp_path):
    tuning, options = MERGED[case]
    folders = save_several(tmp_path, tiny_backbones["clip"], tuning, **options)
    said = []
    template, ingredients = read_ingredients(folders, say=said.append)
    result, _ = average(template, ingredients, WEIGHTS)
    assert len(said) == 1 and said[0].endswith("the merged weights are averaged.")
    assert not isinstance(result.backbone, PeftModel)
    assert_is_mean_of_merged(result, folders)


@pytest.mark.parametrize("case", [*LINEAR, *MERGED])
def test_a_saved_average_loads_with_the_same_logits(case, tiny_backbones, tmp_path):
    tuning, options = (LINEAR | MERGED)[case]
    template, ingredients = read_ingredients(save_several(tmp_path, tiny_backbones["clip"], tuning, **options))
    result, _ = average(template, ingredients, WEIGHTS)
    result.save_pretrained(tmp_path / "average")
    again = LongTailClassifier.from_pretrained(tmp_path / "average")
    assert torch.equal(logits_of(again), logits_of(result))
    assert again.trained_state_dict().keys() == result.trained_state_dict().keys()


def test_an_average_is_averaged_again(tiny_backbones, tmp_path):
    """Ranks and scales may differ between runs: of two and of four here, and of LoRA and rsLoRA."""
    folders = [str(tmp_path / name) for name in "abc"]
    save(folders[0], tiny_backbones["clip"], "lora", seed=0, lora_rank=2, lora_alpha=3)
    save(folders[1], tiny_backbones["clip"], "lora", seed=1, lora_rank=4, lora_rslora=True)
    save(folders[2], tiny_backbones["clip"], "lora", seed=2, lora_rank=1)
    template, ingredients = read_ingredients(folders[:2])
    average(template, ingredients, [0.4, 0.6])[0].save_pretrained(tmp_path / "half")
    template, ingredients = read_ingredients([str(tmp_path / "half"), folders[2]])
    result, _ = average(template, ingredients, [0.5, 0.5])
    assert result.backbone.active_peft_config.r == 7
    assert_is_mean_of_merged(result, folders, [0.2, 0.3, 0.5])


def test_the_mean_of_the_factors_would_be_another_model(tiny_backbones, tmp_path):
    folders = save_several(tmp_path, tiny_backbones["clip"], "lora", lora_rank=2)
    template, ingredients = read_ingredients(folders)
    mean = {n: sum(w * i.state[n] for i, w in zip(ingredients, WEIGHTS, strict=True)) for n in ingredients[0].state}
    result = average(template, ingredients, WEIGHTS)[0]
    template.load_state_dict(mean, strict=False)
    assert (logits_of(template) - logits_of(result)).abs().max() > 0.1


def test_peft_combines_lora_to_the_same_updates(tiny_backbones, tmp_path):
    folders = save_several(tmp_path, tiny_backbones["clip"], "lora", lora_rank=2)
    template, ingredients = read_ingredients(folders)
    result, _ = average(template, ingredients, WEIGHTS)
    model = LongTailClassifier.from_pretrained(folders[0]).backbone
    for number, folder in enumerate(folders):
        model.load_adapter(folder, f"run{number}")
    model.add_weighted_adapter([f"run{n}" for n in range(3)], list(WEIGHTS), "soup", combination_type="cat")
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    assert layers
    own = dict(result.backbone.named_modules())
    for name, layer in layers.items():
        found = own[name].get_delta_weight("default")
        torch.testing.assert_close(found, layer.get_delta_weight("soup"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_rank_takes_the_nearest_update_and_tells_the_error(rank, tiny_backbones, tmp_path):
    folders = save_several(tmp_path, tiny_backbones["clip"], "lora", lora_rank=2)
    template, ingredients = read_ingredients(folders)
    exact, _ = average(template, ingredients, WEIGHTS)
    cut, error = average(template, ingredients, WEIGHTS, rank=rank)
    assert cut.backbone.active_peft_config.r == rank
    errors, own = [], dict(cut.backbone.named_modules())
    for name, layer in exact.backbone.named_modules():
        if hasattr(layer, "get_delta_weight"):
            full = layer.get_delta_weight("default").detach().double()
            u, s, v = torch.linalg.svd(full)  # of the whole matrix
            nearest = (u[:, :rank] * s[:rank]) @ v[:rank]
            found = own[name].get_delta_weight("default").detach().double()
            torch.testing.assert_close(found, nearest, rtol=0, atol=1e-6)
            errors.append(float((full - nearest).norm() / full.norm()))
    assert error == pytest.approx(max(errors), abs=1e-6) and (error > 0.01) == (rank < 6)


def test_updates_of_convolutions_add_up():
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(r, 3, 2, 2, generator=generator), torch.randn(5, r, 1, 1, generator=generator)) for r in (2, 3)
    ]

    def product(a, b):
        return torch.einsum("or,rixy->oixy", b[:, :, 0, 0].double(), a.double())

    expected = 0.3 * product(*pairs[0]) - 2 * product(*pairs[1])
    a, b = add_updates(pairs, [0.3, -2])
    assert a.shape == (5, 3, 2, 2) and b.shape == (5, 5, 1, 1)
    torch.testing.assert_close(product(a, b), expected)
    a, b, error = truncate(a, b, 5)
    torch.testing.assert_close(product(a, b), expected)
    assert error < 1e-12


def test_what_adds_nothing_takes_no_rank():
    a, b = torch.randn(2, 4), torch.randn(3, 2)
    found = add_updates([(a, b), (torch.randn(2, 4), torch.zeros(3, 2)), (torch.randn(2, 4), b)], [0.5, 0.5, 0.0])
    assert found[0].shape == (2, 4)
    torch.testing.assert_close(found[1] @ found[0], 0.5 * (b @ a).double(), rtol=1e-5, atol=1e-5)
    shared = add_updates([(a, b), (a, 2 * b)], [0.5, 0.25])
    assert shared[0].shape == (2, 4)
    torch.testing.assert_close(shared[1] @ shared[0], (b @ a).double(), rtol=1e-5, atol=1e-5)


# ---- what does not go together ----


def test_other_architectures_are_named(tiny_backbones, tmp_path):
    clip = tiny_backbones["clip"]
    save(tmp_path / "cosine", clip, "lora", lora_rank=2)
    save(tmp_path / "linear", clip, "lora", head="linear", lora_rank=2)
    save(tmp_path / "norms", clip, "lora,norms", lora_rank=2)
    save(tmp_path / "ssf", clip, "ssf")
    save(tmp_path / "last", clip, "lora", lora_rank=2, tuned_layers=[2])

    def refusal(*names) -> str:
        with pytest.raises(ValueError) as refused:
            read_ingredients([str(tmp_path / name) for name in names])
        return str(refused.value)

    assert "linear' and '" in refusal("cosine", "linear")
    assert "are not of one architecture: head is 'linear', not 'cosine'" in refusal("cosine", "linear")
    assert "inserted is {'format': 2" in refusal("cosine", "ssf")
    assert "did not train the same weights: they differ at 'backbone." in refusal("cosine", "norms")
    assert "did not train the same weights: they differ at 'backbone." in refusal("cosine", "last")


def test_factors_of_the_text_tower_are_refused_by_name_or_merged(tiny_backbones, tmp_path):
    folders = save_several(tmp_path, tiny_backbones["clip"], "text_lora", lora_rank=2)
    with pytest.raises(
        ValueError, match="modules of the kind 'text_lora', whose factors do not average; set --merged"
    ):
        read_ingredients(folders)
    template, ingredients = read_ingredients(folders, merged=True)
    assert_is_mean_of_merged(average(template, ingredients, WEIGHTS)[0], folders)


def test_no_classifier_is_refused():
    with pytest.raises(ValueError, match="No classifier is given to average; name one or more folders"):
        read_ingredients([])


def test_weights_and_ranks_out_of_range_are_named(tiny_backbones, tmp_path):
    template, ingredients = read_ingredients(save_several(tmp_path, tiny_backbones["clip"], "norms"))
    with pytest.raises(ValueError, match=r"The weights \[1.0, 1.0, 1.0\] of 3 classifiers do not sum to 1"):
        average(template, ingredients, [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"rank is 2, and .* has no LoRA updates to cut to it"):
        average(template, ingredients, WEIGHTS, rank=2)
