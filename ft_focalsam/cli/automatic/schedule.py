"""Batch size, epochs and learning rate from the number of images, the backbone and the machine."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .backbones import Backbone
from .machine import GIB, Machine, largest_batch, seconds_on_cpu

STEPS = 1000  # optimizer steps that a run should have
EPOCHS = (10, 40)
LEAST_EPOCHS_ON_CPU = 5
BATCHES = (8, 128)
MOST_ON_CPU = 32
SECONDS_PER_STEP = 0.05  # on a CPU, beside the matrix products
HOURS = 2  # that a CPU may train before the run is made shorter
# Of AdamW, by the way to tune, as recipes/configs/cifar100_lt/ has them; those of inserted modules are for width 384.
LEARNING_RATES = {"full": 5e-5, "last_blocks": 1e-4, "ia3": 5e-3, "vpt_deep": 5e-3, "vpt_shallow": 5e-3}
OF_INSERTED, AT_WIDTH = 1e-3, 384


@dataclass(frozen=True)
class Work:
    """What is trained on what.

    Args:
        machine, backbone: As they are described there.
        images (`int`): Training images.
        given (mapping): Keys that the user has set, which win.
    """

    machine: Machine
    backbone: Backbone
    images: int
    given: Mapping[str, object]

    @property
    def is_full(self) -> bool:
        """Whether all weights train."""
        return "full" in str(self.given.get("tuning", "lora"))

    @property
    def is_sharp(self) -> bool:
        """Whether a step takes two passes."""
        return self.given.get("sharpness", "focal_sam") != "none"

    @property
    def is_half(self) -> bool:
        """Whether matrices are multiplied in half precision."""
        native = self.machine.precision
        asked = [self.given[name] for name in ("bf16", "fp16") if name in self.given]
        return any(asked) if asked else native is not None

    def hours(self, epochs: float, image_size: int) -> float:
        """How long a CPU trains, roughly."""
        precision = {"is_half": self.is_half, "is_sharp": self.is_sharp}
        each = seconds_on_cpu(self.machine, self.backbone, image_size, **precision)
        steps = epochs * math.ceil(self.images / batch_size(self, image_size))
        return (epochs * self.images * each + steps * SECONDS_PER_STEP) / 3600


def choose_precision(work: Work) -> tuple[dict[str, object], list[str]]:
    """Mixed precision where the device computes with it natively.

    On a CPU the models of transformers then compute attention step by step: the backward pass of its fused kernel is
    slow in bfloat16 (recipes/RESULTS.md, "bfloat16 on a CPU").
    """
    precision, machine = work.machine.precision, work.machine
    if precision is None or {"bf16", "fp16"} & set(work.given):
        return {}, []
    settings: dict[str, object] = {precision: True}
    if machine.is_cpu and ":" not in work.backbone.name:
        settings["attn_implementation"] = "eager"
    where = "this CPU" if machine.is_cpu else machine.name
    return settings, [f"mixed precision {precision}: {where} computes with it natively"]


def choose_image_size(work: Work) -> tuple[int, list[str]]:
    """Side of the images in pixels, and why.

    On an accelerator the backbone's own, also for small images, of which it makes more tokens when they are enlarged.
    On a CPU half of it, in whole patches, where the run would take more than two hours otherwise, which makes it about
    four times as fast.
    """
    own, patch = work.backbone.image_size, work.backbone.patch
    if "image_size" in work.given:
        return int(work.given["image_size"]), []
    epochs = _epochs(work, batch_size(work, own))
    hours = work.hours(epochs, own) if work.machine.is_cpu else 0
    half = max(own // 2 // patch, 1) * patch
    if hours <= HOURS or half >= own or not work.backbone.is_described:
        of = f"{own}: the backbone's own" if work.backbone.is_described else "of the backbone"
        return own, [f"image size {of}"]
    return half, [f"image size {half}: at the backbone's own of {own} the run would take {_duration(hours)} on a CPU"]


def batch_size(work: Work, image_size: int) -> int:
    """Images a step: about a fiftieth of the training set, so that an epoch has some 50 steps, between 8 and 128.

    128 is what the Focal-SAM paper uses; the small sets of RESULTS.md have 16. A CPU gains nothing from more than 32.
    """
    most = MOST_ON_CPU if work.machine.is_cpu else BATCHES[1]
    return min(most, max(BATCHES[0], 2 ** round(math.log2(work.images / 50))))


def choose_batch(work: Work, image_size: int) -> tuple[dict[str, object], int, list[str]]:
    """Keys of the batches, images a step, and why: what does not fit the memory is accumulated."""
    machine, given = work.machine, work.given
    fits = largest_batch(machine, work.backbone, image_size, is_half=work.is_half, is_full=work.is_full)
    accumulated = int(given.get("gradient_accumulation_steps", 0))
    if "per_device_train_batch_size" in given:
        each = int(given["per_device_train_batch_size"])
    else:
        each = max(1, min(batch_size(work, image_size) // machine.processes // max(accumulated, 1), fits))
    wanted = max(1, batch_size(work, image_size) // (each * machine.processes))
    accumulated = accumulated or (1 if "per_device_train_batch_size" in given else wanted)
    total = each * accumulated * machine.processes
    settings: dict[str, object] = {
        "per_device_train_batch_size": each,
        "per_device_eval_batch_size": max(each, min(256, 2 * fits)),
        "gradient_accumulation_steps": accumulated,
    }
    if "per_device_train_batch_size" in given:
        return settings, total, []
    room = f"{machine.memory / GIB:.0f} GiB of {'memory' if machine.is_cpu else machine.name}"
    more = f" in {accumulated} parts of {each}" if accumulated > 1 else ""
    of = f" on {machine.processes} processes" if machine.processes > 1 else ""
    why = f"for {work.images:,} training images; up to {fits:,} at {image_size} pixels fit {room}"
    return settings, total, [f"batch size {total}{more}{of}: {why}"]


def _epochs(work: Work, batch: int) -> int:
    if "num_train_epochs" in work.given:
        return math.ceil(float(work.given["num_train_epochs"]))
    steps = math.ceil(work.images / batch)
    return min(max(EPOCHS[0], math.ceil(STEPS / steps)), EPOCHS[1])


def choose_epochs(work: Work, batch: int, image_size: int) -> tuple[dict[str, object], list[str]]:
    """Epochs for about 1,000 steps, 10 to 40; on a CPU fewer, down to 5, where it would train for more than two hours.

    RESULTS.md finds Focal-SAM behind plain training after 5 epochs of 740 images in batches of 16, ahead after 20
    (about 900 steps), and level after 10 of 2,131 images; LIFT (arXiv 2309.10019) trains CLIP for 10.
    """
    if {"num_train_epochs", "max_steps"} & set(work.given):
        return {}, []
    epochs = wanted = _epochs(work, batch)
    why = f"{epochs * math.ceil(work.images / batch):,} steps"
    if work.machine.is_cpu:
        hours = work.hours(wanted, image_size)
        if hours > HOURS:
            epochs = max(min(LEAST_EPOCHS_ON_CPU, wanted), math.floor(wanted * HOURS / hours))
        hours = work.hours(epochs, image_size)
        why = f"{epochs * math.ceil(work.images / batch):,} steps, roughly {_duration(hours)} on {work.machine.name}"
        if epochs < wanted:
            why += f"; {wanted} would be better where there is a GPU, or time"
    return {"num_train_epochs": epochs}, [f"{epochs} epochs: {why}"]


def choose_optimizer(work: Work) -> tuple[dict[str, object], list[str]]:
    """Optimizer, learning rate and schedule.

    AdamW, because one learning rate has to serve inserted modules and a head at once. 1e-3 is the best of 3e-4, 1e-3
    and 3e-3 for LoRA on DINOv2 ViT-S/14, whose width is 384 (recipes/RESULTS.md, one seed); for wider models it falls
    as 1 / width, as the learning rate of Adam has to for steps of the same size in the features (Yang et al., arXiv
    2203.03466). Other ways to tune take that of their recipe. With SGD, 0.01 and weight decay 5e-4, as published.
    """
    given = work.given
    if str(given.get("optim", "adamw_torch")).startswith("sgd"):
        settings: dict[str, object] = {"learning_rate": 0.01, "optim_args": "momentum=0.9", "weight_decay": 5e-4}
        return settings | {"lr_scheduler_type": "cosine"}, ["learning rate 0.01: published for SGD"]
    tuning = str(given.get("tuning", "lora")).split(",")[0]
    rate = LEARNING_RATES.get(tuning)
    why = f"as in the recipe for {tuning}"
    if rate is None:
        rate = float(f"{OF_INSERTED * min(1, AT_WIDTH / work.backbone.width):.1g}")
        why = f"for modules in a backbone of width {work.backbone.width}"
    settings = {"optim": "adamw_torch", "learning_rate": rate, "weight_decay": 0.01, "lr_scheduler_type": "cosine"}
    return settings, [] if "learning_rate" in given else [
        f"learning rate {rate:g}: {why}, with AdamW and a cosine schedule"
    ]


def _duration(hours: float) -> str:
    if hours >= 1.5:
        return f"{hours:,.0f} hours"
    minutes = max(1, round(60 * hours))
    return f"{minutes} minute{'s' if minutes > 1 else ''}"
