"""Two real processes over gloo, which find each other by what `accelerate launch` leaves in the environment.

The command itself starts those of test_recipes.py, test_resumable.py and test_configurations.py.
"""

import pytest
from distributed.launching import CONFIGS, Launched, batches, distance, moved
from sharpness.models import relative_error

pytestmark = pytest.mark.slow

GLOBAL, LOCAL = {"perturbation_scope": "global"}, {"perturbation_scope": "local"}


# Name -> (settings, batches of one process, batches of each of two that see the same images in each optimizer step).
# There are 24 images. In local scope the micro-batches are the same ones too, each perturbed by its own gradient.
SAME = {
    "joint": ({"tuning": "lora", **GLOBAL}, batches(12), batches(6)),
    "joint, accumulated": ({"tuning": "lora", **GLOBAL}, batches(6, 2), batches(3, 2)),
    "joint, full": ({"tuning": "full", **GLOBAL}, batches(12), batches(6)),
    "joint, unevenly accumulated": ({"tuning": "lora", **GLOBAL}, batches(4, 4), batches(4, 2)),
    "local": ({"tuning": "lora", **LOCAL}, batches(6, 2), batches(6)),
    "local, full": ({"tuning": "full", **LOCAL}, batches(6, 2), batches(6)),
    "local, unevenly accumulated": ({"tuning": "lora", **LOCAL}, batches(4, 4), batches(4, 2)),
    # Most batches of two images have no rare class and are not perturbed, on the one process or the other.
    "local, skipping": (
        {"tuning": "lora", **LOCAL, "sharpness": "imbsam", "imbsam_eta": 3, "max_steps": 20},
        batches(2, 2),
        batches(2),
    ),
    "joint, adaptive radius": ({"tuning": "lora", **GLOBAL, "adaptive_rho": True}, batches(12), batches(6)),
}
# A moving average of the weights, which is what the model ends with.
SAME["ema"] = ({"tuning": "lora", "ema_decay": 0.5}, batches(12), batches(6))
SAME["layer decay"] = (
    {"tuning": "lora", **GLOBAL, "layer_decay": 0.5, "head_learning_rate": 0.01},
    batches(12),
    batches(6),
)
# Other choices of the perturbation.
SAME |= {
    f"joint, {name}": ({"tuning": "lora", **GLOBAL, **changes}, *sizes)
    for name, changes, sizes in (
        ("friendly", {"ascent": "friendly"}, (batches(12), batches(6))),
        ("momentum, interval", {"ascent": "momentum", "ascent_interval": 2}, (batches(12), batches(6))),
        ("merged", {"perturb": "merged"}, (batches(6, 2), batches(3, 2))),
        ("norms, sam", {"perturb": "norms", "sharpness": "sam"}, (batches(12), batches(6))),
        ("momentum, one pass", {"ascent": "momentum", "evaluation": "one_pass"}, (batches(6, 2), batches(3, 2))),
        ("gaussian, one pass", {"ascent": "gaussian", "evaluation": "one_pass"}, (batches(12), batches(6))),
    )
}
# A subclass's penalty on the weights, which no sample has.
SAME |= {
    f"penalty, {name}": ({"tuning": "lora", "penalises": True, **GLOBAL, **changes}, *sizes)
    for name, changes, sizes in (
        ("focal_sam", {}, (batches(12), batches(6))),
        ("focal_sam accumulated", {}, (batches(6, 2), batches(3, 2))),
        ("sam", {"sharpness": "sam"}, (batches(12), batches(6))),
        ("plain", {"sharpness": "none"}, (batches(12), batches(6))),
    )
}
# In epochs of two steps; balanced progressively, the order depends on the epoch and on how many there are.
SAMPLERS = ("instance", "progressively_balanced")
SAME |= {
    f"{sampler} sampler": ({"tuning": "lora", "max_steps": 10, "train_sampler": sampler}, batches(12), batches(6))
    for sampler in SAMPLERS
}
# 24 images in batches that do not divide evenly: of the last one, the second process is given a part, or nothing.
UNEVEN = {
    "part": (batches(14), batches(7)),
    "nothing": (batches(10), batches(5)),
    "part, accumulated": (batches(7, 2), batches(7)),
    "nothing, accumulated": (batches(10, 2), batches(5, 2)),
}
SAME |= {
    f"uneven, {name}, {tuning}": ({"tuning": tuning, **GLOBAL, **changes}, alone, each)
    for tuning, changes in (("lora", {"train_sampler": "class_balanced"}), ("full", {}))
    for name, (alone, each) in UNEVEN.items()
}
SAME |= {
    f"uneven, nothing, {name}": ({"tuning": "lora", **GLOBAL, **changes}, *UNEVEN["nothing"])
    for name, changes in {
        "plain": {"sharpness": "none"},
        "soft labels": {"softens": True},
        "adaptive radius": {"adaptive_rho": True},
        "stream": {"streams": True},
    }.items()
}
CUT = {"tuning": "lora", "max_steps": 10, "train_sampler": SAMPLERS[1], "cut_at": 7, **batches(6)}  # amid an epoch
UNEVEN_WHOLE = "uneven, nothing, lora"
UNEVEN_CUT = {
    **SAME[UNEVEN_WHOLE][0],
    **SAME[UNEVEN_WHOLE][2],
    "cut_at": 4,
}  # before the last, uneven batch of an epoch
# What batch normalisation has seen, while the weights stay: each process its own images, as without us.
NORMALISED = {
    f"batch norm, {sharpness}, {accumulation}": {
        "tuning": "batch_norm", "sharpness": sharpness, "learning_rate": 0.0,
        **batches(6 // accumulation, accumulation),
    }
    for sharpness in ("none", "sam", "focal_sam")
    for accumulation in (1, 2)
}  # fmt: skip
# Each process draws, or perturbs, for itself.
OWN = {
    "local, nothing left": {"tuning": "full", **LOCAL, **batches(5, 2)},
    "cc_sam": {"tuning": "full", "sharpness": "cc_sam", **batches(5)},
    "ema, batch norm": {"tuning": "batch_norm", "ema_decay": 0.5, **batches(6)},
}
COUNTED = {
    f"counted, {kind}, {tuning}, {accumulation}": {
        "tuning": tuning, "count": True, "max_steps": 8, **batches(12 // accumulation // 2, accumulation), **changes,
    }
    for kind, changes in {"none": {"sharpness": "none"}, "local": LOCAL, "global": GLOBAL}.items()
    for tuning in ("lora", "full")
    for accumulation in (1, 2)
}  # fmt: skip

SCALING = ["--tunings", "adaptformer", "--image_size", "28", "--batch_size", "2", "--steps", "1", "--gpus", "1", "64"]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    runs = {name: {**settings, **alone} for name, (settings, alone, _) in SAME.items()}
    return Launched(tmp_path_factory.mktemp("one") / "runs", runs)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    runs = {name: {**settings, **each} for name, (settings, _, each) in SAME.items()}
    runs |= OWN | NORMALISED | COUNTED | {"cut": CUT, "cut, uneven": UNEVEN_CUT}
    return Launched(tmp_path_factory.mktemp("two") / "runs", runs, CONFIGS / "multi_cpu.yaml", *SCALING)


@pytest.mark.parametrize("name", SAME)
def test_two_processes_do_what_one_does_with_the_same_images(name, one, two):
    (alone,) = one.weights(name)
    change = moved(alone, SAME[name][0]["tuning"])
    assert max(float(value.abs().max()) for value in change.values()) > 0.01  # it did train
    assert all(report["separate_reason"] is None for report in [*one.reports(name), *two.reports(name)])
    for weights in two.weights(name):
        assert relative_error(moved(weights, SAME[name][0]["tuning"]), change) <= 1e-10


@pytest.mark.parametrize("name", [*SAME, *OWN])
def test_processes_hold_equal_weights(name, two):
    assert distance(*two.weights(name)) == 0


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("sharpness", ["sam", "focal_sam"])
def test_running_statistics_are_those_of_data_parallelism_alone(sharpness, accumulation, two):
    plain, ours = (two.weights(f"batch norm, {name}, {accumulation}") for name in ("none", sharpness))
    assert [distance(a, b) for a, b in zip(plain, ours, strict=True)] == [0, 0]
    assert distance(*plain) > 0  # each process has its own since the latest forward pass


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_processes_together_see_the_sequence_that_one_sees(sampler, one, two):
    """An order of one process in batches of 12 is dealt out to two in batches of 6."""
    (alone,) = [report["seen"] for report in one.reports(f"{sampler} sampler")]
    both = [report["seen"] for report in two.reports(f"{sampler} sampler")]
    assert [a + b for a, b in zip(*both, strict=True)] == alone
    assert len(alone) == 10 and alone[:2] != alone[2:4]
    assert all(
        (len(set(a + b)) == 24) == (sampler == "instance") for a, b in zip(alone[::2], alone[1::2], strict=True)
    )


def test_two_processes_resume_amid_an_epoch_in_the_same_order(two):
    assert distance(two.weights("cut")[0], two.weights("progressively_balanced sampler")[0]) == 0
    for resumed, whole in zip(two.reports("cut"), two.reports("progressively_balanced sampler"), strict=True):
        assert resumed["seen"] == whole["seen"][7:]


def test_two_processes_resume_before_an_uneven_batch(two):
    for resumed, whole in zip(two.weights("cut, uneven"), two.weights(UNEVEN_WHOLE), strict=True):
        assert distance(resumed, whole) == 0


@pytest.mark.parametrize("tuning", ["", ", full", ", unevenly accumulated"])
def test_local_scope_differs_from_global(tuning, two):
    assert distance(two.weights("joint" + tuning)[0], two.weights("local" + tuning)[0]) > 1e-6


def test_processes_skip_perturbations_each_for_itself(two):
    skipped = [report["logs"][-1]["skipped_perturbations"] for report in two.reports("local, skipping")]
    assert skipped[0] != skipped[1]
    assert all(0 < count < 20 for count in skipped)


# ---- what goes over the wire ----


def steady_state(launched, kind, tuning, accumulation):
    """(collective operations, their elements, their bytes) of a step, once calibration and DDP's set-up are over."""
    reports = launched.reports(f"counted, {kind}, {tuning}, {accumulation}")
    assert len(reports[0]["collectives"]) == 8
    assert reports[0]["collectives"] == reports[1]["collectives"]
    last = reports[0]["collectives"][5:]
    assert all(step == last[0] for step in last)
    return len(last[0]), sum(elements for elements, _ in last[0]), sum(size for _, size in last[0])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_local_scope_sends_what_plain_training_does(tuning, accumulation, two):
    plain = steady_state(two, "none", tuning, accumulation)
    trained = two.reports(f"counted, none, {tuning}, {accumulation}")[0]["trained"]
    if tuning == "lora":  # DDP that looks for unused parameters also sends which were used
        assert plain == (1, trained, 8 * trained)
    assert steady_state(two, "local", tuning, accumulation) == plain


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_global_scope_sends_the_class_weighted_gradient_beside(tuning, accumulation, two):
    plain, sent = (steady_state(two, kind, tuning, accumulation) for kind in ("none", "global"))
    trained = two.reports(f"counted, none, {tuning}, {accumulation}")[0]["trained"]
    assert sent[:2] == (plain[0] + 1, plain[1] + trained)
    assert sent[2] <= plain[2] + 8 * trained


def test_the_benchmark_counts_what_is_sent_and_works_out_what_follows(two):
    lines = [line.strip("| ").split(" | ") for line in two.output.splitlines() if line.startswith("| adaptformer")]
    (plain, local, whole), (_, local_rate, global_rate) = lines[:3], lines[3:]
    trained = int(plain[2].replace(",", ""))
    mib = f"{4 * trained / 2**20:.2f}"
    assert [row[1:5] for row in (plain, local)] == [[kind, plain[2], "1", mib] for kind in ("plain", "local")]
    assert whole[1:5] == ["global", plain[2], "2", f"{8 * trained / 2**20:.2f}"]
    assert all(float(seconds) > 0 for row in lines[:3] for seconds in row[5:])
    # 1 GPU sends nothing; on 64, a ring takes 126 times the latency and 126/64 of the bytes, for each all-reduce.
    rate, local_time = float(local_rate[2].replace(",", "")), 64 * 128 / float(local_rate[3].replace(",", ""))
    sent = 126 * (2e-5 + 4 * trained / 64 / 2.5e10)
    assert local_time == pytest.approx(128 / rate + sent, rel=1e-3)
    assert 64 * 128 / float(global_rate[3].replace(",", "")) == pytest.approx(128 / rate + 2 * sent, rel=1e-3)
