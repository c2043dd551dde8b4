"""Between the start and the tuned weights: the classifiers themselves at both ends, and between them a line in the
weights, or in the output of what was inserted."""

import pytest
import torch
from averaging.ingredients import LOHA
from tuning.tiny import NAMES, logits_of, make_images, randomise

from ft_focalsam import LongTailClassifier, TuningOptions, apply_tuning
from ft_focalsam.averaging.average import average
from ft_focalsam.averaging.wise_ft import read_with_start
from ft_focalsam.export import merge
from ft_focalsam.models import init_head
from ft_focalsam.tuning import TUNING_METHODS

ALPHA = 0.3
LORA = {"lora_rank": 2}
KNOWN = {
    "lora": ("lora", LORA),
    "rslora": ("lora", LORA | {"lora_rslora": True}),
    "dora": ("lora", LORA | {"lora_dora": True}),
    "pissa": ("lora", LORA | {"lora_init": "pissa"}),
    "loha": ("peft", {"peft_config": LOHA}),
    "ia3": ("ia3", {}),
    "bias": ("bias", {}),
    "norms": ("norms", {}),
    "last_blocks": ("last_blocks", {"last_blocks": 1}),
    "full": ("full", {}),
    "linear_probe": ("linear_probe", {}),
    "sparse": ("sparse", {"sparse_ratio": 0.1}),
    "ssf": ("ssf", {"tuned_layers": [0, 1, 2]}),
    "adaptformer": ("adaptformer", {"adapter_width": 4}),
    "adapter": ("adapter", {"adapter_width": 4}),
    "lora+norms+adaptformer": ("lora,norms,adaptformer", LORA | {"adapter_width": 4}),
}
REFUSED = {
    "vpt_shallow": "prompts",
    "vpt_deep": "prompts",
    "clip_adapter": "clip_adapter",
    "context_prompts": "context",
    "text_lora": "text_lora",
}
CANNOT_BE_MERGED = ("adaptformer", "adapter", "lora+norms+adaptformer")


def start_and_tuned(folder, backbone: str, tuning: str, options: dict):
    """The zero-shot classifier, and a tuned one that began as it, which is saved."""
    torch.manual_seed(1)
    model = LongTailClassifier.from_backbone(backbone, NAMES)
    init_head(model, "text")
    start = logits_of(model.eval()), merge(model).state_dict()
    apply_tuning(model, tuning, TuningOptions(**options))
    randomise(model).eval().save_pretrained(folder)
    return start, LongTailClassifier.from_pretrained(folder)


def test_every_way_to_tune_is_interpolated_or_refused():
    assert {tuning for tuning, _ in KNOWN.values() if "," not in tuning} | {*REFUSED, "zero_shot"} == set(
        TUNING_METHODS
    )


@pytest.mark.parametrize("case", KNOWN)
def test_the_ends_are_the_start_and_the_tuned_classifier(case, tiny_backbones, tmp_path):
    (start, _), tuned = start_and_tuned(tmp_path, tiny_backbones["clip"], *KNOWN[case])
    template, ends = read_with_start(str(tmp_path))
    for alpha, expected in ((0, start), (1, logits_of(tuned))):
        found = logits_of(average(template, ends, [1 - alpha, alpha])[0])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (start - logits_of(tuned)).abs().max() > 0.1


@pytest.mark.parametrize("case", [case for case in KNOWN if case not in CANNOT_BE_MERGED])
def test_merged_weights_are_interpolated(case, tiny_backbones, tmp_path):
    (_, start), tuned = start_and_tuned(tmp_path, tiny_backbones["clip"], *KNOWN[case])
    template, ends = read_with_start(str(tmp_path))
    found = merge(average(template, ends, [1 - ALPHA, ALPHA])[0]).state_dict()
    after = merge(tuned).state_dict()
    assert found.keys() == start.keys() == after.keys()
    for name in found:
        expected = (1 - ALPHA) * start[name].double() + ALPHA * after[name].double()
        torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=2e-6, msg=name)


def test_lora_keeps_its_rank(tiny_backbones, tmp_path):
    start_and_tuned(tmp_path, tiny_backbones["clip"], "lora", LORA)
    template, ends = read_with_start(str(tmp_path))
    assert average(template, ends, [1 - ALPHA, ALPHA])[0].backbone.active_peft_config.r == 2


@pytest.mark.parametrize("case", ["adaptformer", "adapter"])
def test_the_output_of_an_adapter_is_scaled(case, tiny_backbones, tmp_path):
    _, tuned = start_and_tuned(tmp_path, tiny_backbones["clip"], *KNOWN[case])
    template, ends = read_with_start(str(tmp_path))
    between = average(template, ends, [1 - ALPHA, ALPHA])[0]
    for module in tuned.backbone.modules():  # by hand: the output of each adapter times alpha
        if hasattr(module, "adapter"):
            module.adapter.register_forward_hook(lambda module, args, output: ALPHA * output)
    with torch.no_grad():
        torch.testing.assert_close(between.features(make_images()), tuned.features(make_images()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tuning", REFUSED)
def test_what_was_not_nothing_at_the_start_is_refused_by_name(tuning, tiny_backbones, tmp_path):
    start_and_tuned(tmp_path, tiny_backbones["clip"], tuning, LORA)
    with pytest.raises(ValueError, match=f"has modules of the kind '{REFUSED[tuning]}', which were not nothing"):
        read_with_start(str(tmp_path))


def test_a_head_from_elsewhere_needs_the_run_of_the_start(tiny_backbones, tmp_path):
    torch.manual_seed(0)
    model = LongTailClassifier.from_backbone(tiny_backbones["dinov2"], NAMES)
    start = logits_of(model.eval())
    apply_tuning(model, "zero_shot")
    model.save_pretrained(tmp_path / "start")
    model = LongTailClassifier.from_pretrained(tmp_path / "start")
    apply_tuning(model, "lora", TuningOptions(**LORA))
    randomise(model).eval().save_pretrained(tmp_path / "tuned")
    with pytest.raises(ValueError, match=r"was not started from texts.*--tuning zero_shot.*as --start"):
        read_with_start(str(tmp_path / "tuned"))
    template, ends = read_with_start(str(tmp_path / "tuned"), start=str(tmp_path / "start"))
    torch.testing.assert_close(logits_of(average(template, ends, [1, 0])[0]), start, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="tuned' was tuned itself; give the run of the start"):
        read_with_start(str(tmp_path / "tuned"), start=str(tmp_path / "tuned"))
