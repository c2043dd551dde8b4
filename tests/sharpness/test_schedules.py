"""Schedules of rho."""

import pytest

from ft_focalsam.sharpness import scheduled_rho


def test_each_schedule_at_its_ends_and_in_between():
    def course(schedule, **settings):
        return [scheduled_rho(schedule, 0.1, progress=t, **settings) for t in (0.0, 0.25, 0.5, 1.0)]

    assert course("constant", initial=0.02) == pytest.approx([0.1] * 4)
    assert course("linear", initial=0.02) == pytest.approx([0.02, 0.04, 0.06, 0.1])
    assert course("linear", initial=0.5) == pytest.approx([0.5, 0.4, 0.3, 0.1])
    assert course("step") == pytest.approx([0.0, 0.0, 0.1, 0.1])
    assert course("step", initial=0.02, step_at=0.25) == pytest.approx([0.02, 0.1, 0.1, 0.1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "cosine"}, "rho_schedule is 'cosine'; choose one of constant, linear, step"),
        ({"rho": -0.1}, "rho is -0.1"),
        ({"initial": float("nan")}, "rho_initial is nan"),
        ({"step_at": 1.5}, "rho_step_at is 1.5; it is a fraction of training"),
        ({"progress": -0.5}, "progress is -0.5"),
    ],
)
def test_bad_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        scheduled_rho(**{"schedule": "step", "rho": 0.1, "progress": 0.0, **arguments})
