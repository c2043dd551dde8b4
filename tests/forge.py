"""A process that imports torch once and forks a child for each run of the recipe it is told to do.

It reads a JSON object a line: `runs`, the command lines of as many processes as there are to be (connected over gloo
where there are several), and what is done to them. It answers with a JSON object a line.
"""

import gc
import json
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "recipes"), str(ROOT)]

import finetune  # noqa: E402

from ft_focalsam import FocalSAMTrainer, LongTailClassifier  # noqa: E402
from ft_focalsam.data import load_image_data  # noqa: E402

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


class Events:
    """What happens in a run, in order: the begin and end of its steps, and what it does to files in its folder.

    Args:
        folder (`str`): Its output folder.
        kill_at (`int`, *optional*): At which event the process kills itself with SIGKILL.
    """

    def __init__(self, folder: str, kill_at: int | None):
        self.folder, self.kill_at, self.seen = folder, kill_at, []

    def __call__(self, name: str, arguments: tuple) -> None:
        if name not in (*FILE_EVENTS, "step"):
            return
        path = str(arguments[0]) if arguments else ""
        if name != "step" and not path.startswith(self.folder):
            return
        self.seen.append(f"{name} {path.removeprefix(self.folder)}")
        if self.kill_at == len(self.seen) - 1:
            os.kill(os.getpid(), signal.SIGKILL)


class NotingTrainer(FocalSAMTrainer):
    """Says when a step begins and ends."""

    def training_step(self, *args, **kwargs):
        sys.audit("step", f"begin {self.state.global_step}")
        loss = super().training_step(*args, **kwargs)
        sys.audit("step", f"end {self.state.global_step}")
        return loss


def run(argv: list[str], *, log: str, events: str | None, kill_at: int | None, file_limit: int | None) -> int:
    """The recipe without its reports, which take longer than all the rest; returns the exit status."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1), os.dup2(output, 2)
    finetune.write_page = finetune.write_report = lambda *args, **kwargs: None
    folder = argv[argv.index("--output_dir") + 1]
    seen = Events(folder, kill_at)
    sys.addaudithook(seen)
    if file_limit is not None:  # what a full disk does to a file, where no disk can be mounted
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    try:
        finetune.main([str(ROOT / "recipes" / "configs" / "quickstart.yaml"), *argv], trainer_type=NotingTrainer)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return 1
    except SystemExit as error:
        return error.code
    finally:
        sys.stdout.flush(), sys.stderr.flush()
    if events is not None:
        Path(events).write_text(json.dumps(seen.seen))
    return 0


def fork(argv: list[str], rank: int, processes: int, port: int, options: dict) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        if processes > 1:
            addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
            os.environ.update({**addresses, **ranks, "WORLD_SIZE": str(processes), "ACCELERATE_USE_CPU": "true"})
        options = {**options, "log": f"{options['log']}.{rank}"}
        status = run(argv, **options)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait_for(path: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not Path(path).exists() and time.monotonic() < end:
        time.sleep(0.005)


def do(task: dict) -> list[int]:
    """Exit statuses of the processes, the negative number of the signal for one that was killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {name: task.get(name) for name in ("log", "events", "kill_at", "file_limit")}
    runs = task["runs"]
    pids = [fork(argv, rank, len(runs), port, options) for rank, argv in enumerate(runs)]
    for rank, number, path in task.get("signals", ()):  # sent once a file or folder is there
        wait_for(path)
        os.kill(pids[rank], number)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    load_image_data("digits")  # and so what both import and remember on the way
    LongTailClassifier.from_backbone("tiny_clip", ["a", "b"])
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(do(json.loads(line))), flush=True)
