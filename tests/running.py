"""Recipes and other scripts as processes of their own, as users start them."""

import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = "recipes/configs/quickstart.yaml"
FOLDERS = (".", "tests", "tests/trainer")
PATHS = [*(str(ROOT / folder) for folder in FOLDERS), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PIPES = ("stdout", "stderr")


def run(command):
    """A command, from nothing."""
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


def python(script, *arguments):
    """What `run([sys.executable, script, *arguments])` gives, without the time that the imports take."""
    (result,) = processes([{}], script, *arguments)
    return result


def processes(environments, script, *arguments):
    """The same of several processes at once, one for each of what is new in the environment of it."""
    arguments = [str(argument) for argument in (script, *arguments)]
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        paths = [[os.path.join(folder, f"{name} {i}") for name in PIPES] for i in range(len(environments))]
        started = [[environment, *own] for environment, own in zip(environments, paths, strict=True)]
        print(json.dumps([arguments, *started]), file=server.stdin, flush=True)
        codes = json.loads(server.stdout.readline())
        said = [[Path(path).read_text(encoding="utf-8") for path in own] for own in paths]
    return [subprocess.CompletedProcess(arguments, code, *own) for code, own in zip(codes, said, strict=True)]


def ranks(count, **further):
    """Environments of processes that work together, as launchers set them, for `processes`."""
    together = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": str(count), **further}
    return [{**together, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return str(probe.getsockname()[1])


def finetune(*overrides, config=QUICKSTART):
    return python("recipes/finetune.py", config, *overrides)


@functools.cache
def _server():
    command = [sys.executable, str(Path(__file__).with_name("forking.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, text=True, **pipes)
