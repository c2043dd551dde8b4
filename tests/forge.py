"""A process that imports torch once and forks a child for each run of the recipe it is told to do.

It reads a task a line, in JSON, and answers with the exit statuses, see `do`.
"""

import functools
import gc
import json
import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ft_focalsam import FocalSAMTrainer, LongTailClassifier  # noqa: E402
from ft_focalsam.cli import train  # noqa: E402
from ft_focalsam.data import load_image_data  # noqa: E402
from ft_focalsam.data.sources import SOURCES  # noqa: E402

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


class Events:
    """What happens in a run, in order: the begin and end of its steps, and what it does to files in its folder.

    Args:
        folder (`str`): Its output folder.
        strike (event, signal, whether to the whole group, *optional*): At which event, by number or by its first
            occurrence, the process gets a signal.
    """

    def __init__(self, folder: str, strike: list | None):
        self.folder, self.strike, self.seen, self.pid = folder, strike, [], os.getpid()

    def __call__(self, name: str, arguments: tuple) -> None:
        if name not in (*FILE_EVENTS, "step") or os.getpid() != self.pid:
            return
        path = str(arguments[0]) if arguments else ""
        if name != "step" and not path.startswith(self.folder):
            return
        self.seen.append(f"{name} {path.removeprefix(self.folder)}")
        if self.strike and self.strike[0] in (len(self.seen) - 1, self.seen[-1]):
            _, number, is_for_all = self.strike
            self.strike = None
            (os.killpg if is_for_all else os.kill)(self.pid, number)


class NotingTrainer(FocalSAMTrainer):
    """Says when a step begins and ends."""

    def training_step(self, *args, **kwargs):
        sys.audit("step", f"begin {self.state.global_step}")
        loss = super().training_step(*args, **kwargs)
        sys.audit("step", f"end {self.state.global_step}")
        return loss


def run(argv: list[str], *, log: str, events: str | None, strike: list | None, file_limit: int | None) -> int:
    """The recipe without its reports, which take longer than all the rest; returns the exit status."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1), os.dup2(output, 2)
    train.write_page = train.write_results = lambda *args, **kwargs: None
    seen = Events(argv[argv.index("--output_dir") + 1], strike)
    sys.addaudithook(seen)
    if file_limit is not None:  # what a full disk does to a file
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    try:
        train.main([str(ROOT / "recipes" / "configs" / "quickstart.yaml"), *argv], trainer_type=NotingTrainer)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except SystemExit as error:
        return error.code
    except KeyboardInterrupt as error:
        print(f"KeyboardInterrupt: {error}", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        sys.stdout.flush(), sys.stderr.flush()
    if events is not None:
        Path(events).write_text(json.dumps(seen.seen))
    return 0


def fork(argv: list[str], rank: int, processes: int, port: int, options: dict) -> int:
    """Start one of the processes of a run; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setpgrp()
        if processes > 1:
            addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
            os.environ.update({**addresses, **ranks, "WORLD_SIZE": str(processes)})
        status = run(argv, **{**options, "log": f"{options['log']}.{rank}"})
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def do(task: dict) -> list[int]:
    """Start the processes of a run, connected over gloo where there are several, and wait for them.

    Args:
        task (mapping): `runs`, their command lines; `log`, where each writes what belongs on its terminal; and
            optionally `events`, where its events go, `strike`, see `Events`, in the process `rank` alone, and
            `file_limit`, the largest size of a file in bytes.

    Returns:
        Exit statuses; the negative number of the signal for one that was killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    runs, options = task["runs"], {name: task.get(name) for name in ("log", "events", "strike", "file_limit")}
    pids = []
    for rank, argv in enumerate(runs):
        is_struck = rank == task.get("rank", 0)
        own = options if is_struck else {**options, "strike": None, "events": None, "file_limit": None}
        pids.append(fork(argv, rank, len(runs), port, own))
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    SOURCES["digits"] = functools.cache(SOURCES["digits"])
    load_image_data("digits")  # and so what both import and remember on the way
    LongTailClassifier.from_backbone("tiny_clip", ["a", "b"])
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(do(json.loads(line))), flush=True)
