"""Runs of the recipe that are killed, stopped or fail in the middle, and go on."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from forging import TRAINING, Forge
from running import ENVIRONMENT, QUICKSTART, ROOT

RESUME = ("--resume_from_checkpoint", "true")


@pytest.fixture(scope="module")
def forge(tmp_path_factory):
    forge = Forge(tmp_path_factory.mktemp("forge"))
    yield forge
    forge.end()


@pytest.fixture(scope="module")
def whole(forge):
    """A run that nothing happens to, and the events of which it consists."""
    events = forge.folder / "events.json"
    run = forge.run("whole", events=str(events))
    assert run.statuses == [0], run.log[-3000:]
    return run, json.loads(events.read_text())


def check_equals(run, whole):
    assert run.statuses == [0] * len(run.statuses), run.log[-3000:]
    assert run.weights == whole.weights
    assert run.names == {"checkpoint-9"}  # no remains


@pytest.mark.parametrize("seed", range(10))
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(seed, forge, whole):
    """Even seeds are killed in a step, odd ones while something is written or removed."""
    run, events = whole
    begun = events.index("step begin 0")
    kinds = [event.startswith("step") for event in events]
    points = [point for point in range(begun, len(events)) if kinds[point] == (seed % 2 == 0)]
    point = random.Random(seed).choice(points)
    killed = forge.run(f"killed {seed}", kill_at=point)
    assert killed.statuses == [-signal.SIGKILL], events[point]
    resumed = forge.run(f"killed {seed}", *RESUME)
    check_equals(resumed, run)
    has_checkpoint = point > events.index("os.rename /_tmp-checkpoint-3/checkpoint-3")
    said = "Training goes on from" if has_checkpoint else "There is no complete checkpoint"
    assert said in resumed.log, events[point]


def test_killed_behind_its_last_checkpoint_it_takes_no_further_step(forge, whole):
    run, events = whole
    last = max(index for index, event in enumerate(events) if "_tmp-checkpoint-6" in event)
    killed = forge.run("behind", kill_at=last + 2)
    assert killed.statuses == [-signal.SIGKILL]
    assert killed.names == {"checkpoint-9"} and not (killed.folder / "model.safetensors").exists()
    check_equals(forge.run("behind", *RESUME), run)


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(forge, whole):
    first = forge.run("damaged", "--save_total_limit", "2", kill_at=whole[1].index("step end 7"))
    assert first.names == {"checkpoint-3", "checkpoint-6"}
    damaged = first.folder / "checkpoint-6" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    refused = forge.run("damaged", "--resume_from_checkpoint", first.folder / "checkpoint-6")
    assert refused.statuses == [1]
    (error,) = [line for line in refused.log.splitlines() if line.startswith("Error: ")]
    assert "checkpoint-6' cannot be resumed from: optimizer.pt is cut short or damaged (File is not a zip file)" in error
    resumed = forge.run("damaged", *RESUME)
    assert "optimizer.pt is cut short or damaged" in resumed.log and "it is now called '_broken-" in resumed.log
    assert f"Training goes on from '{first.folder}/checkpoint-3'" in resumed.log
    assert resumed.weights == whole[0].weights
    assert resumed.names == {"checkpoint-9", "_broken-checkpoint-6"}


def test_the_command_line_survives_a_kill_from_outside(forge, whole, tmp_path):
    """The real thing: another process sends SIGKILL at a random moment once there is a checkpoint."""
    command = [sys.executable, "recipes/finetune.py", QUICKSTART, "--output_dir", str(tmp_path), *TRAINING, *RESUME]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "checkpoint-3").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.random() * 0.5)
    process.kill()
    assert "There is no complete checkpoint" in process.communicate()[1]
    assert process.returncode == -signal.SIGKILL
    result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Training goes on from" in result.stderr
    assert (tmp_path / "model.safetensors").read_bytes() == whole[0].weights


# ---- signals ----


@pytest.mark.parametrize(
    ("number", "status", "workers"),
    [(signal.SIGTERM, 143, 0), (signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 0)],
    ids=["SIGTERM", "SIGTERM to the workers too", "SIGINT"],
)
def test_a_signal_ends_the_step_and_saves(number, status, workers, forge, whole):
    name = f"signal {number} {workers}"
    options = ("--dataloader_num_workers", workers, "--save_strategy", "no", "--max_steps", 9)
    stopped = forge.run(name, *options, signal_at=[whole[1].index("step begin 0") + 4, number, workers > 0])
    assert stopped.statuses == [status], stopped.log[-3000:]
    step = int(re.search(r"Stopped by SIG\w+ after step (\d) of 9; go on from", stopped.log)[1])
    assert stopped.names == {f"checkpoint-{step}"} and not (stopped.folder / "model.safetensors").exists()
    resumed = forge.run(name, "--dataloader_num_workers", workers, *RESUME)
    check_equals(resumed, whole[0])
