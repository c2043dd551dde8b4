"""Long-tailed profiles against the published CIFAR-LT counts, nesting of subsets, frequency groups."""

from decimal import Decimal

import numpy as np
import pytest

from ft_focalsam.data import (
    PROFILES,
    class_counts,
    describe_groups,
    exponential_counts,
    frequency_groups,
    label_array,
    load_image_data,
    long_tail_indices,
    profile_counts,
    register_profile,
    stratified_split,
    take_per_class,
)

CIFAR10_LT_100 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_counts_are_those_of_cifar10_lt():
    assert exponential_counts(10, 5000, imbalance_factor=100).tolist() == CIFAR10_LT_100


@pytest.mark.parametrize(("imbalance_factor", "total"), [(10, 19573), (50, 12608), (100, 10847), (200, 9502)])
def test_totals_are_those_of_cifar100_lt(imbalance_factor, total):
    counts = exponential_counts(100, 500, imbalance_factor=imbalance_factor)
    assert counts.sum() == total
    assert counts[0] == 500
    assert (np.diff(counts) <= 0).all()


@pytest.mark.parametrize("num_classes", [2, 8, 10, 100, 365, 1000])
@pytest.mark.parametrize("imbalance_factor", [10, 49, 100, 200])
def test_rarest_class_is_exactly_max_count_over_the_imbalance_factor(num_classes, imbalance_factor):
    """Without care, int(49.99999) makes it one image too few."""
    for rarest in range(1, 60):
        counts = exponential_counts(num_classes, rarest * imbalance_factor, imbalance_factor=imbalance_factor)
        assert counts[-1] == rarest


def test_balanced_profile_and_single_class():
    assert exponential_counts(4, 7, imbalance_factor=1).tolist() == [7, 7, 7, 7]
    assert exponential_counts(1, 7, imbalance_factor=100).tolist() == [7]


def test_profile_errors_name_value_and_remedy():
    with pytest.raises(ValueError, match=r"imbalance_factor=0\.01 must be at least 1.*100, not 0\.01"):
        exponential_counts(10, 5000, imbalance_factor=0.01)
    with pytest.raises(ValueError, match="at least 1"):
        exponential_counts(10, 5000, imbalance_factor=float("nan"))
    with pytest.raises(ValueError, match=r"with 50 images .* leaves 2 of 10 classes without an image; lower .* 50"):
        exponential_counts(10, 50, imbalance_factor=100)
    with pytest.raises(ValueError, match="num_classes=0 and max_count=5"):
        exponential_counts(0, 5, imbalance_factor=10)


@pytest.mark.parametrize(("folder", "max_count"), [("cifar10", 5000), ("cifar100", 500)])
def test_real_cifar_gives_every_published_profile(shared, folder, max_count):
    """The training set is stored as the imbalance-10 superset, and all longer tails are cut from it."""
    data = load_image_data(str(shared / "data" / folder))
    labels = label_array(data.train)
    previous = np.arange(len(labels))
    for imbalance_factor in (10, 50, 100, 200):
        chosen = long_tail_indices(labels, data.num_classes, imbalance_factor=imbalance_factor, seed=3)
        expected = exponential_counts(data.num_classes, max_count, imbalance_factor=imbalance_factor)
        assert class_counts(labels[chosen], data.num_classes).tolist() == expected.tolist()
        assert np.isin(chosen, previous).all()
        assert (np.diff(chosen) > 0).all()
        previous = chosen


def test_same_seed_same_subset_and_another_seed_another():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 200))
    first = long_tail_indices(labels, 5, imbalance_factor=20, seed=1)
    assert np.array_equal(first, long_tail_indices(labels, 5, imbalance_factor=20, seed=1))
    other = long_tail_indices(labels, 5, imbalance_factor=20, seed=2)
    assert len(other) == len(first)
    assert not np.array_equal(other, first)


def test_smaller_max_count_is_contained():
    labels = np.repeat(np.arange(5), 200)
    large = long_tail_indices(labels, 5, imbalance_factor=20, seed=1)
    small = long_tail_indices(labels, 5, imbalance_factor=20, seed=1, max_count=60)
    assert class_counts(labels[small], 5)[0] == 60
    assert np.isin(small, large).all()


@pytest.mark.parametrize("available", [[37, 41, 9, 12], [5, 500, 500, 500], [500, 400, 300, 3], [8, 8, 8, 8]])
def test_default_max_count_is_the_largest_that_fits(available):
    labels = np.repeat(np.arange(4), available)
    for imbalance_factor in (1, 1.5, 2, 4):
        chosen = class_counts(labels[long_tail_indices(labels, 4, imbalance_factor=imbalance_factor, seed=0)], 4)
        assert (chosen <= available).all()
        larger = exponential_counts(4, int(chosen[0]) + 1, imbalance_factor=imbalance_factor)
        assert (larger > available).any()


