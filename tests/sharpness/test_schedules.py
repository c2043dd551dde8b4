"""Schedules of rho and of the class weights."""

import pytest
import torch

from ft_focalsam.sharpness import SCHEDULES, class_weights, scheduled_rho, scheduled_weights

SAM, IMBSAM = (class_weights(name, [100, 40, 8, 2], {"eta": 30}) for name in ("sam", "imbsam"))


def test_each_schedule_at_its_ends_and_in_between():
    def course(schedule, **settings):
        return [scheduled_rho(schedule, 0.1, progress=t, **settings) for t in (0.0, 0.25, 0.5, 1.0)]

    assert course("constant", initial=0.02) == pytest.approx([0.1] * 4)
    assert course("linear", initial=0.02) == pytest.approx([0.02, 0.04, 0.06, 0.1])
    assert course("linear", initial=0.5) == pytest.approx([0.5, 0.4, 0.3, 0.1])
    assert course("cosine", initial=0.02) == pytest.approx([0.02, 0.02 + 0.08 * (1 - 0.5**0.5) / 2, 0.06, 0.1])
    assert course("step") == pytest.approx([0.0, 0.0, 0.1, 0.1])
    assert course("step", initial=0.02, step_at=0.25) == pytest.approx([0.02, 0.1, 0.1, 0.1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "wave"}, "rho_schedule is 'wave'; choose one of constant, linear, cosine, step"),
        ({"rho": -0.1}, "rho is -0.1"),
        ({"initial": float("nan")}, "rho_initial is nan"),
        ({"step_at": 1.5}, "rho_step_at is 1.5; it is a fraction of training"),
        ({"progress": -0.5}, "progress is -0.5"),
    ],
)
def test_bad_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        scheduled_rho(**{"schedule": "step", "rho": 0.1, "progress": 0.0, **arguments})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_class_weights_are_exactly_those_of_either_end(schedule):
    ends = [scheduled_weights(schedule, IMBSAM, progress=t, initial=SAM) for t in (0.0, 1.0)]
    assert torch.equal(ends[0], IMBSAM if schedule == "constant" else SAM)
    assert torch.equal(ends[1], IMBSAM)


def test_class_weights_in_between():
    def course(schedule, **settings):
        return [
            scheduled_weights(schedule, IMBSAM, progress=t, initial=SAM, **settings)[0].item() for t in (0.25, 0.5)
        ]

    assert course("linear") == pytest.approx([0.75, 0.5])
    assert course("cosine") == pytest.approx([(1 + 0.5**0.5) / 2, 0.5])
    assert course("step", step_at=0.5) == [1.0, 0.0]
    assert scheduled_weights("linear", IMBSAM, progress=0.3, initial=SAM).tolist() == pytest.approx([0.7, 0.7, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "wave"}, "sharpness_schedule is 'wave'; choose one of constant, linear, cosine, step"),
        ({"step_at": 1.5}, "sharpness_step_at is 1.5; it is a fraction of training"),
        ({"initial": SAM[:3]}, r"shape \(3,\) and the final ones \(4,\)"),
    ],
)
def test_bad_schedules_of_class_weights_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        scheduled_weights(**{"schedule": "step", "progress": 0.0, "initial": SAM, **arguments}, class_weights=IMBSAM)
