"""Every backbone with every way to tune: one table.

Each pair trains what it says and nothing else, by one backward pass for both gradients, exactly; is saved, and loads
in a new process to the same logits; and is merged into plain weights. Pairs that do not go together, and those for
which something of this is not to be had, are named here with the reason.
"""

import copy
from pathlib import Path

import families
import other_libraries
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from running import python
from safetensors.torch import load_file, save_file
from sharpness.models import COUNTS, naive_gradient, relative_error, run_step

from ft_focalsam import FocalSAM, LongTailClassifier, TuningOptions, apply_tuning, class_weights
from ft_focalsam.export import merge
from ft_focalsam.sharpness import SharpnessStep
from ft_focalsam.tuning import TUNING_METHODS

pytestmark = pytest.mark.slow

NAMES = ("owl", "fox", "newt", "moth", "carp")
RHO = 0.05
LABELS = torch.tensor([0, 1, 4, 0])
OTHERS = (
    "timm", "timm_registers", "timm_map", "timm_distilled", "timm_eva", "open_clip", "open_clip_coca", "open_clip_timm"
)  # fmt: skip
BACKBONES = (*families.FAMILIES, *OTHERS)
SIZES = {"lora_rank": 2, "adapter_width": 4, "prompt_length": 3, "sparse_ratio": 0.1, "context_length": 4}
ATTENTION = r".*\.(q_proj|v_proj|query|value|qkv)"
# Name of a way to tune -> (what users write, options).
METHODS = {name: (name, {}) for name in TUNING_METHODS if name != "peft"} | {
    "rslora": ("lora", {"lora_rslora": True}),
    "dora": ("lora", {"lora_dora": True}),
    "pissa": ("lora", {"lora_init": "pissa"}),
    "loha": ("peft", {"peft_config": {"peft_type": "LOHA", "r": 2, "target_modules": ATTENTION}}),
    "context_of_words": ("context_prompts", {"context_init": "a photo of a", "context_per_class": True}),
    "both_towers": ("lora,text_lora,context_prompts", {}),
    "combined": ("norms,vpt_deep,ssf,bias,sparse,adaptformer,last_blocks,lora,clip_adapter", {}),
}

WITH_TEXTS = ("clip", "siglip", "open_clip", "open_clip_coca", "open_clip_timm")
WITHOUT_PLACE = ("beit", "data2vec-vision", "timm_eva")  # for prompts, among position biases or rotated positions
WITHOUT_BIAS = (  # in some layer outside of the blocks or for the keys
    "dinov3_vit", "beit", "data2vec-vision", "clip", "timm_registers", "open_clip", "open_clip_coca", "open_clip_timm"
)  # fmt: skip
TEXT_METHODS = ("text_lora", "context_prompts", "context_of_words", "both_towers")
PROMPTS = ("vpt_shallow", "vpt_deep", "combined")


def refusal(backbone: str, method: str) -> str | None:
    """Why the two do not go together, as the error says it."""
    if method in TEXT_METHODS and backbone not in WITH_TEXTS:
        return "has no text tower to tune"
    if method == "ia3" and backbone == "data2vec-vision":
        return "has no linear layers called"
    if method in PROMPTS and backbone in WITHOUT_PLACE:
        return "takes no prompts: it"
    return None


# Relative error where a model itself does not compute all in float64: timm resizes its position table in float32.
ROUNDING = {("open_clip_timm", "full"): 1e-9}


def not_mergeable(backbone: str, method: str) -> str | None:
    """Why what was tuned cannot be folded into the weights of the backbone, as the error says it."""
    if method in ("adaptformer", "adapter", "vpt_shallow", "vpt_deep", "clip_adapter", "combined"):
        return "cannot be folded into the weights"
    if method == "ssf" and backbone in WITHOUT_BIAS:
        return "has no bias"
    return None


