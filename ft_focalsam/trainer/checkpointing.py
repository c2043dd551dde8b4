"""Checkpoint folders of a run: written whole or not at all, and looked through before one is resumed from."""

import os
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..base.errors import one_line
from ..base.files import TMP_PREFIX, flush, give_ordinary_permissions
from ..base.parsing import parse_json
from .manifest import MANIFEST_NAME, Manifest

STATE_NAME = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, ADAPTER_WEIGHTS_NAME)
SHARDED = ("global_step*", "pytorch_model_fsdp*", "optimizer_*")  # of DeepSpeed and FSDP, instead of the files
BROKEN = "_broken-"
REPLACED = "replaced"


class CheckpointError(OSError):
    """A checkpoint that cannot be written, or cannot be resumed from; the message says why and what to do."""


# ---- writing ----


def aside_folder(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it gets its place and name in the folder of the run."""
    return run_folder / f"{TMP_PREFIX}checkpoint-{step}"


def put_in_place(run_folder: Path, step: int) -> Path:
    """Give a checkpoint that was written aside its name; returns its path."""
    aside, name = aside_folder(run_folder, step), f"checkpoint-{step}"
    target = run_folder / name
    give_ordinary_permissions(aside)
    flush(aside)
    if target.exists():
        target.rename(aside / REPLACED)
    (aside / name).rename(target)
    flush(run_folder, recursive=False)
    shutil.rmtree(aside, ignore_errors=True)
    return target


def remove_old(run_folder: Path, limit: int | None, *, keep: Sequence[str | Path | None]) -> None:
    """Remove the oldest checkpoints beyond `limit`, none of `keep`; each is gone by its name before it is emptied."""
    if limit is None or limit <= 0:
        return
    kept = {str(Path(path)) for path in keep if path is not None}
    others = [str(path) for path in reversed(checkpoints(run_folder)) if str(path) not in kept]
    for path in others[: max(0, len(others) + len(kept) - max(limit, len(kept)))]:
        gone = run_folder / f"{TMP_PREFIX}{Path(path).name}"
        shutil.rmtree(gone, ignore_errors=True)
        Path(path).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def tidy(run_folder: Path) -> None:
    """Remove what a process that was killed left half-written or half-removed."""
    for aside in run_folder.glob(f"{TMP_PREFIX}checkpoint-*"):
        target = run_folder / aside.name.removeprefix(TMP_PREFIX)
        if (aside / REPLACED).is_dir() and not target.exists():
            (aside / REPLACED).rename(target)
        shutil.rmtree(aside, ignore_errors=True)


# ---- reading ----


def checkpoints(run_folder: Path) -> list[Path]:
    """The checkpoints in a folder, the one written last first; those of earlier versions by number, last."""
    if not run_folder.is_dir():
        return []
    found = [path for path in run_folder.iterdir() if CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (_written(path), number_of(path)), reverse=True)


def number_of(checkpoint: Path) -> int | None:
    """N of "checkpoint-N", None where a folder is not called so."""
    found = CHECKPOINT.fullmatch(checkpoint.name)
    return found and int(found[1])


def find_newest(run_folder: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint of the run that wrote to a folder last, None where there is none, and a sentence
    on each newer one that is not taken. Damaged ones are set aside under another name."""
    warnings: list[str] = []
    run = None
    for path in checkpoints(run_folder):
        manifest = _manifest_or_none(path)
        if run is not None and (manifest is None or manifest.run != run):
            warnings.append(f"The checkpoint '{path}' is of another run, and is left as it is.")
            continue
        fault = find_fault(path)
        if fault is None:
            return path, warnings
        run = run if manifest is None else manifest.run
        broken = path.with_name(BROKEN + path.name)
        shutil.rmtree(broken, ignore_errors=True)
        path.rename(broken)
        warnings.append(f"The checkpoint '{path}' cannot be resumed from: {fault}; it is now called '{broken.name}'.")
    return None, warnings


def check_checkpoint(folder: str | os.PathLike) -> Path:
    """The path of a checkpoint that the user named.

    Raises:
        CheckpointError: If it does not exist, is incomplete or damaged; says which file is.
    """
    path = Path(folder).expanduser()
    fault = find_fault(path) if path.is_dir() else "there is no such folder"
    if fault is not None:
        raise CheckpointError(
            f"The checkpoint '{folder}' cannot be resumed from: {fault}; give another one, or set "
            "--resume_from_checkpoint true for the newest complete one in --output_dir."
        )
    return path


def find_fault(folder: Path) -> str | None:
    """What is missing from a checkpoint or damaged in it; None for nothing. Nothing in it is unpickled."""
    names = {path.name for path in folder.iterdir()}
    if STATE_NAME not in names:
        return f"it has no {STATE_NAME}"
    try:
        manifest = Manifest.read(folder)
    except ValueError as error:
        return one_line(error)
    if manifest is None:
        fault = _find_missing(folder, names) or _find_damaged(folder, names)
    else:
        fault = _find_pickled(names) or manifest.find_fault(folder)
    return fault or _find_wrong_step(folder, manifest) or _find_nan(folder)


def _find_missing(folder: Path, names: set[str]) -> str | None:
    is_sharded = any(next(folder.glob(pattern), None) for pattern in SHARDED)
    if not is_sharded and names.isdisjoint(WEIGHTS):
        return _find_pickled(names) or f"it has no {SAFE_WEIGHTS_NAME}"
    if not is_sharded and names & {"optimizer.pt", "scheduler.pt"}:  # else only the model was saved
        missing = [name for name in ("optimizer.pt", "scheduler.pt") if name not in names]
        missing += [] if any(name.startswith("rng_state") for name in names) else ["rng_state.pth"]
        if missing:
            return f"it has no {missing[0]}"
    return None


def _find_pickled(names: set[str]) -> str | None:
    pickled = next((name for name in sorted(names) if re.fullmatch(r"(pytorch|adapter)_model.*\.bin", name)), None)
    if pickled is None or not names.isdisjoint(WEIGHTS):
        return None
    return f"{pickled} holds pickled weights, which can run code when they are read (save with safetensors)"


def _find_damaged(folder: Path, names: set[str]) -> str | None:
    for name in sorted(names):
        fault = _fault_of_file(folder / name)
        if fault is not None:
            return f"{name} is cut short or damaged ({fault})"
    return None


def _fault_of_file(path: Path) -> str | None:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                file.keys()
        elif path.suffix in (".pt", ".pth"):
            with zipfile.ZipFile(path) as archive:
                wrong = archive.testzip()
                return wrong and f"wrong checksum of {wrong}"
        elif path.suffix == ".json":
            parse_json(path.read_bytes())
    except (SafetensorError, zipfile.BadZipFile, OSError, ValueError) as error:
        return one_line(error)
    return None


def _find_wrong_step(folder: Path, manifest: Manifest | None) -> str | None:
    """Whether the state of the Trainer can be taken, at the step that the folder has in its name."""
    try:
        state = TrainerState.load_from_json(str(folder / STATE_NAME))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        return f"{STATE_NAME} is cut short or damaged ({one_line(error)})"
    step = state.global_step
    if type(step) is not int or step < 0 or (type(state.max_steps) is int and 0 < state.max_steps < step):
        return f"{STATE_NAME} is cut short or damaged (its global_step is {step!r} of {state.max_steps!r})"
    for expected in (number_of(folder), manifest and manifest.step):
        if expected is not None and step != expected:
            return f"{STATE_NAME} is of step {step} and not of step {expected}"
    return None


def _find_nan(folder: Path) -> str | None:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (it is no mapping)
                value = file.get_tensor(name)
                if value.is_floating_point() and value.float().isnan().any():
                    return f"{path.name} has values that are not numbers (NaN) in {name!r}"
    return None


def _manifest_or_none(folder: Path) -> Manifest | None:
    try:
        return Manifest.read(folder)
    except (OSError, ValueError):
        return None


def _written(folder: Path) -> int:
    manifest, path = _manifest_or_none(folder), folder / MANIFEST_NAME
    if manifest is not None:
        return manifest.written
    return path.stat().st_mtime_ns if path.exists() else 0
