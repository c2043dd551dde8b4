"""What a checkpoint knows of its run: settings, digests, steps; and that one run at a time writes to a folder."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from running import ENVIRONMENT, ROOT
from safetensors.torch import load_file, save_file
from sharpness.models import make_model
from test_trainer import trainer_for
from transformers import TrainerCallback

from ft_focalsam.trainer.checkpointing import CheckpointError, find_fault
from ft_focalsam.trainer.manifest import MANIFEST_NAME, Manifest
from ft_focalsam.trainer.run_lock import LOCK_NAME, one_writer
from ft_focalsam.trainer.run_settings import describe_differences, differences, fingerprint

pytestmark = pytest.mark.slow

RUN = {"max_steps": 6, "optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2, "ascent": "momentum"}


def begin(folder, *, tuning="lora", **changes):
    return trainer_for(make_model("vit", tuning, dtype=torch.float32), folder, **{**RUN, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run to its end, and its final weights."""
    trainer = begin(tmp_path_factory.mktemp("whole"))
    trainer.train()
    return trainer


@pytest.fixture
def cut(tmp_path):
    """A run whose last checkpoint has not been written."""
    begin(tmp_path).train()
    for path in (tmp_path / "checkpoint-6").iterdir():
        path.unlink()
    (tmp_path / "checkpoint-6").rmdir()
    return tmp_path


def assert_same_weights(trainer, other):
    pairs = zip(trainer.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


# ---- which run ----


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rho": 0.2}, "rho was 0.1 and is 0.2"),
        ({"max_steps": 8, "seed": 3}, "max_steps was 6 and is 8, seed was 42 and is 3"),
        ({"optim": "sgd"}, 'optim was "adamw_torch" and is "sgd"'),
        ({"tuning": "full"}, "trained_parameters was "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_resume_under_other_settings_is_refused_by_the_keys_that_differ(changed, told, cut):
    with pytest.raises(CheckpointError, match=told) as caught:
        begin(cut, **changed).train(True)
    assert "checkpoint-4'" in str(caught.value)
    assert {path.name for path in cut.iterdir()} == {"checkpoint-2", "checkpoint-4"}


def test_what_changes_nothing_that_is_computed_may_differ(cut, whole):
    neutral = {"save_steps": 5, "logging_steps": 3, "dataloader_num_workers": 1, "eval_strategy": "epoch"}
    trainer = begin(cut, **neutral, per_device_eval_batch_size=2, save_total_limit=4, run_name="again")
    trainer.train("true")
    assert trainer.changes == []
    assert_same_weights(trainer, whole)


def test_changed_settings_are_taken_when_asked_for_and_kept_in_the_checkpoints(cut):
    trainer = begin(cut, rho=0.2, resume_changed=True)
    trainer.train(True)
    changes = [{"step": 4, "changed": {"rho": [0.1, 0.2]}}]
    assert trainer.changes == Manifest.read(cut / "checkpoint-6").changes == changes
    again = begin(cut, rho=0.2)
    again.train(True)
    assert again.changes == changes


def test_a_method_without_a_direction_leaves_a_saved_one(cut):
    assert (cut / "checkpoint-4" / "sharpness_direction.safetensors").is_file()
    trainer = begin(cut, sharpness="cc_sam", ascent="gradient", resume_changed=True)
    trainer.train(True)
    assert trainer.state.global_step == 6 and trainer.changes[0]["changed"]["sharpness"] == ["focal_sam", "cc_sam"]


def test_what_does_not_fit_is_refused_whatever_is_asked_for(cut):
    with pytest.raises(CheckpointError, match=r"does not fit the model: .*trained_parameters was"):
        begin(cut, tuning="full", resume_changed=True).train(True)
    with pytest.raises(CheckpointError, match="holds the state of the optimizer AdamW, which SGD cannot take"):
        begin(cut, optim="sgd", resume_changed=True).train(True)


def test_checkpoints_of_an_earlier_run_in_the_folder_are_never_taken(tmp_path):
    """The later run was killed at step 2; the earlier one has left checkpoints up to step 6."""
    begin(tmp_path).train()
    earlier = {path.name: Manifest.read(path).run for path in tmp_path.glob("checkpoint-*")}
    begin(tmp_path, save_total_limit=None, save_steps=2, max_steps=6, logging_steps=2).train()
    later = Manifest.read(tmp_path / "checkpoint-2").run
    assert set(earlier.values()) != {later}
    for step in (4, 6):  # as if it had been killed there
        path = tmp_path / f"checkpoint-{step}" / MANIFEST_NAME
        content = json.loads(path.read_text())
        content.update(run=earlier["checkpoint-6"], written=1)
        path.write_text(json.dumps(content))
    trainer = begin(tmp_path)
    trainer.train(True)
    assert trainer._resumption.step == 2 and trainer._resumption.run == later
    assert {Manifest.read(path).run for path in tmp_path.glob("checkpoint-*")} == {later}


def test_behind_a_damaged_checkpoint_only_one_of_the_same_run_is_taken(cut):
    path = cut / "checkpoint-2" / MANIFEST_NAME
    path.write_text(path.read_text().replace(Manifest.read(cut / "checkpoint-4").run, "another"))
    (cut / "checkpoint-4" / "optimizer.pt").unlink()
    trainer = begin(cut)
    trainer.train(True)
    assert trainer._resumption.checkpoint is None and trainer._resumption.run != "another"


def test_a_checkpoint_of_an_earlier_version_is_resumed(cut, whole):
    for path in cut.glob(f"*/{MANIFEST_NAME}"):
        path.unlink()
    trainer = begin(cut)
    trainer.train(True)
    assert trainer._resumption.step == 4
    assert_same_weights(trainer, whole)


def test_settings_are_compared_where_both_sides_know_them():
    changed = differences({"rho": 0.1, "old": 1, "seed": 0}, {"rho": 0.2, "new": 1, "seed": 0})
    assert changed == {"rho": [0.1, 0.2]}
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1})
    many = describe_differences({f"key{i}": [list(range(99)), i] for i in range(9)})
    assert many.startswith("key0 was [0, 1, 2,") and many.endswith("and is 5, and 3 others") and "... and is 0" in many


