"""Recipes and other scripts as processes of their own, as users start them."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = "recipes/configs/quickstart.yaml"
PATHS = [*(str(ROOT / folder) for folder in (".", "tests", "recipes")), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(command):
    """A command, from nothing."""
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


def python(script, *arguments):
    """What `run([sys.executable, script, *arguments])` gives, without the time that the imports take."""
    arguments = [str(argument) for argument in (script, *arguments)]
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        print(json.dumps([arguments, *paths]), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        output, errors = (Path(path).read_text(encoding="utf-8") for path in paths)
    return subprocess.CompletedProcess(arguments, code, output, errors)


def finetune(*overrides, config=QUICKSTART):
    return python("recipes/finetune.py", config, *overrides)


@functools.cache
def _server():
    command = [sys.executable, str(Path(__file__).with_name("forking.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, text=True, **pipes)
