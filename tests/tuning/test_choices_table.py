"""Every way to tune with every choice of the perturbation: exact, or refused by the name of what stands in the way."""

import copy

import pytest
import torch.nn.functional as F
from sharpness import choices
from sharpness.choices import NaiveUpdate, make_evaluation, run_update
from sharpness.models import COUNTS, relative_error
from tuning.table import CASES
from tuning.test_inserted import LABELS
from tuning.tiny import build, make_images, randomise

from ft_focalsam import class_weights
from ft_focalsam.sharpness import SharpnessStep
from ft_focalsam.sharpness.directions import make_direction
from ft_focalsam.sharpness.per_sample import NotPerSampleError
from ft_focalsam.tuning import TUNING_METHODS

pytestmark = pytest.mark.slow

RHO = 0.1
C = class_weights("focal_sam", COUNTS, {"gamma": 2.0, "lam": 1.1})
SETTINGS = {"sigma": 0.7, "decay": 0.8}
SIZES = {"lora_rank": 2, "adapter_width": 4, "prompt_length": 3, "context_length": 4}
WAYS = CASES | {name: (name, SIZES) for name in TUNING_METHODS if name not in ("peft", "zero_shot")}
# What one pass cannot do: weights that are multiplied with each other or used by the parent of their module, and
# texts, which belong to no sample.
NOT_IN_ONE_PASS = {"dora": "Linear", "loha": "Linear", "text_lora": "Linear", "context_prompts": "ContextEmbedding"}
TEXTS = ("text_lora", "context_prompts")
# Ways to tune that put adapters of peft into linear layers.
WITH_ADAPTERS = ("rslora", "dora", "pissa", "olora", "loha", "ia3", "lora", "text_lora", "lora+norms", "everything")


def make(path: str, case: str):
    tuning, options = WAYS[case]
    model = randomise(build(path, tuning, **options)).double().train()
    model.config.backbone_dtype = "float64"
    return model


def losses_of(model, images, labels):
    return F.cross_entropy(model(images).logits, labels, reduction="none")


def check(model, perturb, direction, evaluation):
    """Our gradients against the naive ones, over three steps."""
    naive = NaiveUpdate(copy.deepcopy(model), perturb, C, RHO, getattr(choices, direction), losses_of)
    step = SharpnessStep(model, C, rho=RHO, perturb=perturb, direction=make_direction(direction, SETTINGS))
    update = make_evaluation(evaluation, step)
    for number in range(3):
        images = make_images().double() + number
        actual = run_update(update, model, images, LABELS, number=number, losses=losses_of)
        assert relative_error(actual, getattr(naive, evaluation)(images, LABELS)) <= 1e-10


@pytest.mark.parametrize("case", WAYS)
def test_one_pass(tiny_backbones, case):
    model = make(tiny_backbones["clip"], case)
    if case not in NOT_IN_ONE_PASS:
        check(model, "trained", "momentum", "one_pass")
        return
    refused(model, "trained", NOT_IN_ONE_PASS[case])


def refused(model, perturb, kind):
    with pytest.raises(NotPerSampleError, match=rf"the weights of \S+ \({kind}\) cannot be perturbed"):
        check(model, perturb, "momentum", "one_pass")


@pytest.mark.parametrize("evaluation", ["two_point", "one_pass"])
@pytest.mark.parametrize("case", WITH_ADAPTERS)
def test_merged_weights(tiny_backbones, case, evaluation):
    model = make(tiny_backbones["clip"], case)
    if case in TEXTS and evaluation == "one_pass":
        refused(model, "merged", "Linear")
    else:
        check(model, "merged", "momentum", evaluation)


@pytest.mark.parametrize("case", [case for case in WAYS if case not in WITH_ADAPTERS])
def test_ways_without_adapters_have_no_merged_weights(tiny_backbones, case):
    step = SharpnessStep(make(tiny_backbones["clip"], case), C, perturb="merged")
    with pytest.raises(ValueError, match="no linear layer of the model carries an adapter"):
        step.start()


@pytest.mark.parametrize("case", WAYS)
def test_norms(tiny_backbones, case):
    check(make(tiny_backbones["clip"], case), "norms", "friendly", "two_point")
    model = make(tiny_backbones["clip"], case)
    if case in TEXTS:
        refused(model, "norms", "LayerNorm")
    else:
        check(model, "norms", "momentum", "one_pass")


@pytest.mark.parametrize("case", TEXTS)
def test_image_features_are_computed_once_where_texts_train(tiny_backbones, case):
    model = make(tiny_backbones["clip"], case)
    update = make_evaluation("two_point", SharpnessStep(model, C, rho=RHO))
    calls = []
    model.backbone.get_submodule("vision_model").register_forward_hook(lambda *_: calls.append(1))
    for number in range(6):
        calls.clear()
        run_update(update, model, make_images().double() + number, LABELS, number=number, losses=losses_of)
    assert len(calls) == 1
