"""Runs whose class weights follow a schedule."""

import copy

import pytest
import torch
from sharpness.models import make_model, naive_gradient, relative_error
from test_trainer import Images, Recorded, arguments, train_recorded, trainer_for

from ft_focalsam import class_weights

COUNTS = [10, 6, 4, 3, 1]
STAGES = {
    "sharpness": "imbsam", "imbsam_eta": 5, "sharpness_initial": "sam", "sharpness_schedule": "step",
    "sharpness_step_at": 0.6,
}  # fmt: skip
GRADUAL = {
    "sharpness": "focal_sam", "sharpness_schedule": "linear", "sharpness_initial": "weighted_sam",
    "sharpness_initial_values": {"focal_lambda": 0.3},
}  # fmt: skip


def weights_of(choice: dict, progress: float) -> torch.Tensor:
    """The class weights of a moment, written out."""
    if choice is STAGES:
        return class_weights("sam", COUNTS) if progress < 0.6 else torch.tensor([0.0, 0, 1, 1, 1]).double()
    share = torch.tensor(COUNTS).double() / 24
    return (1 - progress) * 0.3 + progress * 0.7 * (1 - share) ** 1.5


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("choice", [STAGES, GRADUAL], ids=["stages", "gradual"])
def test_every_step_gets_the_naive_gradient_of_its_class_weights(choice, accumulation, tmp_path):
    model = make_model("vit", "lora")
    twin = copy.deepcopy(model)
    trainer = trainer_for(
        model, tmp_path, dataset=Images(torch.float64), max_steps=6, per_device_train_batch_size=12 // accumulation,
        gradient_accumulation_steps=accumulation, **choice,
    )  # fmt: skip
    batches, gradients = train_recorded(trainer)
    for step, gradient in enumerate(gradients):
        own = batches[step * accumulation : (step + 1) * accumulation]
        images, labels = (torch.cat([batch[name] for batch in own]) for name in ("pixel_values", "labels"))
        expected = naive_gradient(twin, images, labels, weights_of(choice, step / 6), 0.1)
        assert relative_error(gradient, expected) <= 1e-10
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if name in gradient:
                    parameter -= 0.05 * gradient[name]
    logged = [entry["mean_class_weight"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([float(weights_of(choice, step / 6).mean()) for step in range(6)])


def test_second_passes_run_over_the_rare_images_alone_from_the_switch_on(tmp_path):
    model = make_model("vit", "lora")
    trainer = trainer_for(model, tmp_path, per_device_train_batch_size=24, max_steps=10, **STAGES | {"imbsam_eta": 4},
                          dataset=Images(torch.float64))  # fmt: skip
    sizes: list[int] = []
    model.register_forward_hook(lambda m, a, kwargs, o: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True)
    trainer.train()
    assert set(sizes[:12]) == {24}
    assert sizes[-2:] == [24, 4]


@pytest.mark.parametrize("choice", [STAGES, GRADUAL], ids=["stages", "gradual"])
@pytest.mark.parametrize("extra", [{}, {"ascent": "friendly"}, {"ascent": "momentum", "evaluation": "one_pass"}])
def test_a_resumed_run_goes_on_bit_for_bit(choice, extra, tmp_path):
    common = {"max_steps": 9, "optim": "adamw_torch", **choice, **extra}
    whole = make_model("vit", "lora", dtype=torch.float32)
    trainer_for(whole, tmp_path / "whole", **common).train()
    cut = make_model("vit", "lora", dtype=torch.float32)
    trainer_for(cut, tmp_path / "cut", save_strategy="steps", save_steps=4, **common).train()
    resumed = make_model("vit", "lora", seed=9, dtype=torch.float32)
    resumed.load_state_dict({n: p for n, p in whole.state_dict().items() if "lora" not in n}, strict=False)
    trainer_for(resumed, tmp_path / "cut", **common).train(str(tmp_path / "cut" / "checkpoint-4"))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_beginning_with_none_is_plain_training_until_the_switch(tmp_path):
    common = {"dataset": Images(torch.float64), "per_device_train_batch_size": 24, "max_steps": 4}
    recorded = []
    for changes in ({"sharpness_schedule": "step"}, {"sharpness": "none"}):
        model = make_model("vit", "lora")
        trainer = trainer_for(model, tmp_path, **common, **changes)
        recorded.append(Recorded(model))
        trainer.add_callback(recorded[-1])
        trainer.train()
    late, plain = (r.gradients for r in recorded)
    assert all(relative_error(a, b) == 0 for a, b in zip(late[:2], plain[:2], strict=True))
    assert relative_error(late[2], plain[2]) > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sharpness_schedule": "wave"}, "sharpness_schedule is 'wave'; choose one of constant, linear, cosine, step"),
        ({"sharpness_initial": "sam"}, "sharpness_schedule is 'constant', which does not read it; set"),
        ({"sharpness_initial_values": {"focal_gamma": 1}}, "is 'constant', which does not read it; set"),
        (STAGES | {"sharpness_initial": "cc_sam"}, "sharpness_initial is 'cc_sam'; choose one of none, sam"),
        (STAGES | {"sharpness_step_at": 1.5}, "sharpness_step_at is 1.5"),
        (STAGES | {"sharpness": "cc_sam"}, "sharpness_schedule is 'step', which cc_sam does not read"),
        (STAGES | {"sharpness": "none"}, "which would end in plain training; set sharpness to the method"),
        (STAGES | {"sharpness_initial_values": "{"}, "sharpness_initial_values is '{', which is not JSON"),
        (STAGES | {"sharpness_initial_values": "[1]"}, r"initial_values is \[1\]; set it to a mapping, as in"),
        (GRADUAL | {"sharpness_initial_values": {"focal_gamma": 1}},
         "'focal_gamma' in sharpness_initial_values is no hyperparameter .* weighted_sam, which has focal_lambda"),
        (STAGES | {"sharpness_initial_values": {"focal_gamma": 1}}, "of sam, which has none; leave it out"),
        (GRADUAL | {"sharpness_initial_values": {"focal_lambda": -1}}, "'focal_lambda' in .*_values is -1; set it to"),
        (GRADUAL | {"sharpness_initial_values": {"focal_lambda": "much"}}, "is 'much'; set it to a number"),
    ],
)  # fmt: skip
def test_bad_schedules_are_refused_before_training(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **changes)


def test_initial_values_are_read_from_the_command_line(tmp_path):
    args = arguments(tmp_path, **GRADUAL | {"sharpness_initial_values": '{"focal_lambda": 0.3}'})
    assert args.class_weights_at(0.0, COUNTS).tolist() == [0.3] * 5