# ---- damage ----


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


def edit_state(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def write_nan(path):
    """Weights that are not numbers, as a run that went wrong writes them: their digest is right."""
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    Manifest.read(path.parent).write(path.parent)


NAMES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "sharpness_direction.safetensors", "trainer_state.json"]
WEIGHTS = "adapter_model.safetensors"
DAMAGES = {
    **{f"flipped {name}": (name, flip, name) for name in [*NAMES, WEIGHTS, "adapter_config.json", MANIFEST_NAME]},
    **{f"no {name}": (name, os.unlink, f"it has no {name}") for name in [*NAMES, WEIGHTS]},
    "not a number": (WEIGHTS, write_nan, "values that are not numbers (NaN)"),
}
STATES = {
    "negative": lambda path: edit_state(path, global_step=-4),
    "huge": lambda path: edit_state(path, global_step=10**12),
    "of another step": lambda path: edit_state(path, global_step=2),
    "a list": lambda path: path.write_text("[4]"),
    "no number": lambda path: edit_state(path, global_step="4"),
    "an unknown field": lambda path: edit_state(path, surprise=1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(damage, cut, whole):
    name, spoil, told = DAMAGES[damage]
    spoil(cut / "checkpoint-4" / name)
    assert told in find_fault(cut / "checkpoint-4")
    trainer = begin(cut)
    trainer.train(True)
    assert trainer._resumption.step == 2 and (cut / "_broken-checkpoint-4").is_dir()
    assert_same_weights(trainer, whole)


@pytest.mark.parametrize("has_digests", [True, False])
@pytest.mark.parametrize("state", STATES)
def test_an_absurd_state_is_never_resumed_from(state, has_digests, cut, whole):
    STATES[state](cut / "checkpoint-4" / "trainer_state.json")
    if not has_digests:
        (cut / "checkpoint-4" / MANIFEST_NAME).unlink()
    assert "trainer_state.json is " in find_fault(cut / "checkpoint-4")
    if has_digests:
        trainer = begin(cut)
        trainer.train(True)
        assert trainer._resumption.step == 2
        assert_same_weights(trainer, whole)


def test_a_checkpoint_that_changes_while_it_is_loaded_stops_the_run(cut):
    trainer = begin(cut)
    load = trainer._load_from_checkpoint

    def load_slowly(checkpoint, model=None):
        load(checkpoint, model)
        edit_state(cut / "checkpoint-4" / "trainer_state.json", global_step=5)

    trainer._load_from_checkpoint = load_slowly
    with pytest.raises(CheckpointError, match=r"was at step 4 and is at step 5 now: another program writes there"):
        trainer.train(True)


def test_a_damaged_best_checkpoint_is_not_loaded(tmp_path):
    class Spoil(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 6:
                flip(Path(state.best_model_checkpoint) / WEIGHTS)

    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    trainer = begin(tmp_path, **best)
    trainer.add_callback(Spoil())
    with pytest.raises(
        CheckpointError, match=rf"best checkpoint '.*' cannot be loaded: {WEIGHTS} is cut short or dam"
    ):
        trainer.train()


def test_files_of_a_run_are_as_readable_as_others(whole):
    folder = whole.args.output_dir
    whole.save_model()
    modes = {
        path: stat.S_IMODE(os.stat(path).st_mode)
        for path in (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    }
    assert any(path.endswith(WEIGHTS) for path in modes)
    ordinary = os.path.join(folder, "ordinary")
    open(ordinary, "w").close()
    assert set(modes.values()) == {stat.S_IMODE(os.stat(ordinary).st_mode)}


# ---- one writer ----

HOLDER = """
import sys, time
from ft_focalsam.trainer.run_lock import one_writer
with one_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes to the folder, with a worker that it has forked."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_live_run_in_a_folder_is_refused_until_the_first_is_gone(holder, tmp_path):
    trainer = begin(tmp_path, max_steps=2)
    with pytest.raises(BlockingIOError, match=rf"Another run writes to '.*' \(process {holder.pid} on .*\); wait"):
        trainer.train()
    assert trainer.state.global_step == 0 and not list(tmp_path.glob("checkpoint-*"))
    holder.kill()
    holder.wait()
    trainer.train()
    assert trainer.state.global_step == 2 and not (tmp_path / LOCK_NAME).exists()
    trainer.train()


def test_a_forked_worker_does_not_hold_the_lock_on(tmp_path):
    script = HOLDER.replace('print("held"', 'import os; child = os.fork(); time.sleep(30 * (not child)); print("held"')
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
        with one_writer(tmp_path):
            pass
    finally:
        os.killpg(process.pid, 9)


def test_the_lock_is_for_one_thread_that_may_enter_again(tmp_path):
    refused = []

    def enter():
        try:
            with one_writer(tmp_path):
                refused.append(False)
        except BlockingIOError as error:
            refused.append("another thread of this process" in str(error))

    with one_writer(tmp_path):
        with one_writer(tmp_path):
            assert (tmp_path / LOCK_NAME).exists()
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert (tmp_path / LOCK_NAME).exists()
    enter()
    assert refused == [True, False] and list(tmp_path.iterdir()) == []


def test_trials_of_a_search_have_locks_of_their_own(tmp_path):
    pytest.importorskip("optuna")
    trainer = begin(tmp_path, max_steps=2, save_strategy="no", eval_strategy="epoch")
    trainer.model_init, held = (lambda: make_model("vit", "lora", dtype=torch.float32)), []
    locks = lambda: held.append(sorted(path.name for path in tmp_path.glob(".*.lock")))  # noqa: E731
    trainer.add_callback(type("Look", (TrainerCallback,), {"on_step_end": lambda *a, **k: locks()}))
    trainer.hyperparameter_search(
        lambda trial: {"rho": trial.suggest_float("rho", 0.1, 0.2)}, n_trials=2, backend="optuna"
    )
    assert held == [[".run-0.lock"]] * 2 + [[".run-1.lock"]] * 2 and not list(tmp_path.glob(".*.lock"))