PAIRS = [(b, m) for b in BACKBONES for m in METHODS if refusal(b, m) is None]
REFUSED = [(b, m) for b in BACKBONES for m in METHODS if refusal(b, m) is not None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Names of all backbones."""
    root = tmp_path_factory.mktemp("table_backbones")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {**families.save_families(root), **other_libraries.save_others(root)}


def make(backbone: str, method: str) -> LongTailClassifier:
    """A tuned classifier, what trains of it moved away from its start."""
    torch.manual_seed(1)
    model = LongTailClassifier.from_backbone(backbone, NAMES)
    tuning, options = METHODS[method]
    apply_tuning(model, tuning, TuningOptions(**SIZES | options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.train()


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def made(folders, request) -> tuple[str, str, LongTailClassifier]:
    """A backbone, a way to tune, and the classifier, made once for all that is tried on it."""
    backbone, method = request.param
    return backbone, method, make(folders[backbone], method)


def make_images(backbone: str) -> torch.Tensor:
    side = other_libraries.side_of(backbone)
    return torch.randn(len(LABELS), 3, side, side, generator=torch.Generator().manual_seed(2))


def trained(model: LongTailClassifier) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def test_one_backward_pass_gives_the_gradient_of_three(made):
    backbone, method, model = made
    model = copy.deepcopy(model).double()
    model.config.backbone_dtype = "float64"
    weights = class_weights("focal_sam", COUNTS, {"gamma": 2.0, "lam": 1.1})
    images = make_images(backbone).double()
    if method == "zero_shot":
        assert trained(model) == []
        return
    expected = naive_gradient(model, images, LABELS, weights, RHO)
    step = SharpnessStep(model, weights, rho=RHO)
    for _ in range(2):  # the first with the comparison, the second without
        error = relative_error(run_step(step, model, images, LABELS), expected)
        assert error <= ROUNDING.get((backbone, method), 1e-10)
    assert step.separate_reason is None
    assert step.backward_passes == 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Where the models of this table are saved, with the logits that they gave."""
    return tmp_path_factory.mktemp("table_models")


def has_no_gradient(name: str) -> bool:
    """The mask token of masked pretraining; a bias of the keys, which adds the same to all logits of a query."""
    return "mask_token" in name or ("bias" in name and any(key in name for key in ("k_proj", "key", "qkv")))


def test_training_moves_what_it_says_and_nothing_else(made, saved):
    backbone, method, model = made
    model = copy.deepcopy(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = make_images(backbone)
    reached = set()
    if method != "zero_shot":
        sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        optimizer = FocalSAM(sgd, model, class_counts=COUNTS, rho=RHO, gamma=2.0, lam=1.1)
        for _ in range(2):
            optimizer.step(lambda: F.cross_entropy(model(images).logits, LABELS, reduction="none"), labels=LABELS)
            reached |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved <= reached <= set(trained(model))
    left = [name for name in trained(model) if name not in moved and not has_no_gradient(name)]
    assert left == []
    folder = saved / f"{backbone}-{method}"
    model.eval().save_pretrained(folder)
    with torch.no_grad():
        save_file({"images": images, "logits": model(images).logits}, folder / "expected.safetensors")
    assert set(load_file(folder / "model.safetensors")) == {
        name for name, p in model.named_parameters() if p.requires_grad or name == "head.weight"
    }


def test_merged_into_plain_weights_it_gives_the_same_logits(made):
    backbone, method, model = made
    model = copy.deepcopy(model).eval()
    reason = not_mergeable(backbone, method)
    if reason is not None:
        with pytest.raises(ValueError, match=f"{reason}.*export to onnx"):
            merge(model)
        return
    merged = merge(model)
    with torch.no_grad():
        logits, expected = merged(make_images(backbone)).logits, model(make_images(backbone)).logits
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1)
    assert merged.config.inserted is None and not isinstance(merged.backbone, PeftModel)


def test_a_new_process_gives_the_same_logits(saved, tmp_path):
    """All that were saved above, by `from_pretrained` alone."""
    folders = sorted(saved.iterdir())
    if not folders:
        pytest.skip("no pair of the table has run")
    (tmp_path / "loading.py").write_text(LOADING)
    result = python(tmp_path / "loading.py", *folders)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == f"{len(folders)} the same\n"


LOADING = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file
from ft_focalsam import LongTailClassifier

for folder in map(Path, sys.argv[1:]):
    expected = load_file(folder / "expected.safetensors")
    with torch.no_grad():
        logits = LongTailClassifier.from_pretrained(folder)(expected["images"]).logits
    scale = expected["logits"].abs().max().clamp(min=1)
    assert (logits - expected["logits"]).abs().max() <= 1e-6 * scale, folder.name
print(len(sys.argv) - 1, "the same")
"""


@pytest.mark.parametrize(("backbone", "method"), REFUSED)
def test_what_does_not_go_together_says_why_and_changes_nothing(folders, backbone, method):
    model = LongTailClassifier.from_backbone(folders[backbone], NAMES)
    names = [name for name, _ in model.named_parameters()]
    tuning, options = METHODS[method]
    with pytest.raises(ValueError, match=f"{refusal(backbone, method)}.*; (choose|name)"):
        apply_tuning(model, tuning, TuningOptions(**SIZES | options))
    if method not in ("both_towers", "combined"):  # whose other parts may be in place by then
        assert [name for name, _ in model.named_parameters()] == names


def test_every_method_is_in_the_table():
    assert {name for tuning, _ in METHODS.values() for name in tuning.split(",")} == set(TUNING_METHODS)
