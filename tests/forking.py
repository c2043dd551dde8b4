"""Starts scripts in copies of this process, which has imported what they import first and done nothing else.

Each line from stdin is a list in JSON: the script, or `ft-focalsam`, with its arguments, and for each of
its processes what is new in the environment of that one, and the files that take what it prints and what it says on
stderr. The answer is the list of their exit codes. It ends with stdin.
"""

import gc
import json
import os
import runpy
import signal
import sys
from pathlib import Path

import accelerate  # noqa: F401
import transformers.models.clip.modeling_clip
import transformers.models.dinov2.modeling_dinov2
import transformers.trainer  # noqa: F401

import ft_focalsam.cli.config
import ft_focalsam.cli.main
import ft_focalsam.evaluation

TIMEOUT = 600  # seconds
COMMAND = "ft-focalsam"  # in the place of a script


def fork(processes) -> tuple[list[int], tuple | None]:
    """The numbers of the processes; and in each of them, which of `processes` it is."""
    numbers = []
    for process in processes:
        numbers.append(os.fork())
        if numbers[-1] == 0:
            return numbers, process
    return numbers, None


gc.freeze()  # as conftest.py does
for line in sys.stdin:
    arguments, *processes = json.loads(line)
    numbers, own = fork(processes)
    if own is not None:
        break
    print([os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in numbers], flush=True)
else:
    sys.exit()

signal.alarm(TIMEOUT)
environment, *outputs = own
os.environ.update(environment)
for number, path in enumerate([os.devnull, *outputs]):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
if arguments[0] == COMMAND:
    ft_focalsam.cli.main.main(arguments[1:])
else:
    sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).resolve().parent)
    runpy.run_path(arguments[0], run_name="__main__")
