"""Steps on a pretend accelerator: all tensors on one device, and few waits for it.

torch can register a device in Python, and fake tensors have shapes and devices but no values, so that whole steps run
on it. A dispatch mode above them lists what would make the host wait for a real device. Private parts of torch are
used in this file alone: as a script it is the process that has the device, as a test it evaluates what that one found.
"""

import json
import sys
import traceback
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytestmark = pytest.mark.slow

DEVICE = "pretend"
COUNTS = [100, 40, 20, 8, 2]
METHODS = ("sam", "focal_sam", "imbsam", "cc_sam")
# Choices of Focal-SAM's perturbation, and the ways to tune that they are tried with.
CHOICES = {
    "norms": {"perturb": "norms", "direction": "friendly"},
    "merged": {"perturb": "merged", "direction": "momentum"},
    "one pass": {"direction": "momentum", "evaluation": "one_pass"},
}
CHOSEN = ("lora", "both_towers", "adaptformer", "vpt_deep")
# Waits of the host in a step: for the norm of the gradient. CC-SAM's are for the classes in the batch and the size of
# the largest one. In each pass through a text tower, two or CC-SAM's three, transformers asks whether a prompt is
# padded.
LIMIT, CC_SAM_LIMIT, TEXT_WAITS = 1, 2, 3
# The first steps compare gradients and look for the frozen prefix, which takes longer where gradients appear late.
FEWEST_STEPS, MOST_STEPS = 3, 12


# ---- in a process of its own ----


class Watch(TorchDispatchMode):
    """Answers what asks for values, and lists what would wait for the device or copy between devices.

    Attributes:
        waits (`Counter`): "operation, file:line of the package or of transformers" -> times.
        copies (`Counter`): The same of copies between the device and the CPU.
    """

    def __init__(self, fake: FakeTensorMode):
        super().__init__()
        self.fake = fake
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        before = _devices((args, kwargs))
        picks = [i for i in args[1] if i is not None] if operation is torch.ops.aten.index.Tensor else []
        is_pick = bool(picks) and all(i.dtype not in (torch.bool, torch.uint8) for i in picks)
        asks = torch.Tag.data_dependent_output in operation.tags
        if DEVICE in before and not is_pick and (asks or torch.Tag.dynamic_output_shape in operation.tags):
            self._note(self.waits, operation)
        if asks and operation is not torch.ops.aten._local_scalar_dense.default:
            return True  # whether tensors are equal
        if asks and isinstance(args[0], FakeTensor):
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        if operation is torch.ops.aten._unique2.default:
            samples, classes = args[0], 3
            return samples.new_empty(classes), torch.empty_like(samples), samples.new_empty(classes)
        if operation is torch.ops.aten._to_copy.default and type(args[0]) is Tensor:
            args = (self.fake.from_tensor(args[0]),)
        output = operation(*args, **kwargs)
        if len(before | _devices(output)) > 1:
            self._note(self.copies, operation)
        return output

    def _note(self, counter: Counter[str], operation) -> None:
        stack = traceback.extract_stack()
        place = [f for f in stack if {"ft_focalsam", "transformers"} & set(Path(f.filename).parts)][-1]
        counter[f"{operation}, {Path(place.filename).name}:{place.lineno}"] += 1


def _devices(structure) -> set[str]:
    """Types of the devices of its tensors; numbers on the CPU go along with the operations of any device."""
    return {
        t.device.type for t in tree_leaves(structure) if isinstance(t, Tensor) and (t.ndim or t.device.type != "cpu")
    }


class PretendModule(backend_registration._DummyBackendModule):
    def get_rng_state(self, device=None):
        return torch.zeros(16, dtype=torch.uint8)

    def set_rng_state(self, state, device=None):
        pass

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


