"""The update of one step against the paper's three-backward algorithm, written sample by sample."""

import copy
import shutil
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from models import (
    BACKBONES,
    COUNTS,
    gradients_of,
    losses_of,
    make_batch,
    make_model,
    naive_gradient,
    relative_error,
    run_step,
)
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ft_focalsam.sharpness import LossContractError, SharpnessStep, class_weights
from ft_focalsam.sharpness.collectives import total_norm

RHO = 0.1
METHODS = {
    "sam": class_weights("sam", COUNTS),
    "weighted_sam": class_weights("weighted_sam", COUNTS, {"lam": 0.6}),
    "imbsam": class_weights("imbsam", COUNTS, {"eta": 30}),
    "focal_sam": class_weights("focal_sam", COUNTS, {"gamma": 2.0, "lam": 1.1}),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradient_equals_the_three_backward_algorithm(backbone, tuning, method):
    model = make_model(backbone, tuning)
    step = SharpnessStep(model, METHODS[method], rho=RHO)
    for seed in range(4):
        images, labels = make_batch(seed=seed)
        expected = naive_gradient(model, images, labels, METHODS[method], RHO)
        assert relative_error(run_step(step, model, images, labels), expected) <= 1e-10
    assert step.separate_reason is None
    assert step.backward_passes == 1


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradient_in_float32(backbone, tuning):
    model = make_model(backbone, tuning, dtype=torch.float32)
    reference = copy.deepcopy(model).double()
    step = SharpnessStep(model, METHODS["focal_sam"], rho=RHO)
    for seed in range(4):
        images, labels = make_batch(seed=seed, dtype=torch.float32)
        expected = naive_gradient(reference, images.double(), labels, METHODS["focal_sam"], RHO)
        assert relative_error(run_step(step, model, images, labels), expected) <= 1e-5
    assert step.backward_passes == 1


@pytest.mark.parametrize("method", ["weighted_sam", "focal_sam"])
@pytest.mark.parametrize("micro_batches", [2, 3])
def test_accumulated_batches_perturb_by_their_joint_gradient(micro_batches, method):
    model = make_model("vit", "lora")
    step = SharpnessStep(model, METHODS[method], rho=RHO)
    for seed in range(4):
        images, labels = make_batch(6, seed=seed)
        expected = naive_gradient(model, images, labels, METHODS[method], RHO)
        assert relative_error(run_step(step, model, images, labels, micro_batches), expected) <= 1e-10
    assert step.backward_passes == 1


def test_soft_labels_weigh_by_their_expected_class_weight():
    model = make_model("vit", "lora")
    c = METHODS["focal_sam"]
    images, _ = make_batch(4)
    soft = torch.rand(4, len(COUNTS), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    soft /= soft.sum(dim=1, keepdim=True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def gradient(weights):
        losses = F.cross_entropy(model(pixel_values=images).logits, soft, reduction="none")
        return torch.autograd.grad((losses * weights).mean(), list(trained.values()))

    weights = soft @ c
    plain, ascent = gradient(torch.ones(4, dtype=torch.float64)), gradient(weights)
    norm = torch.cat([g.flatten() for g in ascent]).norm()
    before = {name: p.detach().clone() for name, p in trained.items()}
    with torch.no_grad():
        for p, g in zip(trained.values(), ascent, strict=True):
            p += RHO * g / norm
    moved = gradient(weights)
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(before[name])
    expected = {name: a - b + d for name, a, b, d in zip(trained, plain, ascent, moved, strict=True)}

    step = SharpnessStep(model, c, rho=RHO)
    for _ in range(3):
        model.zero_grad()
        step.start()
        with step.first_pass(soft):
            step.reduce(F.cross_entropy(model(pixel_values=images).logits, soft, reduction="none")).backward()
        step.ascend()
        with step.second_pass(0):
            step.reduce(F.cross_entropy(model(pixel_values=images).logits, soft, reduction="none")).backward()
        assert relative_error(gradients_of(model), expected) <= 1e-10


def test_sam_is_textbook_sam():
    """With c = 1 the update is grad L(w + rho g / ||g||) and nothing else."""
    model = make_model("clip", "lora")
    images, labels = make_batch()
    twin = copy.deepcopy(model)
    trained = [p for p in twin.parameters() if p.requires_grad]
    losses_of(twin, images, labels).mean().backward()
    norm = torch.cat([p.grad.flatten() for p in trained]).norm()
    with torch.no_grad():
        for p in trained:
            p += RHO * p.grad / norm
    twin.zero_grad()
    losses_of(twin, images, labels).mean().backward()
    step = SharpnessStep(model, METHODS["sam"], rho=RHO)
    assert relative_error(run_step(step, model, images, labels), gradients_of(twin)) <= 1e-10


def test_adaptive_radius_is_asam():
    model = make_model("vit", "lora")
    images, labels = make_batch()
    twin = copy.deepcopy(model)
    trained = [p for p in twin.parameters() if p.requires_grad]
    losses_of(twin, images, labels).mean().backward()
    norm = torch.cat([(p.detach().abs() * p.grad).flatten() for p in trained]).norm()
    with torch.no_grad():
        for p in trained:
            p += RHO * p.abs() ** 2 * p.grad / norm
    twin.zero_grad()
    losses_of(twin, images, labels).mean().backward()
    step = SharpnessStep(model, METHODS["sam"], rho=RHO, adaptive=True)
    assert relative_error(run_step(step, model, images, labels), gradients_of(twin)) <= 1e-10


@pytest.mark.parametrize("where", ["first", "second"])
def test_weights_are_restored_bit_for_bit_also_when_a_pass_raises(where):
    model = make_model("vit", "lora", dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = SharpnessStep(model, METHODS["focal_sam"], rho=RHO)
    images, labels = make_batch(dtype=torch.float32)
    step.start()
    with pytest.raises(KeyboardInterrupt):
        with step.first_pass(labels):
            step.reduce(losses_of(model, images, labels)).backward()
            if where == "first":
                raise KeyboardInterrupt
        step.ascend()
        with step.second_pass(0):
            perturbed = any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
            assert perturbed
            raise KeyboardInterrupt
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert_no_trace(model)
    expected = naive_gradient(model.double(), images.double(), labels, METHODS["focal_sam"], RHO)
    model.float()
    assert relative_error(run_step(step, model, images, labels), expected) <= 1e-5  # and the next step is right


def assert_no_trace(model):
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
    assert all(p._backward_hooks is None or not p._backward_hooks for p in model.parameters())


def test_no_hook_or_attribute_remains_after_a_step():
    model = make_model("clip", "full")
    step = SharpnessStep(model, METHODS["focal_sam"], rho=RHO)
    for seed in range(3):
        run_step(step, model, *make_batch(seed=seed))
        assert_no_trace(model)


def test_dropout_draws_the_same_masks_in_both_passes_and_consumes_one_passs_random_numbers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.5), nn.Linear(32, len(COUNTS))).double()
    x, y = torch.randn(16, 6, dtype=torch.float64), torch.randint(len(COUNTS), (16,))
    c = METHODS["focal_sam"]

    def gradient(weights):
        torch.manual_seed(7)
        losses = F.cross_entropy(model(x), y, reduction="none")
        return torch.autograd.grad((losses * weights).mean(), list(model.parameters()))

    plain, ascent = gradient(torch.ones(16, dtype=torch.float64)), gradient(c[y])
    after_one_pass = torch.get_rng_state()
    norm = torch.cat([g.flatten() for g in ascent]).norm()
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p, g in zip(model.parameters(), ascent, strict=True):
            p += RHO * g / norm
    moved = gradient(c[y])
    with torch.no_grad():
        for p, value in zip(model.parameters(), before, strict=True):
            p.copy_(value)
    names = [name for name, _ in model.named_parameters()]
    expected = {n: a - b + d for n, a, b, d in zip(names, plain, ascent, moved, strict=True)}

    step = SharpnessStep(model, c, rho=RHO)
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(7)
        step.start()
        with step.first_pass(y):
            step.reduce(F.cross_entropy(model(x), y, reduction="none")).backward()
        step.ascend()
        with step.second_pass(0):
            step.reduce(F.cross_entropy(model(x), y, reduction="none")).backward()
        assert torch.equal(torch.get_rng_state(), after_one_pass)
        assert relative_error(gradients_of(model), expected) <= 1e-10


@pytest.mark.parametrize(
    ("method", "backward_passes"), [("sam", 1), ("weighted_sam", 1), ("imbsam", 2), ("focal_sam", 2)]
)
def test_batch_normalisation_is_exact_and_its_running_statistics_move_once(method, backward_passes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, len(COUNTS))).double()
    twin = copy.deepcopy(model)
    x, y, c = torch.randn(16, 6, dtype=torch.float64), torch.randint(len(COUNTS), (16,)), METHODS[method]

    def gradient(weights):
        losses = F.cross_entropy(twin(x), y, reduction="none")
        return torch.autograd.grad((losses * weights).mean(), list(twin.parameters()))

    plain = gradient(torch.ones(16, dtype=torch.float64))
    buffers = [buffer.clone() for buffer in twin.buffers()]  # of one forward pass
    ascent = gradient(c[y])
    norm = torch.cat([g.flatten() for g in ascent]).norm()
    with torch.no_grad():
        for p, g in zip(twin.parameters(), ascent, strict=True):
            p += RHO * g / norm
    names = [name for name, _ in model.named_parameters()]
    moved = gradient(c[y])
    expected = {n: a - b + d for n, a, b, d in zip(names, plain, ascent, moved, strict=True)}

    step = SharpnessStep(model, c, rho=RHO)
    step.start()
    with step.first_pass(y):
        step.reduce(F.cross_entropy(model(x), y, reduction="none")).backward()
    step.ascend()
    with step.second_pass(0):
        step.reduce(F.cross_entropy(model(x), y, reduction="none")).backward()
    assert relative_error(gradients_of(model), expected) <= 1e-10
    assert step.backward_passes == backward_passes
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))


