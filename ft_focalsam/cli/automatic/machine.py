"""What there is to train on: the device, its memory, its cores; and what an image takes of them."""

import math
import os
from dataclasses import dataclass

import psutil

from ...data.workers import available_cores
from .backbones import Backbone

GIB = 2**30
USABLE = 0.8  # of the memory; the rest is for the allocator, other programs and images that wait
BYTES = {"float32": 64, "half": 40}  # held for backward, per token, unit of width and block
FULL = 2  # times that where all weights train, whose gradients need the inputs of all layers
FLOPS_PER_CORE = {"float32": 97e9, "half": 175e9}  # a second
CPU_BF16 = ("avx512_bf16", "amx_bf16")  # instructions that multiply matrices of bfloat16


@dataclass(frozen=True)
class Machine:
    """A device to train on.

    Args:
        device (`str`): "cuda", "mps", ..., or "cpu".
        name (`str`): What sentences call it.
        memory (`int`): Bytes of the device, or of the RAM.
        cores (`int`): CPU cores that this process may use.
        precision (`str`, *optional*): "bf16" or "fp16", where mixed precision is fast there.
        processes (`int`): Training processes, each with such a device; on a CPU they share it.
    """

    device: str
    name: str
    memory: int
    cores: int
    precision: str | None = None
    processes: int = 1

    @property
    def is_cpu(self) -> bool:
        """Whether there is no accelerator."""
        return self.device == "cpu"


def this_machine(*, use_cpu: bool = False) -> Machine:
    """The accelerator of this process, or the CPU.

    Args:
        use_cpu (`bool`): Leave accelerators unused, as `--use_cpu true` does.
    """
    import torch

    cores, processes = available_cores(), int(os.environ.get("WORLD_SIZE", "1"))
    if use_cpu or not torch.accelerator.is_available():
        memory = _available_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        found = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.9 and later say
        precision = "bf16" if any(found.get(name) for name in CPU_BF16) else None
        return Machine("cpu", f"{cores} CPU cores", memory, cores, precision, processes)
    device = torch.accelerator.current_accelerator().type
    if device != "cuda":  # Apple's, which shares the RAM
        return Machine(device, f"the {device} device", _available_memory(), cores, processes=processes)
    properties = torch.cuda.get_device_properties(0)
    precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return Machine(device, properties.name, properties.total_memory, cores, precision, processes)


def _available_memory() -> int:
    """Bytes of the RAM that are free, within the limit of a container."""
    free, limit = psutil.virtual_memory().available, "/sys/fs/cgroup/memory.max"
    try:
        with open(limit, encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        return free
    return min(free, int(text)) if text.isdigit() else free


def memory_per_image(backbone: Backbone, image_size: int, *, is_half: bool, is_full: bool) -> int:
    """Bytes that an image takes while its step is computed.

    What a ViT holds for the backward pass grows with tokens x width x blocks. Counted by saved tensors, DINOv2
    ViT-S/14 with LoRA of rank 8 holds 45 bytes for each unit in float32 and 29 under bfloat16 autocast, at 112 and at
    224 pixels alike; 64 and 40 leave room for what is computed in between. The second pass of a sharpness-aware step
    begins when the first has given its memory back: peak memory is 1.01 times that of plain training
    (recipes/RESULTS.md, "Cost of a step").
    """
    each = BYTES["half" if is_half else "float32"] * (FULL if is_full else 1)
    return each * backbone.tokens(image_size) * backbone.width * backbone.depth


def largest_batch(machine: Machine, backbone: Backbone, image_size: int, *, is_half: bool, is_full: bool) -> int:
    """The largest power of two of images that fit the memory beside the weights; at least 1.

    Weights take 4 bytes each, and 20 where all of them train: with their gradient, the two moments of AdamW and the
    class-weighted gradient.
    """
    left = USABLE * machine.memory - backbone.parameters * (20 if is_full else 4)
    images = left / memory_per_image(backbone, image_size, is_half=is_half, is_full=is_full)
    return 2 ** max(0, math.floor(math.log2(max(images, 1))))


def seconds_on_cpu(machine: Machine, backbone: Backbone, image_size: int, *, is_half: bool, is_sharp: bool) -> float:
    """Roughly how long the CPU trains on one image.

    A forward pass takes 2 operations for each weight and token, forward and backward with LoRA 2.1 times that, a
    sharpness-aware step twice as much. ViT-B/16 at 224 pixels takes 3.05 s for four images on one core, plain
    (recipes/RESULTS.md, "Cost of a step"), which is 97 billion operations a second; a core that multiplies matrices of
    bfloat16 takes 0.54 times as long (the same, "bfloat16 on a CPU").
    """
    operations = 2.1 * 2 * backbone.parameters * backbone.tokens(image_size) * (2 if is_sharp else 1)
    return operations / (FLOPS_PER_CORE["half" if is_half else "float32"] * max(machine.cores, 1))