def test_subset_errors_name_class_have_need_and_remedy():
    labels = np.repeat(np.arange(3), [50, 20, 20])
    with pytest.raises(ValueError, match=r"Class 1 has 20 images .* max_count=50 .* needs 25; lower max_count"):
        long_tail_indices(labels, 3, imbalance_factor=4, seed=0, max_count=50)
    with pytest.raises(ValueError, match="Class 3 has no image"):
        long_tail_indices(labels, 4, imbalance_factor=4, seed=0)
    with pytest.raises(ValueError, match=r"Label 2 at position 70 is outside 0\.\.1"):
        long_tail_indices(labels, 2, imbalance_factor=4, seed=0)


def test_take_per_class():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), [50, 20, 4]))
    ten = take_per_class(labels, 3, per_class=10, seed=0)
    assert class_counts(labels[ten], 3).tolist() == [10, 10, 4]
    assert np.isin(take_per_class(labels, 3, per_class=5, seed=0), ten).all()
    with pytest.raises(ValueError, match="per_class=0 must be at least 1"):
        take_per_class(labels, 3, per_class=0, seed=0)


def test_stratified_split_is_a_partition_and_keeps_rare_classes_in_training():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [100, 10, 2, 1]))
    train, test = stratified_split(labels, 4, test_fraction=0.3, seed=0)
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert class_counts(labels[test], 4).tolist() == [30, 3, 1, 0]
    with pytest.raises(ValueError, match=r"test_fraction=1\.0 must be"):
        stratified_split(labels, 4, test_fraction=1.0, seed=0)
    with pytest.raises(ValueError, match=r"test_fraction=0\.001 leaves no test image.*raise the fraction"):
        stratified_split(labels, 4, test_fraction=0.001, seed=0)


def test_frequency_groups_at_the_thresholds():
    counts = [500, 101, 100, 20, 19, 1]
    groups = frequency_groups(counts)
    assert {name: classes.tolist() for name, classes in groups.items()} == {
        "many": [0, 1],
        "medium": [2, 3],
        "few": [4, 5],
    }
    assert frequency_groups(counts, many=600, few=600)["few"].tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="few=200 is larger than many=100"):
        frequency_groups(counts, few=200)


def test_description_of_groups_holds_their_numbers():
    counts = exponential_counts(100, 500, imbalance_factor=100)
    lines = [line.split() for line in describe_groups(counts).splitlines()]
    assert lines[1] == ["many", ">", "100", "35", str(counts[counts > 100].sum())]
    assert lines[2][:3] == ["medium", "20..100", "35"]
    assert lines[3][:4] == ["few", "<", "20", "30"]
    assert sum(int(line[-1]) for line in lines[1:]) == 10847


# ---- other profiles ----


@pytest.mark.parametrize("imbalance_factor", [1, 3.7, 10, 50, 100, 200])
@pytest.mark.parametrize("num_classes", [1, 2, 5, 10, 100])
def test_profiles_equal_a_loop_over_their_formulas(num_classes, imbalance_factor):
    """Fractions and decimals to 40 places, class by class."""
    factor, last = Decimal(str(imbalance_factor)), max(num_classes - 1, 1)
    alpha = factor.ln() / Decimal(max(num_classes, 2)).ln()  # 1 / the index of the Pareto distribution
    formulas = {
        "exponential": lambda i: factor ** (-Decimal(i) / last),
        "step": lambda i: Decimal(1) if i < max(num_classes // 2, 1) else 1 / factor,
        "pareto": lambda i: Decimal(i + 1) ** -alpha,
    }
    assert set(formulas) == set(PROFILES)
    for name, formula in formulas.items():
        counts = profile_counts(num_classes, 5000, imbalance_factor=imbalance_factor, profile=name)
        expected = [int(5000 * formula(i) + Decimal("1e-6")) for i in range(num_classes)]
        assert counts.tolist() == expected, name
        assert num_classes == 1 or counts[-1] == int(Decimal(5000) / factor + Decimal("1e-6"))


@pytest.mark.parametrize("profile", ["step", "pareto"])
def test_subsets_of_other_profiles(profile):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 200))
    chosen = long_tail_indices(labels, 10, imbalance_factor=20, seed=1, profile=profile)
    expected = profile_counts(10, 200, imbalance_factor=20, profile=profile)
    assert class_counts(labels[chosen], 10).tolist() == expected.tolist() and expected[-1] == 10
    assert np.array_equal(chosen, long_tail_indices(labels, 10, imbalance_factor=20, seed=1, profile=profile))
    more = long_tail_indices(labels, 10, imbalance_factor=40, seed=1, profile=profile)
    assert len(more) < len(chosen) and np.isin(more, chosen).all()


def test_a_new_profile_is_one_function(request):
    request.addfinalizer(lambda: PROFILES.pop("two_thirds"))

    @register_profile("two_thirds")
    def two_thirds(num_classes, imbalance_factor):
        return np.where(np.arange(num_classes) < 2 * num_classes / 3, 1.0, 1 / imbalance_factor)

    assert profile_counts(3, 10, imbalance_factor=5, profile="two_thirds").tolist() == [10, 10, 2]
    with pytest.raises(ValueError, match="Unknown long-tail profile 'linear'; choose one of exponential, step"):
        profile_counts(3, 10, imbalance_factor=5, profile="linear")
