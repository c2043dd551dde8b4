"""Runs of the recipe that are killed, stopped or fail in the middle, and go on."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from forging import TRAINING, Forge
from PIL import Image
from running import ENVIRONMENT, QUICKSTART, ROOT, finetune, python
from safetensors.torch import load_file

from ft_focalsam.trainer.checkpointing import find_fault
from ft_focalsam.trainer.run_lock import one_writer

pytestmark = pytest.mark.slow

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
    killed = forge.run(f"killed {seed}", strike=[point, signal.SIGKILL, False])
    assert killed.statuses == [-signal.SIGKILL], events[point]
    resumed = forge.run(f"killed {seed}", *RESUME)
    check_equals(resumed, run)
    has_checkpoint = point > events.index("os.rename /_tmp-checkpoint-3/checkpoint-3")
    said = "Training goes on from" if has_checkpoint else "There is no complete checkpoint"
    assert said in resumed.log, events[point]


def test_killed_behind_its_last_checkpoint_it_takes_no_further_step(forge, whole):
    run, events = whole
    last = max(index for index, event in enumerate(events) if "_tmp-checkpoint-6" in event)
    killed = forge.run("behind", strike=[last + 2, signal.SIGKILL, False])
    assert killed.statuses == [-signal.SIGKILL]
    assert killed.names == {"checkpoint-9"} and not (killed.folder / "model.safetensors").exists()
    check_equals(forge.run("behind", *RESUME), run)


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(forge, whole):
    strike = ["step end 7", signal.SIGKILL, False]
    first = forge.run("damaged", "--save_total_limit", "2", strike=strike)
    assert first.names == {"checkpoint-3", "checkpoint-6"}
    damaged = first.folder / "checkpoint-6" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    refused = forge.run("damaged", "--resume_from_checkpoint", first.folder / "checkpoint-6")
    assert refused.statuses == [1]
    (error,) = [line for line in refused.log.splitlines() if line.startswith("Error: ")]
    assert "checkpoint-6' cannot be resumed from: optimizer.pt is cut short or damaged (its SHA-256 is not" in error
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
    assert "Training goes on from" in result.stderr and "missing keys" not in result.stderr
    assert (tmp_path / "model.safetensors").read_bytes() == whole[0].weights


# ---- other runs in the folder ----


def test_a_resume_under_other_settings_is_refused_and_recorded_when_asked_for(forge, whole):
    killed = forge.run("changed", strike=["step end 7", signal.SIGKILL, False])
    assert killed.names == {"checkpoint-6"}
    other = forge.run("changed", *RESUME, "--lora_rank", 4)
    assert "does not fit the model: lora_rank was 8 and is 4, trained_parameters was" in error_of(other)
    other = forge.run("changed", *RESUME, "--rho", 0.1, "--augmentation", "none")
    told = 'is of a run with other settings: augmentation was "crop" and is "none", rho was 0.05 and is 0.1; set these'
    assert told in error_of(other) and killed.names == {"checkpoint-6"}
    changed = forge.run("changed", *RESUME, "--rho", 0.1, "--resume_changed", "true")
    assert changed.statuses == [0] and changed.weights != whole[0].weights
    record = json.loads((changed.folder / "run.json").read_text())
    assert record["changes"] == [{"step": 6, "changed": {"rho": [0.05, 0.1]}}] and record["resolved"]["rho"] == 0.1


def test_another_number_of_processes_is_named(forge):
    options = ("--per_device_train_batch_size", 7)
    killed = forge.run("fewer", *options, processes=2, strike=["step end 4", signal.SIGKILL, False])
    assert killed.statuses[0] == -signal.SIGKILL
    assert "processes was 2 and is 1" in error_of(forge.run("fewer", *options, *RESUME))


def test_moved_data_are_the_same_and_other_data_are_not(forge, tmp_path):
    for place, shade in (("one", 0), ("other", 9)):
        for label in ("a", "b"):
            (tmp_path / place / "images" / label).mkdir(parents=True)
            for index in range(20):
                image = Image.new("RGB", (32, 32), (index, shade, 0))
                image.save(tmp_path / place / "images" / label / f"{index}.png")
    options = ("--imbalance_factor", 1, "--test_fraction", 0.1, "--max_train_per_class", 18, "--dataset")
    forge.run("moved", *options, tmp_path / "one" / "images", strike=["step end 4", signal.SIGKILL, False])
    refused = forge.run("moved", *options, tmp_path / "other" / "images", *RESUME)
    assert "is of a run with other settings: images was " in error_of(refused)
    (tmp_path / "one").rename(tmp_path / "elsewhere")
    resumed = forge.run("moved", *options, tmp_path / "elsewhere" / "images", *RESUME)
    assert resumed.statuses == [0] and "Training goes on from" in resumed.log


def test_a_second_live_run_in_the_folder_is_refused(tmp_path):
    """Two processes of the recipe; the second asks for other weights."""
    command = [sys.executable, "recipes/finetune.py", QUICKSTART, "--output_dir", str(tmp_path), *TRAINING]
    command += ["--max_steps", "5000"]
    first = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while not (tmp_path / "checkpoint-3").exists() and first.poll() is None:
            time.sleep(0.01)
        for options in (["--overwrite", "true", "--rho", "0.2"], [*RESUME]):
            second = python("recipes/finetune.py", *command[2:], *options)
            assert second.returncode == 1 and "training and" not in second.stdout
            assert f"Error: Another run writes to '{tmp_path}' (process {first.pid} on" in second.stderr
        assert first.poll() is None
    finally:
        first.terminate()
    log = first.communicate(timeout=60)[1].decode()
    assert first.returncode == 143
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert find_fault(checkpoint) is None and f"after step {checkpoint.name.rpartition('-')[2]} of 5000" in log


def test_all_processes_of_a_second_run_are_refused(forge, tmp_path):
    with one_writer(tmp_path):
        run = forge.run(tmp_path, processes=2)
    assert run.statuses == [1, 1]
    assert all(log.count("Error: Another run writes to") == 1 and "Traceback" not in log for log in run.logs)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_is_not_overwritten_unless_asked_to(forge, whole):
    done = forge.run("done")
    before = {path: path.stat().st_mtime_ns for path in done.folder.rglob("*")}
    again = forge.run("done")
    assert "holds a run (run.json); go on with --resume_from_checkpoint true, or begin anew with" in error_of(again)
    again = forge.run("done", *RESUME, "--rho", 0.1)
    assert "holds a run (run.json); its settings are others: rho was 0.05 and is 0.1; set these" in error_of(again)
    assert "training and" not in again.log
    assert {path: path.stat().st_mtime_ns for path in done.folder.rglob("*")} == before
    check_equals(forge.run("done", *RESUME), whole[0])
    other = forge.run("done", "--overwrite", "true", "--rho", 0.1, strike=["step end 4", signal.SIGKILL, False])
    assert other.names == {"checkpoint-3"}
    mixed = forge.run("done", "--overwrite", "true", *RESUME, "--rho", 0.1)
    assert "Training goes on from" in mixed.log and mixed.weights != whole[0].weights
    assert json.loads((mixed.folder / "run.json").read_text())["resolved"]["rho"] == 0.1


def test_checkpoints_of_a_run_that_was_killed_are_not_overwritten_either(forge):
    killed = forge.run("half", strike=["step end 4", signal.SIGKILL, False])
    assert "holds a run (checkpoint-3); go on with --resume_from_checkpoint true" in error_of(forge.run("half"))
    assert killed.names == {"checkpoint-3"}


# ---- signals ----


@pytest.mark.parametrize(
    ("number", "status", "workers"),
    [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 0)],
    ids=["SIGTERM, to a worker of the data loader too", "SIGINT"],
)
def test_a_signal_ends_the_step_and_saves(number, status, workers, forge, whole):
    name = f"signal {number} {workers}"
    options = ("--dataloader_num_workers", workers, "--save_strategy", "no", "--max_steps", 9)
    stopped = forge.run(name, *options, strike=["step begin 2", number, workers > 0])
    assert stopped.statuses == [status], stopped.log[-3000:]
    step = int(re.search(r"Stopped by SIG\w+ after step (\d) of 9; go on from", stopped.log)[1])
    assert stopped.names == {f"checkpoint-{step}"} and not (stopped.folder / "model.safetensors").exists()
    resumed = forge.run(name, "--dataloader_num_workers", workers, *RESUME)
    check_equals(resumed, whole[0])


@pytest.fixture(scope="module")
def whole_of_two(forge):
    run = forge.run("two", "--per_device_train_batch_size", 7, processes=2)
    assert run.statuses == [0, 0], run.logs[1][-3000:]
    return run


def test_two_processes_do_what_one_does_after_an_evaluation_too(forge):
    """Evaluation before training marks the model as prepared, and it was then trained by each process for itself."""
    options = ("--lora_dropout", 0, "--optim", "sgd")
    one = forge.run("plain one", *options)
    two = forge.run("plain two", *options, "--per_device_train_batch_size", 7, processes=2)
    expected, found = (load_file(run.folder / "model.safetensors") for run in (one, two))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=0)


def test_two_processes_stop_at_the_same_step_whichever_is_signalled(forge, whole_of_two):
    strike, two = ["step end 3", signal.SIGTERM, False], ("--per_device_train_batch_size", 7)
    stopped = forge.run("stopped two", *two, processes=2, strike=strike, rank=1)
    assert stopped.statuses == [143, 143], stopped.logs
    (step,) = re.findall(r"Stopped by SIGTERM after step (\d) of 9", "".join(stopped.logs))
    assert stopped.names == {f"checkpoint-{step}"}
    resumed = forge.run("stopped two", *two, *RESUME, processes=2)
    check_equals(resumed, whole_of_two)


def test_accelerate_launch_passes_sigterm_on_to_two_processes(forge, whole_of_two, tmp_path):
    """SIGTERM to the launcher alone, as a scheduler sends it."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launcher += ["--config_file", "accelerate_configs/multi_cpu.yaml"]
    options = [
        "--output_dir",
        str(tmp_path),
        *TRAINING,
        "--per_device_train_batch_size",
        "7",
        "--num_train_epochs",
        "9",
    ]
    options += ["--max_steps", "5000", "--save_steps", "2500"]
    command = [*launcher, "recipes/finetune.py", QUICKSTART, *options, "--logging_steps", "1"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    output = []
    for line in process.stdout:
        output.append(line)
        if re.match(r"step +\d+/5000 ", line):
            break
    process.terminate()
    output = "".join(output) + process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert "SIGTERM: finishing the step and saving a checkpoint." in output, output[-3000:]
    (step,) = set(re.findall(r"Stopped by SIGTERM after step (\d+) of 5000", output))
    assert find_fault(tmp_path / f"checkpoint-{step}") is None
    assert {path.name for path in (tmp_path / f"checkpoint-{step}").glob("rng*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }


def test_two_processes_give_up_together_and_name_the_images_of_both(forge):
    options = ("--per_device_train_batch_size", 7, "--learning_rate", "1e30", "--max_nonfinite_steps", 2)
    run = forge.run("diverged", *options, processes=2)
    assert run.statuses == [1, 1], run.logs
    for log in run.logs:
        assert "Error: The gradient has not been finite for 2 steps in a row" in log and "Traceback" not in log
    rows = (run.folder / "nonfinite_batch.txt").read_text().splitlines()
    assert len(set(rows)) == 14 and all(row.startswith("row ") for row in rows)


# ---- disks that are full, folders that cannot be written, data that vanish ----


def error_of(run) -> str:
    errors = [line for line in run.log.splitlines() if line.startswith("Error: ")]
    assert run.statuses[0] == 1 and len(errors) == 1 and "Traceback" not in run.log, run.log[-3000:]
    return errors[0]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small file system can be mounted by root only")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_intact(forge, small_disk):
    run = forge.run(small_disk / "out", "--save_steps", 1, "--save_total_limit", 9)
    error = error_of(run)
    assert re.search(
        r"The checkpoint of step \d cannot be written to '.*out' \(.*\); 'checkpoint-\d' before it", error
    )
    assert "No space left" in error and "make room there" in error
    left = sorted(run.names)
    assert left and all(name.startswith("checkpoint-") for name in left)
    assert all(find_fault(run.folder / name) is None for name in left)


@pytest.mark.parametrize("size", ["20k", "1m"])
def test_a_full_disk_at_the_end_leaves_earlier_files_intact(tmp_path, size):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small file system can be mounted by root only")
    try:
        (tmp_path / "metrics.json").write_text("of an earlier run")
        options = [
            "--report_to",
            "none",
            "--max_steps",
            1,
            "--save_strategy",
            "no" if size == "20k" else "steps",
            "--save_steps",
            1,
        ]
        (tmp_path / "ballast").write_bytes(bytes(0 if size == "20k" else 650_000))
        result = finetune("--output_dir", tmp_path, *options)
        again = "." if size == "20k" else " with --resume_from_checkpoint true, which begins at 'checkpoint-1'."
        assert result.returncode == 1
        assert re.search(
            rf"^Error: The model and its report cannot be written to '{tmp_path}' \(.*No space left.*\), whose "
            rf"earlier files are intact; make room there, and run the command again{again}$",
            result.stderr.strip().splitlines()[-1],
        )
        assert (tmp_path / "metrics.json").read_text() == "of an earlier run"
        assert {path.name for path in tmp_path.iterdir()} <= {
            "metrics.json",
            "ballast",
            "checkpoint-1",
            "config.yaml",
            "train.log",
        }
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_write_that_fails_on_one_process_ends_all_with_the_sentence(forge):
    options = ("--per_device_train_batch_size", 7)
    run = forge.run("limited", *options, processes=2, file_limit=4096, rank=1)
    assert run.statuses == [1, 1], run.logs
    for log in run.logs:
        assert "Error: The checkpoint of step 3 cannot be written to" in log and "Traceback" not in log
    assert run.names == set()


def test_an_output_folder_that_cannot_be_written_is_noticed_before_anything_is_loaded(forge, tmp_path):
    (tmp_path / "file").write_text("in the way")
    run = forge.run(tmp_path / "file" / "out")
    assert "The output folder" in error_of(run) and "Not a directory" in run.log and "set --output_dir" in run.log
    assert "training and" not in run.log  # what is said of the data


def test_images_that_vanish_end_the_run_by_name_with_the_checkpoint_intact(forge, tmp_path):
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(40):
            Image.new("RGB", (32, 32), (index, 0, 0)).save(tmp_path / "images" / label / f"{index}.png")
    options = ("--dataset", tmp_path / "images", "--imbalance_factor", 1, "--test_fraction", 0.1, "--max_steps", 400)
    watcher = threading.Thread(target=remove_once, args=(tmp_path / "images" / "b", tmp_path / "out" / "checkpoint-3"))
    watcher.start()
    run = forge.run(tmp_path / "out", *options)
    watcher.join()
    assert re.search(r"Error: The image '.*images/b/\d+.png' cannot be read \(.*No such file", error_of(run))
    (checkpoint,) = run.names
    assert find_fault(run.folder / checkpoint) is None


def remove_once(folder, sign):
    """Remove a folder once there is another one."""
    while not sign.exists():
        time.sleep(0.01)
    shutil.rmtree(folder)
