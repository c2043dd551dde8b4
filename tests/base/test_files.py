"""Files that are there whole or not at all."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ft_focalsam import LongTailClassifier
from ft_focalsam.base.files import atomic_dir, atomic_open, check_writable, new_folder
from ft_focalsam.evaluation import Predictions


def test_files_get_their_names_when_all_are_written(tmp_path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "config.json").write_text("old")
    with atomic_dir(tmp_path) as folder:
        (folder / "config.json").write_text("new")
        (folder / "inner").mkdir()
        (folder / "inner" / "model.safetensors").write_text("weights")
        assert (tmp_path / "config.json").read_text() == "old" and not (tmp_path / "inner").exists()
    content = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert content == {"kept": "kept", "config.json": "new", "inner/model.safetensors": "weights"}


def test_a_failure_changes_nothing(tmp_path):
    (tmp_path / "config.json").write_text("old")
    with pytest.raises(RuntimeError, match="no space"), atomic_dir(tmp_path) as folder:
        (folder / "config.json").write_text("new")
        raise RuntimeError("no space")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "old"


def test_one_file_gets_its_name_when_it_is_written_and_is_as_readable_as_any(tmp_path):
    path, ordinary = tmp_path / "new" / "predictions.csv", tmp_path / "ordinary"
    with atomic_open(path, "w", encoding="utf-8") as file:
        file.write("old")
        assert not path.exists()
    with pytest.raises(RuntimeError, match="no space"), atomic_open(path, "w", encoding="utf-8") as file:
        file.write("new")
        raise RuntimeError("no space")
    assert [(entry.name, entry.read_text()) for entry in path.parent.iterdir()] == [("predictions.csv", "old")]
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode


def test_weights_are_as_readable_as_any_file(tmp_path):
    (tmp_path / "ordinary").touch()
    (tmp_path / "secret").touch(mode=0o600)
    LongTailClassifier.from_backbone("tiny_clip", ["a", "b"]).save_pretrained(tmp_path)
    with new_folder(tmp_path / "exported") as folder:
        save_file({"w": np.zeros(3)}, folder / "model.safetensors")
    labels = np.array([0])
    predictions = Predictions.of_logits(np.zeros((1, 2)), labels, ids=["1"], class_names=["a", "b"])
    predictions.save(tmp_path / "predictions" / "digits.safetensors")
    modes = {path.name: path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert modes.pop("secret") & 0o777 == 0o600
    assert len(modes) == 4 and set(modes.values()) == {(tmp_path / "ordinary").stat().st_mode}


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_a_classifier_killed_while_it_is_saved_over_another_one_is_never_a_mixture(renamed, tmp_path, monkeypatch):
    """Killed after so many of its three files are in place."""

    class Killed(BaseException):
        pass

    LongTailClassifier.from_backbone("tiny_clip", ["a", "b"], head_scale=10.0).save_pretrained(tmp_path)
    model, calls, replace = LongTailClassifier.from_backbone("tiny_clip", ["a", "b"], head_scale=20.0), [], os.replace

    def stop(*paths):
        calls.append(Path(paths[1]).name)
        if len(calls) > renamed:
            raise Killed
        replace(*paths)

    monkeypatch.setattr(os, "replace", stop)
    try:
        model.save_pretrained(tmp_path)
    except Killed:
        with pytest.raises(FileNotFoundError, match=r"has no model.safetensors"):
            LongTailClassifier.from_pretrained(tmp_path)
    else:
        assert calls == ["config.json", "model.safetensors"]
        assert LongTailClassifier.from_pretrained(tmp_path).config.head_scale == 20.0


def test_a_folder_that_cannot_be_written_is_named_with_the_reason(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    check_writable(tmp_path / "other" / "folder", make=False)
    assert not (tmp_path / "other").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"folder '.*/out' cannot be written to \(Not a directory\); set --output_dir"):
        check_writable(tmp_path / "file" / "out")
    with pytest.raises(OSError, match=r"folder '.*/out' cannot be written to \(Not a directory\); set --output to"):
        check_writable(tmp_path / "file" / "out", option="--output", make=False)
    with pytest.raises(OSError, match=r"folder '/proc' cannot be written to"):
        check_writable("/proc")