def test_a_batch_without_weighted_classes_is_a_plain_step():
    model = make_model("vit", "lora")
    step = SharpnessStep(model, METHODS["imbsam"], rho=RHO)  # classes 0 and 1 have weight 0
    images, _ = make_batch(4)
    labels = torch.tensor([0, 1, 0, 1])
    step.start()
    with step.first_pass(labels):
        step.reduce(losses_of(model, images, labels)).backward()
    step.ascend()
    with step.second_pass(0):
        step.reduce(losses_of(model, images, labels)).backward()
    actual = gradients_of(model)
    model.zero_grad()
    losses_of(model, images, labels).mean().backward()
    assert relative_error(actual, gradients_of(model)) <= 1e-12
    assert step.statistics.pop() == {"skipped_perturbations": 1, "skipped_steps": 0}


def test_a_gradient_that_is_not_finite_skips_the_perturbation():
    model = make_model("vit", "lora", dtype=torch.float32)
    step = SharpnessStep(model, METHODS["sam"], rho=RHO)
    images, labels = make_batch(dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step.start()
    with step.first_pass(labels):
        (step.reduce(losses_of(model, images, labels)) * float("inf")).backward()
    assert not step.ascend()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert step.statistics.pop() == {"skipped_perturbations": 1, "skipped_steps": 0}
    images, labels = make_batch(seed=3)
    expected = naive_gradient(model.double(), images, labels, METHODS["sam"], RHO)
    assert relative_error(run_step(step, model, images, labels), expected) <= 1e-10


def test_a_scaled_loss_gives_the_same_perturbation():
    """The factor of fp16 loss scaling cancels in epsilon and is carried by the gradient, in every mode."""
    model = make_model("vit", "lora")
    step = SharpnessStep(model, METHODS["focal_sam"], rho=RHO)
    for seed in range(3):
        images, labels = make_batch(seed=seed)
        expected = naive_gradient(model, images, labels, METHODS["focal_sam"], RHO)
        model.zero_grad()
        step.start()
        with step.first_pass(labels):
            (step.reduce(losses_of(model, images, labels)) * 1024).backward()
        step.ascend()
        with step.second_pass(0):
            (step.reduce(losses_of(model, images, labels)) * 1024).backward()
        actual = {name: value / 1024 for name, value in gradients_of(model).items()}
        assert relative_error(actual, expected) <= 1e-10


def test_fp16_loss_scaling_skips_shrinks_and_then_trains():
    """float16 autocast with a scale that overflows at first: no step is taken until it has shrunk enough."""
    model = make_model("vit", "lora", dtype=torch.float32)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    images, labels = make_batch(12, dtype=torch.float32)
    c = METHODS["focal_sam"]
    expected = naive_gradient(copy.deepcopy(model).double(), images.double(), labels, c, RHO)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=1000)
    step = SharpnessStep(model, c, rho=RHO)

    def scaled_backward():
        with torch.autocast("cpu", torch.float16):
            logits = model(pixel_values=images).logits
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        scaler.scale(step.reduce(losses)).backward()

    skipped = 0
    for _ in range(30):
        optimizer.zero_grad()
        step.start()
        step.verify_gradients(labels, scaled_backward)
        with step.first_pass(labels):
            scaled_backward()
        step.ascend()
        with step.second_pass(0):
            scaled_backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        moved = {name: start[name] - p.detach() for name, p in model.named_parameters() if name in expected}
        if scaler.get_scale() == before:
            break
        skipped += 1
        assert not any(value.any() for value in moved.values())
    assert skipped > 0
    assert step.statistics.pop()["skipped_perturbations"] > 0
    assert relative_error(moved, expected) < 0.02
    assert step.separate_reason is None


