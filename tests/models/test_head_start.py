"""Heads and their starts against naive loops."""

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from ft_focalsam.models import (
    HEADS,
    LongTailClassifier,
    choose_head_start,
    class_means,
    init_head,
    register_head,
    text_features,
)

NAMES = ("owl", "red_fox", "great_crested_newt")
FAMILIES = ("vit", "dinov2", "clip")


def batches() -> list[dict[str, torch.Tensor]]:
    """Eleven images of three classes in batches of unequal size."""
    images = torch.randn(11, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 0, 1, 2, 0, 0, 2, 1, 0, 0, 0])
    return [{"pixel_values": images[a:b], "labels": labels[a:b]} for a, b in ((0, 5), (5, 9), (9, 11))]


def build(backbone, *, head: str = "cosine", **options) -> LongTailClassifier:
    torch.manual_seed(2)
    return LongTailClassifier.from_backbone(str(backbone), NAMES, head=head, **options)


@torch.no_grad()
def naive_class_means(model: LongTailClassifier) -> torch.Tensor:
    vectors: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    for batch in batches():
        for image, label in zip(batch["pixel_values"], batch["labels"], strict=True):
            feature = model.features(image[None])[0].double()
            vectors[int(label)].append(feature / feature.square().sum().sqrt())
    return torch.stack([sum(vectors[label]) / len(vectors[label]) for label in range(3)])


@torch.no_grad()
def naive_text_features(path, prompts: list[list[str]]) -> torch.Tensor:
    """`prompts[i]`: those of class i. One text at a time, without padding, through the whole CLIP."""
    model, tokenizer = CLIPModel.from_pretrained(path).eval(), CLIPTokenizer.from_pretrained(path)
    rows = []
    for of_one_class in prompts:
        total = torch.zeros(model.config.projection_dim, dtype=torch.float64)
        for prompt in of_one_class:
            tokens = torch.tensor([tokenizer(prompt)["input_ids"]])
            feature = model.get_text_features(input_ids=tokens).pooler_output[0].double()
            total += feature / feature.square().sum().sqrt()
        rows.append(total / total.square().sum().sqrt())
    return torch.stack(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_class_means_equal_a_loop(backbones, family):
    model = build(backbones[family]).eval()
    actual = class_means(model, iter(batches()))
    torch.testing.assert_close(actual.double(), naive_class_means(model), rtol=0, atol=1e-6)


def test_class_means_are_taken_without_dropout_and_leave_the_mode(backbones):
    model = build(backbones["vit"])
    expected = naive_class_means(model.eval())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    torch.testing.assert_close(class_means(model, batches()).double(), expected, rtol=0, atol=1e-6)
    assert model.training and all(module.training for module in model.modules())


def test_class_means_of_a_bfloat16_backbone_are_summed_in_float32(backbones):
    model = build(backbones["vit"], dtype="bfloat16").eval()
    actual = class_means(model, batches())
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), naive_class_means(model), rtol=0, atol=2e-3)


def test_class_without_image_is_named(backbones):
    without = [{"pixel_values": batches()[0]["pixel_values"][:2], "labels": torch.tensor([0, 2])}]
    with pytest.raises(ValueError, match="Class 1 has no image"):
        class_means(build(backbones["vit"]), without)


def test_text_features_equal_a_loop_and_read_underscores_as_spaces(backbones):
    prompts = [["a photo of a owl."], ["a photo of a red fox."], ["a photo of a great crested newt."]]
    actual = text_features(str(backbones["clip"]), NAMES)
    torch.testing.assert_close(actual.double(), naive_text_features(backbones["clip"], prompts), rtol=0, atol=1e-6)
    assert (actual[0] - actual[1]).abs().max() > 1e-2


def test_templates_are_averaged(backbones):
    templates = ["a {}.", "{}, blurred", "the {} and its young"]
    prompts = [[template.replace("{}", name) for template in templates] for name in ("owl", "red fox")]
    actual = text_features(str(backbones["clip"]), ["owl", "red_fox"], templates=templates)
    torch.testing.assert_close(actual.double(), naive_text_features(backbones["clip"], prompts), rtol=0, atol=1e-6)


def test_more_names_than_fit_in_one_batch(backbones):
    names = [f"kind {number}" for number in range(300)]
    actual = text_features(str(backbones["clip"]), names, templates=["{}"])[[0, 255, 256, 299]]
    expected = naive_text_features(backbones["clip"], [[names[row]] for row in (0, 255, 256, 299)])
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-6)


