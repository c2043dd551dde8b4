"""Runs commands, scripts and lines of Python with a Hub of its own, each in a process of its own.

The package takes seconds to import, and where the Hub is is read then; so this process imports it once, with
HF_ENDPOINT set, and forks for each job that comes in as a line of JSON: {"argv": [...]} or {"code": "..."}, with
"environment" and "output", the file that both streams go to. Answers with the exit status.
"""

import json
import os
import runpy
import sys
import traceback

import ft_focalsam.hub.push
import ft_focalsam.models.loading  # noqa: F401
from ft_focalsam.cli.main import main


def work(job: dict) -> None:
    handle = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(job["environment"])
    if "code" in job:
        exec(compile(job["code"], "<code>", "exec"), {"__name__": "__main__"})
    elif job["argv"][0] == "ft-focalsam":
        main(job["argv"][1:])
    else:
        sys.argv = job["argv"]
        runpy.run_path(job["argv"][0], run_name="__main__")


def run(job: dict) -> int:
    """In the child: what the interpreter does at the end of a program."""
    try:
        work(job)
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(run(json.loads(line)))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
