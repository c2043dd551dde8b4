"""Batch size, image size, epochs, learning rate and class weights, by their rules."""

import numpy as np
import pytest
import torch

from ft_focalsam import LongTailClassifier, TuningOptions, apply_tuning
from ft_focalsam.cli.automatic.backbones import KNOWN, describe_backbone
from ft_focalsam.cli.automatic.machine import Machine, largest_batch, memory_per_image, seconds_on_cpu
from ft_focalsam.cli.automatic.schedule import (
    Work,
    batch_size,
    choose_batch,
    choose_epochs,
    choose_image_size,
    choose_optimizer,
    choose_precision,
)
from ft_focalsam.cli.automatic.sharpness import choose_sharpness, focal_gamma
from ft_focalsam.data import exponential_counts
from ft_focalsam.sharpness.weights import class_weights

GIB = 2**30
CLIP = next(backbone for backbone in KNOWN if backbone.name == "openai/clip-vit-base-patch16")
CLIP_L = next(backbone for backbone in KNOWN if backbone.name == "openai/clip-vit-large-patch14")


def gpu(memory=24, processes=1):
    return Machine("cuda", "A GPU", memory * GIB, 8, "bf16", processes)


def work(images=10_000, *, machine=None, backbone=CLIP, **given):
    return Work(machine or gpu(), backbone, images, given)


def batch(*, images=10_000, machine=None, backbone=CLIP, **given):
    settings, total, reasons = choose_batch(work(images, machine=machine, backbone=backbone, **given), 224)
    return settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"], total, reasons


def test_the_memory_of_an_image_is_above_what_autograd_holds_and_below_twice_that():
    backbone = describe_backbone("tiny_clip")
    model = LongTailClassifier.from_backbone("tiny_clip", ["a", "b"], head="cosine")
    apply_tuning(model, "lora", TuningOptions())
    model.train()

    def held(images):
        sizes, kept = {}, []

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            kept.append(tensor)  # so that no address is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(pixel_values=torch.rand(images, 3, 32, 32)).logits.sum()
        return sum(sizes.values())

    found = (held(5) - held(1)) / 4
    assert found < memory_per_image(backbone, 32, is_half=False, is_full=False) < 2 * found


def test_a_batch_is_a_fiftieth_of_the_images_and_fits_the_memory():
    assert [batch_size(work(n), 224) for n in (1, 100, 400, 800, 1600, 6400, 10**6)] == [8, 8, 8, 16, 32, 128, 128]
    assert batch_size(work(10**6, machine=Machine("cpu", "CPU", 16 * GIB, 4)), 224) == 32
    assert batch()[:3] == (128, 1, 128)
    each, parts, total, reasons = batch(machine=gpu(4), backbone=CLIP_L)
    assert total == 128 and parts == 128 // each > 1
    assert reasons == [
        f"batch size 128 in {parts} parts of {each}: for 10,000 training images; up to {each} at 224 pixels fit 4 GiB "
        "of A GPU"
    ]
    assert batch(machine=gpu(processes=4))[:3] == (32, 1, 128)
    assert batch(gradient_accumulation_steps=4)[:3] == (32, 4, 128)
    assert batch(per_device_train_batch_size=6)[:3] == (6, 1, 6)


@pytest.mark.parametrize("memory", [1, 2, 4, 8, 16, 80])
@pytest.mark.parametrize("is_full", [False, True])
def test_the_largest_batch_fits_and_twice_as_much_does_not(memory, is_full):
    found = largest_batch(gpu(memory), CLIP, 224, is_half=True, is_full=is_full)
    left = 0.8 * memory * GIB - (20 if is_full else 4) * 85e6
    each = memory_per_image(CLIP, 224, is_half=True, is_full=is_full)
    assert found == 1 or found * each <= left
    assert 2 * found * each > left * 0.99


def test_precision_is_that_of_the_device_unless_the_user_says_otherwise():
    assert choose_precision(work())[0] == {"bf16": True}
    assert choose_precision(work(bf16=False)) == ({}, [])
    assert choose_precision(work(machine=Machine("cuda", "T4", 16 * GIB, 4, "fp16")))[0] == {"fp16": True}
    assert choose_precision(work(machine=Machine("cpu", "4 CPU cores", 16 * GIB, 4)))[0] == {}


def test_a_cpu_with_bfloat16_trains_in_it_and_is_taken_to_be_faster():
    cpu = Machine("cpu", "4 CPU cores", 16 * GIB, 4, "bf16")
    settings, reasons = choose_precision(work(machine=cpu))
    assert settings == {"bf16": True, "attn_implementation": "eager"}
    assert reasons == ["mixed precision bf16: this CPU computes with it natively"]
    timm = describe_backbone("timm:vit_base_patch16_224")
    assert choose_precision(work(machine=cpu, backbone=timm))[0] == {"bf16": True}  # which has no such choice
    assert work(machine=cpu).hours(10, 224) < 0.6 * work(machine=cpu, bf16=False).hours(10, 224)
    assert batch(machine=gpu(8), bf16=False)[0] < batch(machine=gpu(8))[0]


