"""Class-wise sharpness weights against their formulas."""

import pytest
import torch

from ft_focalsam.sharpness import SHARPNESS_METHODS, class_weights

COUNTS = [500, 120, 99, 20, 3]


def test_the_family_has_its_published_members():
    assert set(SHARPNESS_METHODS) == {"none", "sam", "weighted_sam", "imbsam", "focal_sam", "cc_sam"}
    assert [name for name, method in SHARPNESS_METHODS.items() if not method.is_of_the_family] == ["cc_sam"]


@pytest.mark.parametrize(
    ("method", "hyperparameters", "expected"),
    [
        ("none", {}, [0, 0, 0, 0, 0]),
        ("sam", {"gamma": 3.0, "lam": 0.1}, [1, 1, 1, 1, 1]),
        ("weighted_sam", {"lam": 0.7}, [0.7] * 5),
        ("imbsam", {"eta": 99}, [0, 0, 0, 1, 1]),
        ("imbsam", {"eta": 100}, [0, 0, 1, 1, 1]),
        ("focal_sam", {"gamma": 0.0, "lam": 1.1}, [1.1] * 5),
        ("focal_sam", {"gamma": 2.5, "lam": 0.8}, [0.8 * (1 - n / 742) ** 2.5 for n in COUNTS]),
    ],
)
def test_weights_follow_the_formula(method, hyperparameters, expected):
    weights = class_weights(method, COUNTS, hyperparameters)
    assert weights.dtype == torch.float64
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


def test_rarer_classes_weigh_more_in_focal_sam():
    weights = class_weights("focal_sam", COUNTS, {"gamma": 1.5, "lam": 0.7})
    assert torch.all(weights.diff() > 0)


@pytest.mark.parametrize(
    ("method", "counts", "hyperparameters", "message"),
    [
        ("focal_sam", COUNTS, {"gamma": -1.0}, "gamma is -1.0; set it to 0 or more"),
        ("focal_sam", COUNTS, {"lam": -0.5}, "lam is -0.5; set it to 0 or more"),
        ("focal_sam", COUNTS, {"gamma": float("nan")}, "gamma is nan"),
        ("imbsam", COUNTS, {"eta": 0}, "eta is 0; set it to a number above 0"),
        ("focal-sam", COUNTS, {}, "Unknown sharpness method 'focal-sam'; choose one of none, sam"),
        ("cc_sam", COUNTS, {}, "The sharpness method 'cc_sam' has no class-wise weights"),
        ("sam", [3, -1], {}, "every count must be at least 0"),
        ("sam", [0, 0], {}, "one above 0"),
        ("sam", [[1, 2]], {}, r"shape \(1, 2\)"),
    ],
)
def test_bad_values_are_refused(method, counts, hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        class_weights(method, counts, hyperparameters)
