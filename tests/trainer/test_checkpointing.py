"""Which checkpoints are complete, which one is the newest, what is removed."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from ft_focalsam.trainer.checkpointing import (
    REPLACED,
    CheckpointError,
    aside_folder,
    check_checkpoint,
    find_fault,
    find_newest,
    put_in_place,
    remove_old,
    tidy,
)


def make(folder, step):
    """A checkpoint as the Trainer writes it."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"w": torch.arange(100.0)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.arange(100.0)}, path / name)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (path / "config.json").write_text("{}")
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_complete_checkpoint_has_no_fault(tmp_path):
    assert find_fault(make(tmp_path, 3)) is None
    only_model = make(tmp_path, 4)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (only_model / name).unlink()
    assert find_fault(only_model) is None


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json"]
)
def test_a_file_that_is_cut_short_is_named(name, share, tmp_path):
    checkpoint = make(tmp_path, 3)
    size = (checkpoint / name).stat().st_size
    os.truncate(checkpoint / name, min(int(share * size), size - 1))
    assert find_fault(checkpoint).startswith(f"{name} is cut short or damaged (")
    with pytest.raises(CheckpointError, match=rf"checkpoint-3' cannot be resumed from: {name} is cut .* set --resume"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"])
def test_a_file_that_is_missing_is_named(name, tmp_path):
    checkpoint = make(tmp_path, 3)
    (checkpoint / name).unlink()
    assert find_fault(checkpoint) == f"it has no {name}"


def test_flipped_bits_in_the_optimizer_are_found(tmp_path):
    path = make(tmp_path, 3) / "optimizer.pt"
    content = bytearray(path.read_bytes())
    place = content.find(torch.arange(100.0).numpy().tobytes())
    content[place + 40] ^= 1
    path.write_bytes(content)
    assert "optimizer.pt is cut short or damaged (wrong checksum of" in find_fault(path.parent)


def test_pickled_weights_are_refused_unread(tmp_path):
    checkpoint = make(tmp_path, 3)
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch boom'\ntR.")
    assert find_fault(checkpoint).startswith("pytorch_model.bin holds pickled weights, which can run code")


def test_the_newest_complete_one_is_found_by_number_and_damaged_ones_are_set_aside(tmp_path):
    for step in (9, 10, 30, 200):
        make(tmp_path, step)
    (tmp_path / "checkpoint-30" / "optimizer.pt").write_bytes(b"")
    (tmp_path / "checkpoint-200" / "trainer_state.json").unlink()
    (tmp_path / "_tmp-checkpoint-300" / "checkpoint-300").mkdir(parents=True)
    newest, warnings = find_newest(tmp_path)
    assert newest == tmp_path / "checkpoint-10"
    assert ["checkpoint-200' cannot" in warnings[0], "checkpoint-30' cannot" in warnings[1]] == [True, True]
    kept = ["_broken-checkpoint-200", "_broken-checkpoint-30", "_tmp-checkpoint-300", "checkpoint-10", "checkpoint-9"]
    assert names(tmp_path) == kept
    assert find_newest(tmp_path / "elsewhere") == (None, [])


def test_a_checkpoint_takes_the_place_of_one_of_the_same_step(tmp_path):
    (make(tmp_path, 5) / "old").touch()
    make(aside_folder(tmp_path, 5), 5)
    assert put_in_place(tmp_path, 5) == tmp_path / "checkpoint-5"
    assert names(tmp_path) == ["checkpoint-5"] and not (tmp_path / "checkpoint-5" / "old").exists()


def test_tidying_removes_what_is_half_done_and_gives_back_what_was_replaced(tmp_path):
    make(tmp_path, 5)
    (tmp_path / "checkpoint-5").rename(tmp_path / "moved")
    make(aside_folder(tmp_path, 5), 5)
    (tmp_path / "moved").rename(aside_folder(tmp_path, 5) / REPLACED)  # killed between the two renames
    make(aside_folder(tmp_path, 9), 9)
    tidy(tmp_path)
    assert names(tmp_path) == ["checkpoint-5"] and find_fault(tmp_path / "checkpoint-5") is None


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [1, 2, 3, 4]),
        (0, None, [1, 2, 3, 4]),
        (2, None, [3, 4]),
        (1, None, [4]),
        (1, 2, [2, 4]),
        (3, 1, [1, 3, 4]),
        (9, None, [1, 2, 3, 4]),
    ],
)
def test_old_checkpoints_are_removed_but_neither_the_new_nor_the_best_one(limit, best, left, tmp_path):
    for step in (1, 2, 3, 4):
        os.utime(make(tmp_path, step), (step * 1000, step * 1000))
    best = None if best is None else str(tmp_path / f"checkpoint-{best}")
    remove_old(tmp_path, limit, keep=[tmp_path / "checkpoint-4", best])
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left]


def test_the_new_checkpoint_stays_whatever_an_earlier_run_left(tmp_path):
    """Of higher numbers, and of the same second."""
    for step in (40, 50, 3):
        make(tmp_path, step)
    remove_old(tmp_path, 1, keep=[tmp_path / "checkpoint-3"])
    assert names(tmp_path) == ["checkpoint-3"]


def test_what_is_being_removed_has_no_good_name_any_more(tmp_path, monkeypatch):
    for step in (1, 2):
        make(tmp_path, step)
    seen, remove = [], shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **k: (seen.append(os.path.basename(path)), remove(path, **k)))
    remove_old(tmp_path, 1, keep=[tmp_path / "checkpoint-2"])
    assert set(seen) == {"_tmp-checkpoint-1"} and names(tmp_path) == ["checkpoint-2"]