def test_template_without_place_for_the_name(backbones):
    with pytest.raises(ValueError, match=r"template 'a photo of a' has no \{\}; write \{\} where the class name goes"):
        text_features(str(backbones["clip"]), NAMES, templates=["{}", "a photo of a"])


def test_text_start_puts_the_text_features_into_the_head(backbones):
    model = build(backbones["clip"])
    init_head(model, "text", batches=list, templates=["a {}", "{}!"])
    prompts = [[f"a {name}", f"{name}!"] for name in ("owl", "red fox", "great crested newt")]
    expected = naive_text_features(backbones["clip"], prompts)
    torch.testing.assert_close(model.head.weight.detach().double(), expected, rtol=0, atol=1e-6)
    assert model.head.weight.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_class_means_start_classifies_by_the_nearest_mean(backbones, family):
    model = build(backbones[family], head="linear").eval()
    init_head(model, "class_means", batches=batches)
    means = naive_class_means(model)
    torch.testing.assert_close(model.head.weight.detach().double(), means, rtol=0, atol=1e-6)
    features = torch.cat([model.features(batch["pixel_values"]) for batch in batches()]).detach().double()
    length = sum(float(f @ f) ** 0.5 for f in features) / len(features)
    bias = -0.5 * length * torch.stack([m @ m for m in means])
    torch.testing.assert_close(model.head.bias.detach().double(), bias, rtol=0, atol=1e-5)
    for f in features:  # of the same length, and of any direction
        direction = f / f.norm()
        answer = model.head((length * direction).float()).argmax()
        assert answer == min(range(3), key=lambda i: float((direction - means[i]).square().sum()))


def test_random_start_leaves_the_head(backbones):
    model = build(backbones["vit"])
    before = model.head.weight.clone()
    init_head(model, "random", batches=list)
    assert torch.equal(model.head.weight, before)


@pytest.mark.parametrize(
    ("family", "expected"),
    [("vit", "class_means"), ("dinov2", "class_means"), ("clip", "text"), ("clip_vision", "class_means")],
)
def test_best_start_of_a_backbone(backbones, family, expected):
    assert choose_head_start(str(backbones[family])) == expected
    assert choose_head_start(str(backbones[family]), "random") == "random"


def test_unknown_start(backbones):
    with pytest.raises(ValueError, match="Unknown head_start 'zeros'; choose one of text, class_means, lin"):
        init_head(build(backbones["vit"]), "zeros", batches=list)


def test_linear_head_started_from_prototypes_answers_with_the_nearest_one():
    """Prototypes of very different length: the largest inner product alone would be wrong."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(7, 16, generator=generator) * torch.linspace(0.2, 3, 7)[:, None]
    features = torch.randn(500, 16, generator=generator)
    head = HEADS["linear"](16, 7, 25.0)
    head.start_from(prototypes)
    nearest = [min(range(7), key=lambda i: float((f - prototypes[i]).square().sum())) for f in features]
    answers = head(features).argmax(dim=1)
    assert answers.tolist() == nearest
    assert ((features @ prototypes.T).argmax(dim=1) != answers).any()


@pytest.mark.parametrize("scale", [1.0, 25.0])
def test_cosine_logits_equal_the_formula(scale):
    torch.manual_seed(0)
    head, features = HEADS["cosine"](8, 5, scale), 10 * torch.randn(6, 8)
    logits = head(features)
    for n, f in enumerate(features.double()):
        for i, w in enumerate(head.weight.detach().double()):
            expected = scale * (f @ w) / (f.norm() * w.norm())
            torch.testing.assert_close(logits[n, i].double(), expected, rtol=0, atol=1e-5)


def test_cosine_head_takes_the_directions_only():
    vectors = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    head = HEADS["cosine"](8, 5, 25.0)
    head.start_from(3 * vectors)
    expected = torch.stack([v / v.square().sum().sqrt() for v in vectors])
    torch.testing.assert_close(head.weight.detach(), expected, rtol=1e-6, atol=1e-7)


def test_head_name_is_taken_once():
    with pytest.raises(ValueError, match=r"The head 'cosine' is already registered by .*; choose another name"):
        register_head("cosine")(torch.nn.Linear)