@pytest.mark.parametrize("where", ["first", "second"])
def test_a_pass_that_overflows_restores_the_weights_and_lets_the_scaler_shrink(where):
    model = make_model("vit", "lora", dtype=torch.float32)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    step = SharpnessStep(model, METHODS["focal_sam"], rho=RHO)
    images, labels = make_batch(dtype=torch.float32)
    before = [p.detach().clone() for p in trained]
    for overflows in (True, False):

        def backward(name, overflows=overflows):
            losses = losses_of(model, images, labels)
            factor = float("inf") if overflows and name == where else 1.0
            scaler.scale(step.reduce(losses) * factor).backward()

        optimizer.zero_grad()
        step.start()
        with step.first_pass(labels):
            backward("first")
        step.ascend()
        with step.second_pass(0):
            backward("second")
        assert all(torch.equal(p, q) for p, q in zip(trained, before, strict=True))
        assert step.drop_if_not_finite(drop=False) is overflows
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == (scale / 2 if overflows else scale)
    assert not all(torch.equal(p, q) for p, q in zip(trained, before, strict=True))
    counts = step.statistics.pop()
    assert counts["skipped_steps"] == 1
    assert counts["skipped_perturbations"] == (where == "first")


def test_statistics_are_those_of_the_step():
    model = make_model("vit", "lora")
    c = METHODS["focal_sam"]
    step = SharpnessStep(model, c, rho=RHO)
    images, labels = make_batch()
    at_w = float((losses_of(model, images, labels).detach() * c[labels]).mean())
    model.zero_grad()
    step.start()
    with step.first_pass(labels):
        step.reduce(losses_of(model, images, labels)).backward()
    step.ascend()
    with step.second_pass(0):
        loss = step.reduce(losses_of(model, images, labels))
        at_w_plus_epsilon = float((losses_of(model, images, labels).detach() * c[labels]).mean())
        loss.backward()
    statistics = step.statistics.pop()
    assert statistics["perturbation_norm"] == pytest.approx(RHO, rel=1e-9)
    assert statistics["sharpness"] == pytest.approx(at_w_plus_epsilon - at_w, rel=1e-9)
    assert step.statistics.pop() == {"skipped_perturbations": 0, "skipped_steps": 0}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: SharpnessStep(m, METHODS["sam"], rho=-0.1), "rho is -0.1; set the radius"),
        (lambda m: SharpnessStep(m, METHODS["sam"], scope="world"), "perturbation_scope is 'world'; choose one of"),
        (lambda m: SharpnessStep(nn.DataParallel(m), METHODS["sam"]), "accelerate launch"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build(nn.Linear(2, 2))


@pytest.fixture
def process_group(tmp_path):
    """Of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_local_scope_is_refused_for_a_sharded_model(process_group):
    model = make_model("vit", "lora", dtype=torch.float32)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(ValueError, match=r"is 'local' and the model is sharded .*set it to 'global'"):
        SharpnessStep(model, METHODS["sam"], scope="local")
    step = SharpnessStep(model, METHODS["focal_sam"])
    step.start()
    assert "sharded" in step.separate_reason


def test_a_model_that_is_sharded_in_part_is_refused(process_group):
    model = make_model("vit", "lora", dtype=torch.float32)
    ignored = {p for name, p in model.named_parameters() if name.endswith("lora_B.default.weight")}
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)), ignored_params=ignored)
    step = SharpnessStep(model, METHODS["sam"])
    with pytest.raises(ValueError, match=r"lora_B.default.weight trains and is not sharded .* or freeze it"):
        step.start()


def test_a_reduced_loss_is_refused():
    model = make_model("vit", "lora")
    images, labels = make_batch()
    step = SharpnessStep(model, METHODS["sam"])
    step.start()
    with pytest.raises(ValueError, match="return one loss per sample"), step.first_pass(labels):
        step.reduce(losses_of(model, images, labels).mean())


def test_a_model_without_trained_parameters_is_refused():
    model = make_model("vit", "full").requires_grad_(False)
    step = SharpnessStep(model, METHODS["sam"])
    with pytest.raises(ValueError, match="no parameter that requires a gradient"), step.first_pass(torch.tensor([0])):
        pass


def test_trained_parameters_that_the_model_does_not_use_are_named_once(caplog):
    model = make_model("vit", "lora")
    model.unused = nn.Linear(2, 3)
    images, labels = make_batch()
    step = SharpnessStep(model, METHODS["focal_sam"], rho=RHO)
    for _ in range(2):
        run_step(step, model, images, labels)
        assert not step.drop_if_not_finite()
    messages = [r.getMessage() for r in caplog.records if "No gradient reaches" in r.getMessage()]
    assert len(messages) == 1
    assert "reaches 2 of " in messages[0] and "unused.weight" in messages[0]
    used = make_model("vit", "lora")
    step = SharpnessStep(used, METHODS["focal_sam"], rho=RHO)
    run_step(step, used, images, labels)
    step.drop_if_not_finite()
    assert len([r for r in caplog.records if "No gradient reaches" in r.getMessage()]) == 1


# ---- half precision ----


def test_the_norm_of_half_precision_gradients_is_taken_in_float32():
    assert float(total_norm([torch.full((100,), 6e4, dtype=torch.float16)])) == pytest.approx(6e5, rel=1e-3)
    parts = [torch.full((1000,), 1.0, dtype=torch.bfloat16), torch.full((1000,), 1.0)]
    assert total_norm(parts).dtype == torch.float32
    assert float(total_norm(parts)) == pytest.approx(2000**0.5, rel=1e-6)
    assert total_norm([torch.ones(3, dtype=torch.float64)]).dtype == torch.float64


@pytest.mark.parametrize("method", ["sam", "focal_sam"])
def test_autocast_around_both_passes_keeps_no_copies_of_the_weights(method):
    """Entered once around all, autocast would give the second pass the weights of the first."""
    gradients = {}
    for outside in (True, False):
        model = make_model("vit", "full", dtype=torch.float32)
        images, labels = make_batch(dtype=torch.float32)
        step = SharpnessStep(model, METHODS[method], rho=1.0)

        def losses(model=model, images=images, labels=labels, outside=outside):
            with nullcontext() if outside else torch.autocast("cpu", torch.bfloat16):
                return F.cross_entropy(model(pixel_values=images).logits.float(), labels, reduction="none")

        for _ in range(3):
            model.zero_grad()
            step.start()
            with torch.autocast("cpu", torch.bfloat16) if outside else nullcontext():
                with step.first_pass(labels):
                    step.reduce(losses()).backward()
                step.ascend()
                with step.second_pass(0):
                    step.reduce(losses()).backward()
        assert step.statistics.pop()["sharpness"] > 0.1
        gradients[outside] = gradients_of(model)
    assert relative_error(gradients[True], gradients[False]) < 1e-6


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor compiles for the CPU by g++, which is not there")
@pytest.mark.slow
def test_a_compiled_model_draws_the_masks_of_an_eager_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.5), nn.Linear(32, len(COUNTS))).double()
    compiled = torch.compile(model)
    x, y = torch.randn(16, 6, dtype=torch.float64), torch.randint(len(COUNTS), (16,))
    gradients = []
    for called in (model, compiled):
        step = SharpnessStep(called, METHODS["focal_sam"], rho=RHO)
        torch.manual_seed(7)
        gradients.append(
            run_step(step, called, x, y, losses_of=lambda m, x, y: F.cross_entropy(m(x), y, reduction="none"))
        )
    torch._dynamo.reset()
    compiled_gradient = {name.removeprefix("_orig_mod."): g for name, g in gradients[1].items()}
    assert relative_error(compiled_gradient, gradients[0]) <= 1e-10


# ---- what a driver may do wrong ----


def test_a_pass_whose_loss_was_not_differentiated_is_refused():
    model = make_model("vit", "lora")
    images, labels = make_batch()
    step = SharpnessStep(model, METHODS["focal_sam"])
    step.start()
    with pytest.raises(LossContractError, match="call backward on reduce"), step.first_pass(labels):
        losses_of(model, images, labels).mean().backward()
    with pytest.raises(LossContractError, match="reduced twice"), step.first_pass(labels):
        step.reduce(losses_of(model, images, labels))
        step.reduce(losses_of(model, images, labels))
    with pytest.raises(LossContractError, match="depend on no trained parameter"), step.first_pass(labels):
        step.reduce(losses_of(model, images, labels).detach())


@pytest.mark.parametrize("change", ["cleared", "zeroed", "clipped"])
def test_gradients_that_change_between_the_passes_are_refused(change):
    model = make_model("vit", "lora")
    images, labels = make_batch()
    step = SharpnessStep(model, METHODS["focal_sam"], rho=RHO)
    step.start()
    with step.first_pass(labels):
        step.reduce(losses_of(model, images, labels)).backward()
    if change == "clipped":
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    else:
        model.zero_grad(set_to_none=change == "cleared")
    with pytest.raises(LossContractError, match="changed between the passes"):
        step.ascend()
    expected = naive_gradient(model, images, labels, METHODS["focal_sam"], RHO)
    assert relative_error(run_step(step, model, images, labels), expected) <= 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_a_penalty_beside_the_losses_belongs_to_the_plain_loss(method):
    model = make_model("vit", "lora")
    step = SharpnessStep(model, METHODS[method], rho=RHO)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for seed in range(4):
        images, labels = make_batch(seed=seed)
        expected = naive_gradient(model, images, labels, METHODS[method], RHO)
        expected = {name: g + 3 * trained[name].detach() for name, g in expected.items()}
        model.zero_grad()
        step.start()
        for pass_ in (step.first_pass(labels), None):
            if pass_ is None:
                step.ascend()
                pass_ = step.second_pass(0)
            with pass_:
                penalty = sum((p**2).sum() for p in trained.values())
                (step.reduce(losses_of(model, images, labels)) + 1.5 * penalty).backward()
        assert relative_error(gradients_of(model), expected) <= 1e-10
