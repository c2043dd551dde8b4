"""Many runs of the recipe for the price of one start: see `forge.py`, which is the other end of this."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from running import ENVIRONMENT, ROOT

# Nine steps in epochs of eight, amid the second of which they end; dropout and crops draw random numbers.
TRAINING = [
    *("--max_steps", "9", "--save_strategy", "steps", "--save_steps", "3", "--save_total_limit", "1"),
    *("--imbalance_factor", "4", "--max_train_per_class", "20", "--max_test_per_class", "1"),
    *("--per_device_train_batch_size", "14", "--lora_dropout", "0.1", "--optim", "adamw_torch"),
    *("--disable_tqdm", "true"),
]


@dataclass
class Run:
    """How the processes of a run ended: exit statuses (the negative number of the signal for one that was killed),
    and what each wrote to its terminal."""

    folder: Path
    statuses: list[int]
    logs: list[str]

    @property
    def log(self) -> str:
        return self.logs[0]

    @property
    def weights(self) -> bytes:
        return (self.folder / "model.safetensors").read_bytes()

    @property
    def names(self) -> set[str]:
        """Of the folders in the output folder."""
        return {path.name for path in self.folder.iterdir() if path.is_dir() and "checkpoint" in path.name}


class Forge:
    """Forks runs of the recipe."""

    def __init__(self, folder: Path):
        self.folder = folder
        command = [sys.executable, str(ROOT / "tests" / "forge.py")]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, name: str | Path, *overrides, processes: int = 1, **what) -> Run:
        """Run the recipe with the output folder `name`; `what` is done to it, as in `forge.do`."""
        folder = self.folder / name
        argv = ["--output_dir", str(folder), *TRAINING, *map(str, overrides)]
        log = self.folder / "log"
        task = {"runs": [argv] * processes, "log": str(log), **what}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        statuses = json.loads(self.process.stdout.readline())
        logs = [Path(f"{log}.{rank}").read_text() for rank in range(processes)]
        return Run(folder, statuses, logs)

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
