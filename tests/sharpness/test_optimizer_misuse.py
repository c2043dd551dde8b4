"""`FocalSAM` where a loop skips, fails, forgets or copies: the next step is right, or a sentence names the fault."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import transformers
from models import COUNTS, losses_of, make_batch, make_model, naive_gradient, relative_error
from torch import nn
from torch.utils.data import Dataset

from ft_focalsam import FocalSAM, class_weights
from ft_focalsam.sharpness import LossContractError

WEIGHTS = class_weights("focal_sam", COUNTS, {"gamma": 1.5, "lam": 0.7})


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def build(model, base=torch.optim.SGD, **settings):
    settings = {"class_counts": COUNTS, "gamma": 1.5, "lam": 0.7, **settings}
    return FocalSAM(base(trained(model), lr=0.1), model, rho=0.1, **settings)


def first_pass(optimizer, model, seed=0, fails=False):
    x, y = make_batch(seed=seed)
    with optimizer.first_pass(y):
        optimizer.reduce(losses_of(model, x, y)).backward()
        if fails:
            raise KeyboardInterrupt


def second_pass(optimizer, model, seed=0, fails=False):
    x, y = make_batch(seed=seed)
    with optimizer.second_pass():
        optimizer.reduce(losses_of(model, x, y)).backward()
        if fails:
            raise KeyboardInterrupt


def assert_next_step_is_right(optimizer, model, *, c=WEIGHTS, seed=7):
    """A whole step with passes, and one with a closure."""
    x, y = make_batch(seed=seed)
    for has_closure in (False, True):
        expected = naive_gradient(model, x, y, c, 0.1)
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        if has_closure:
            optimizer.step(lambda: losses_of(model, x, y), labels=y)
        else:
            optimizer.zero_grad()
            first_pass(optimizer, model, seed)
            second_pass(optimizer, model, seed)
            optimizer.step()
        moved = {name: (before[name] - p.detach()) / 0.1 for name, p in model.named_parameters() if name in before}
        assert relative_error(moved, expected) <= 1e-10


def skips_the_step(optimizer, model):
    first_pass(optimizer, model)
    second_pass(optimizer, model)


def skips_the_second_pass(optimizer, model):
    first_pass(optimizer, model)


def fails_in_the_first_pass(optimizer, model):
    with pytest.raises(KeyboardInterrupt):
        first_pass(optimizer, model, fails=True)


def fails_in_the_second_pass(optimizer, model):
    first_pass(optimizer, model)
    with pytest.raises(KeyboardInterrupt):
        second_pass(optimizer, model, fails=True)


def fails_in_a_closure(optimizer, model):
    def closure():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure, labels=torch.tensor([0, 1]))


def has_its_step_skipped_by_a_scaler(optimizer, model):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    x, y = make_batch()
    weights = [p.detach().clone() for p in trained(model)]
    with optimizer.first_pass(y):
        scaler.scale(optimizer.reduce(losses_of(model, x, y))).backward()
    with optimizer.second_pass():
        scaler.scale(optimizer.reduce(losses_of(model, x, y)) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 1.0
    assert all(torch.equal(p, q) for p, q in zip(trained(model), weights, strict=True))


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize(
    "loop",
    [
        skips_the_step, skips_the_second_pass, fails_in_the_first_pass, fails_in_the_second_pass, fails_in_a_closure,
        has_its_step_skipped_by_a_scaler,
    ],
)  # fmt: skip
def test_a_step_that_is_given_up_leaves_nothing_behind(loop, tuning):
    model = make_model("vit", tuning)
    optimizer = build(model)
    assert_next_step_is_right(optimizer, model)
    optimizer.zero_grad()
    loop(optimizer, model)
    assert_next_step_is_right(optimizer, model)


def test_a_step_that_was_not_taken_does_not_count_as_a_batch_of_the_next():
    """Without zero_grad its gradient stays in p.grad, as ever, and its batch is not perturbed along again."""
    model = make_model("vit", "lora")
    optimizer = build(model)
    expected = [naive_gradient(model, *make_batch(seed=seed), WEIGHTS, 0.1) for seed in (0, 1)]
    optimizer.zero_grad()
    for seed in (0, 1):
        first_pass(optimizer, model, seed)
        second_pass(optimizer, model, seed)
    both = {name: expected[0][name] + expected[1][name] for name in expected[0]}
    assert relative_error({n: p.grad for n, p in model.named_parameters() if n in both}, both) <= 1e-10


def test_a_forgotten_second_pass_is_named():
    model = make_model("vit", "lora")
    optimizer = build(model)
    before = copy.deepcopy(model.state_dict())
    for passes in (0, 1):
        optimizer.zero_grad()
        for _ in range(passes):
            first_pass(optimizer, model)
        with pytest.raises(LossContractError, match=r"without a first and a second pass|after 1 first and 0 second"):
            optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert_next_step_is_right(optimizer, model)


def test_gradients_cleared_between_the_passes_are_named():
    model = make_model("vit", "lora")
    optimizer = build(model)
    for clear, message in (
        (optimizer.zero_grad, r"second_pass\(0\) came after 0 first passes"),
        (model.zero_grad, "gradients changed between the passes"),
    ):
        first_pass(optimizer, model)
        clear()
        with pytest.raises(LossContractError, match=message):
            second_pass(optimizer, model)
        assert_next_step_is_right(optimizer, model)


def test_second_passes_in_another_order_are_named():
    model = make_model("vit", "lora")
    optimizer = build(model)
    for seed in (0, 1):
        first_pass(optimizer, model, seed)
    message = r"second_pass\(1\) came after 2 first passes and 0 second"
    with pytest.raises(LossContractError, match=message), optimizer.second_pass(1):
        pass


def test_groups_are_added_for_what_is_unfrozen():
    model = make_model("vit", "full")
    layer = model.vit.layers[1]
    layer.requires_grad_(False)
    optimizer = build(model)
    assert_next_step_is_right(optimizer, model)
    layer.requires_grad_(True)
    with pytest.raises(ValueError, match=r"has not 'vit\.layers\.1\..* and \d+ more parameters .*freeze them"):
        optimizer.zero_grad(), first_pass(optimizer, model)
    optimizer.add_param_group({"params": list(layer.parameters())})
    assert len(optimizer.param_groups) == len(optimizer.base_optimizer.param_groups) == 2
    assert optimizer.param_groups[1]["rho"] == 0.1
    assert_next_step_is_right(optimizer, model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_as_the_original_does(copied):
    model = make_model("vit", "lora")
    optimizer = build(model, base=lambda params, lr: torch.optim.AdamW(params, lr=lr, weight_decay=0.1))
    x, y = make_batch()
    optimizer.step(lambda: losses_of(model, x, y), labels=y)
    model_2, optimizer_2 = copied((model, optimizer))
    assert optimizer_2.base_optimizer is not optimizer.base_optimizer
    assert optimizer_2.param_groups[0]["params"][0] is trained(model_2)[0]
    for seed in range(3):
        x, y = make_batch(seed=seed)
        for m, o in ((model, optimizer), (model_2, optimizer_2)):
            o.step(lambda m=m, x=x, y=y: losses_of(m, x, y), labels=y)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), model_2.parameters(), strict=True))
    assert optimizer_2.state_dict()["sharpness"]["steps"] == 4


def test_loaded_settings_are_those_of_the_next_step():
    model = make_model("vit", "lora")
    optimizer, other = build(model), build(make_model("vit", "lora"), gamma=3.0, lam=1.2)
    optimizer.load_state_dict(other.state_dict())
    assert optimizer.param_groups[0]["gamma"] == 3.0
    assert_next_step_is_right(optimizer, model, c=class_weights("focal_sam", COUNTS, {"gamma": 3.0, "lam": 1.2}))
    for group in optimizer.param_groups:
        group["lam"] = 0.5
    assert_next_step_is_right(optimizer, model, c=class_weights("focal_sam", COUNTS, {"gamma": 3.0, "lam": 0.5}))


def test_with_class_weights_the_groups_show_no_settings_that_say_nothing():
    model = make_model("vit", "lora")
    optimizer = FocalSAM(torch.optim.SGD(trained(model), lr=0.1), model, rho=0.1, class_weights=WEIGHTS)
    assert {"gamma", "lam"}.isdisjoint(optimizer.param_groups[0])
    assert_next_step_is_right(optimizer, model)


def test_an_optimizer_over_something_else_than_what_trains_is_refused():
    model = make_model("vit", "lora")
    x, y = make_batch()
    part = FocalSAM(torch.optim.SGD(trained(model)[:-2], lr=0.1), model, class_counts=COUNTS)
    with pytest.raises(ValueError, match=r"has not '.*' and 1 more parameters that the model trains"):
        part.step(lambda: losses_of(model, x, y), labels=y)
    scale = nn.Parameter(torch.ones(3, dtype=torch.float64))
    more = FocalSAM(torch.optim.SGD([*trained(model), scale], lr=0.1), model, class_counts=COUNTS)
    with pytest.raises(ValueError, match=r"parameter of shape \(3,\) that is not of the model"):
        more.step(lambda: losses_of(model, x, y) * scale.sum(), labels=y)


def test_labels_without_a_closure_are_refused():
    model = make_model("vit", "lora")
    with pytest.raises(ValueError, match="got labels without a closure; give it one"):
        build(model).step(labels=make_batch()[1])


def test_an_optimizer_that_needs_closures_of_its_own_is_refused():
    model = make_model("vit", "lora")
    with pytest.raises(ValueError, match="LBFGS evaluates the model several times a step"):
        build(model, base=torch.optim.LBFGS)


def test_as_a_plain_optimizer_of_transformers_it_says_what_to_use(tmp_path):
    class Images(Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return {"pixel_values": torch.zeros(3, 8, 8), "labels": index % 5}

    model = make_model("vit", "full", dtype=torch.float32)
    args = transformers.TrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    trainer = transformers.Trainer(model, args, train_dataset=Images(), optimizers=(build(model), None))
    with pytest.raises(ValueError, match=r"would train without sharpness.*use FocalSAMTrainer"):
        trainer.train()


def test_integer_labels_of_any_type_weigh_alike():
    model = make_model("vit", "lora")
    optimizer = build(model)
    x, y = make_batch()
    for dtype in (torch.int32, torch.uint8):
        optimizer.step(lambda: F.cross_entropy(model(pixel_values=x).logits, y, reduction="none"), labels=y.to(dtype))
    with pytest.raises(ValueError, match=r"labels are torch\.float32 of shape \(6,\)"):
        optimizer.step(lambda: losses_of(model, x, y), labels=y.float())