def test_a_cpu_trains_on_smaller_images_and_for_fewer_epochs_where_it_takes_long():
    cpu = Machine("cpu", "2 CPU cores", 16 * GIB, 2)
    # 3.05 s for four images on one core, plain (RESULTS.md, "Cost of a step")
    one = Machine("cpu", "1 CPU core", 16 * GIB, 1)
    assert 4 * seconds_on_cpu(one, CLIP, 224, is_half=False, is_sharp=False) == pytest.approx(3.05, rel=0.1)
    assert seconds_on_cpu(cpu, CLIP, 224, is_half=False, is_sharp=True) == pytest.approx(
        seconds_on_cpu(one, CLIP, 224, is_half=False, is_sharp=False)
    )
    assert choose_image_size(work(100, machine=cpu))[0] == 224
    assert choose_image_size(work(1000, machine=cpu))[0] == 112
    assert choose_image_size(work(1000, machine=cpu, image_size=96)) == (96, [])
    assert choose_image_size(work(1000))[0] == 224
    assert choose_image_size(work(1000, machine=cpu, backbone=describe_backbone("timm:some")))[0] == 224
    settings, reasons = choose_epochs(work(8000, machine=cpu), 32, 112)
    assert settings["num_train_epochs"] == 5 and "roughly 2 hours on 2 CPU cores; 10 would be better" in reasons[0]


def test_epochs_make_about_a_thousand_steps():
    def epochs(images, size, **given):
        return choose_epochs(work(images, **given), size, 224)[0].get("num_train_epochs")

    assert [epochs(100, 8), epochs(800, 16), epochs(3200, 64), epochs(100_000, 128)] == [40, 20, 20, 10]
    assert epochs(800, 16, max_steps=5) is epochs(800, 16, num_train_epochs=3) is None


def test_learning_rates_by_width_optimizer_and_tuning():
    def rate(backbone=CLIP, **given):
        return choose_optimizer(work(backbone=backbone, **given))[0]["learning_rate"]

    assert [rate(describe_backbone("tiny_clip")), rate(), rate(CLIP_L)] == [1e-3, 5e-4, 4e-4]
    assert [rate(tuning="full"), rate(tuning="vpt_deep"), rate(tuning="lora,norms")] == [5e-5, 5e-3, 5e-4]
    assert rate(optim="sgd") == 0.01
    assert choose_optimizer(work(learning_rate=1.0))[1] == []


def weights(counts, **given):
    settings, reasons = choose_sharpness(np.asarray(counts), given)
    found = class_weights("focal_sam", counts, {"gamma": settings["focal_gamma"], "lam": settings["focal_lambda"]})
    return settings, found.numpy(), reasons


@pytest.mark.parametrize("counts", [[300, 150, 60, 20, 5, 2], [95, 5], [70, 30], [5000, 50, 50, 40], [900, 0, 3]])
def test_the_most_frequent_class_has_half_the_weight_of_the_rarest(counts):
    _, found, _ = weights(counts)
    present = np.array(counts) > 0
    most, rarest = found[np.argmax(counts)], found[present][np.argmin(np.array(counts)[present])]
    assert most / rarest == pytest.approx(0.5, rel=0.02) and rarest == pytest.approx(0.8, rel=0.02)


def test_gamma_beside_the_published_one():
    gamma = {
        classes: weights(exponential_counts(classes, most, imbalance_factor=100))[0]["focal_gamma"]
        for classes, most in ((10, 5000), (100, 500))
    }
    assert gamma == {10: 1.35, 100: 5.5}  # published: 1.5 and 5.5


def test_balanced_classes_have_the_same_weight():
    settings, found, reasons = weights([50, 60, 99])
    assert settings["focal_gamma"] == 0 and np.ptp(found) == 0 and found[0] == 0.8
    assert "balanced" in reasons[0]
    assert focal_gamma(1.0, 1.0) == 0


def test_gamma_lambda_and_method_of_the_user():
    settings, found, _ = weights([100, 10], focal_gamma=2.0)
    assert settings["focal_gamma"] == 2.0 and found[1] == pytest.approx(0.8, rel=0.01)
    assert weights([100, 10], focal_lambda=0.3)[0]["focal_lambda"] == 0.3
    assert choose_sharpness(np.array([100, 10]), {"sharpness": "sam"}) == ({}, [])