def make_step(model: nn.Module, method: str, images: Tensor, labels: Tensor):
    from ft_focalsam.sharpness import ClassConditionalSAM, FocalSAM, class_weights
    from ft_focalsam.sharpness.directions import make_direction

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    cross_entropy = partial(F.cross_entropy, target=labels, reduction="none")
    if method != "cc_sam":
        choices = dict(CHOICES.get(method, {}))
        if "direction" in choices:
            choices["direction"] = make_direction(choices["direction"])
        weights = class_weights("focal_sam" if method in CHOICES else method, COUNTS)
        focal_sam = FocalSAM(optimizer, model, class_weights=weights, **choices)
        return lambda: focal_sam.step(lambda: cross_entropy(model(pixel_values=images).logits), labels=labels)
    cc_sam = ClassConditionalSAM(model, class_counts=COUNTS)

    def step():
        optimizer.zero_grad()
        with cc_sam.watch():
            losses = cc_sam.losses(model(pixel_values=images).logits, labels, cross_entropy)
        losses.mean().backward()
        optimizer.step()

    return step


def limit_of(method: str) -> int:
    return CC_SAM_LIMIT if method == "cc_sam" else LIMIT


def last_step(backbone: str, tuning: str, options: dict, method: str) -> dict[str, dict[str, int]]:
    """Waits and copies in the last one of a few steps, of no more than it takes to keep to the limit."""
    from ft_focalsam import LongTailClassifier, TuningOptions, apply_tuning

    torch.manual_seed(0)
    model = LongTailClassifier.from_backbone(backbone, list("abcde"))
    apply_tuning(model, tuning, TuningOptions(**options))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        model.train()._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=DEVICE))
        images = torch.randn(4, 3, 8, 8, device=DEVICE)
        labels = torch.zeros(4, dtype=torch.long, device=DEVICE)
    step = make_step(model, method, images, labels)
    with fake:
        for number in range(1, MOST_STEPS + 1):
            with Watch(fake) as watch:
                step()
            ours = [place for place in watch.waits.elements() if "masking_utils" not in place]
            if number >= FEWEST_STEPS and len(ours) <= limit_of(method):
                break
    return {"waits": watch.waits, "copies": watch.copies}


def main(backbone: str, ways: str, output: str) -> None:
    """Write `last_step` for each of the ways to tune and each method, or the error that it ended with."""
    from transformers import masking_utils

    from ft_focalsam.sharpness import per_sample
    from ft_focalsam.sharpness.gradients import verified

    backend_registration._setup_privateuseone_for_python_backend(DEVICE, PretendModule())
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    verified.tolerances = per_sample.tolerances = lambda *_, **__: (1.0, 1.0)  # gradients without values are equal
    masking_utils.is_tracing = lambda *_: False  # which transformers takes fake tensors for
    found = {}
    for way, (tuning, options) in json.loads(ways).items():
        for method in (*METHODS, *(CHOICES if way in CHOSEN else ())):
            try:
                found[f"{way}, {method}"] = last_step(backbone, tuning, options, method)
            except Exception:
                found[f"{way}, {method}"] = {"error": traceback.format_exc()}
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.exit()


# ---- the tests ----

from families import save_families  # noqa: E402
from running import python  # noqa: E402
from tuning.test_table import METHODS as TUNED  # noqa: E402
from tuning.test_table import SIZES, TEXT_METHODS  # noqa: E402

WAYS = {way: (tuning, SIZES | options) for way, (tuning, options) in TUNED.items() if way != "zero_shot"}  # trains


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict]:
    """What `main` found, for a CLIP with both towers."""
    root = tmp_path_factory.mktemp("pretend")
    with torch.random.fork_rng():
        backbone = save_families(root)["clip"]
    process = python(__file__, backbone, json.dumps(WAYS), root / "found.json")
    assert process.returncode == 0, process.stderr
    return json.loads((root / "found.json").read_text())


REFUSED = [("both_towers", "one pass"), ("adaptformer", "merged"), ("vpt_deep", "merged")]
CASES = [(way, method) for way in WAYS for method in METHODS]
CASES += [(way, choice) for way in CHOSEN for choice in CHOICES if (way, choice) not in REFUSED]


@pytest.mark.parametrize(("way", "method"), CASES)
def test_a_step_keeps_to_the_device_and_hardly_waits_for_it(found, way, method):
    result = found[f"{way}, {method}"]
    assert "error" not in result, result["error"]
    assert result["copies"] == {}
    limit = limit_of(method) + (TEXT_WAITS if way in TEXT_METHODS else 0)
    assert sum(result["waits"].values()) <= limit, result["waits"]
