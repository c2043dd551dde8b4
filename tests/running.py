"""Recipes as processes of their own, as users start them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = "recipes/configs/quickstart.yaml"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(command, **options):
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, **options)


def finetune(*overrides, config=QUICKSTART):
    return run([sys.executable, "recipes/finetune.py", config, *map(str, overrides)])
