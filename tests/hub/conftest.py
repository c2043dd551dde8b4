"""One Hub, one client, one trained run for all tests of pushing and loading."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import HubServer
from running import QUICKSTART, ROOT

from ft_focalsam.data import load_image_data

TOKEN, OTHER_TOKEN, READ_TOKEN = "hf_AliceWritesWithThis", "hf_BobWritesWithThis", "hf_AliceReadsWithThis"
TOKENS = {TOKEN: ("alice", "write"), OTHER_TOKEN: ("bob", "write"), READ_TOKEN: ("alice", "read")}
SHORT = ("--max_steps", "3", "--save_strategy", "no", "--logging_steps", "1", "--max_test_per_class", "10")


class Client:
    """Jobs for `client.py`; what they print is kept, to be looked through for tokens."""

    def __init__(self, folder: Path, url: str):
        self.folder, self.cache, self.said = folder, folder / "cache", []
        self.environment = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        self.environment |= {"HF_HOME": str(folder / "home"), "HF_HUB_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}
        self.environment |= {"HF_HUB_DISABLE_TELEMETRY": "1"}
        self.environment.pop("HF_TOKEN", None)
        command = [sys.executable, str(Path(__file__).with_name("client.py"))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=self.environment, **pipes)

    def __call__(self, *argv, code: str | None = None, token: str = TOKEN) -> SimpleNamespace:
        """Run a recipe, or lines of Python; without a token for an empty one."""
        job = {"argv": [str(word) for word in argv]} if code is None else {"code": code}
        job |= {"environment": {"HF_TOKEN": token} if token else {}, "output": str(self.folder / "output")}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        output = Path(job["output"]).read_text(encoding="utf-8")
        self.said.append(output)
        return SimpleNamespace(status=status, output=output, last=(output.strip().splitlines() or [""])[-1])

    def forget(self) -> None:
        """Wipe the cache."""
        shutil.rmtree(self.cache, ignore_errors=True)


@pytest.fixture(scope="session")
def hub():
    server = HubServer(TOKENS)
    yield server
    server.shutdown()


@pytest.fixture(scope="session")
def client(hub, tmp_path_factory):
    client = Client(tmp_path_factory.mktemp("client"), hub.url)
    yield client
    client.process.stdin.close()
    client.process.wait()


@pytest.fixture(scope="session")
def pushed(hub, client, tmp_path_factory):
    """A short run of the quickstart with `--push_to_hub true`: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    options = (
        "--output_dir",
        folder,
        "--push_to_hub",
        "true",
        "--hub_model_id",
        "alice/trained",
        "--hub_token",
        TOKEN,
    )
    result = client("recipes/finetune.py", QUICKSTART, *SHORT, *options, "--hub_private_repo", "true", token="")
    assert result.status == 0, result.output[-3000:]
    return SimpleNamespace(folder=folder, output=result.output)


@pytest.fixture(scope="session")
def images():
    """Eight test digits."""
    return [load_image_data("digits").test[row]["image"] for row in range(0, 480, 60)]


@pytest.fixture
def folder(pushed, tmp_path):
    """A copy of the folder of that run, as before any push."""
    shutil.copytree(pushed.folder, tmp_path / "digits")
    (tmp_path / "digits" / "README.md").unlink()
    return tmp_path / "digits"
