"""The files in accelerate_configs/, as Accelerate reads them; and a start on two machines, here two of the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from running import ENVIRONMENT, ROOT, free_port, python
from sharpness.models import make_model, relative_error

pytestmark = pytest.mark.slow

CONFIGS = {path.stem: path for path in (ROOT / "accelerate_configs").glob("*.yaml")}
# Name -> (how its processes share the work, machines); DDP's processes are those of more than one device.
TOPOLOGIES = {
    "cpu": ("one", 1),
    "multi_cpu": ("ddp", 1),
    "single_gpu": ("one", 1),
    "multi_gpu": ("ddp", 1),
    "multi_node": ("ddp", 2),
    "fsdp2": ("fsdp", 1),
    "deepspeed_zero2": ("deepspeed", 1),
}
RUN = {"tuning": "lora", "max_steps": 3}
TRAIN = str(Path(__file__).with_name("train.py"))


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() | TOPOLOGIES.keys()))
def test_accelerate_reads_a_configuration_as_it_is_meant(name):
    config = load_config_from_file(str(CONFIGS[name]))
    content = yaml.safe_load(CONFIGS[name].read_text())
    assert config.num_processes == content["num_processes"]
    command = launch_command_parser().parse_args(["--config_file", str(CONFIGS[name]), "recipes/finetune.py"])
    args, _, _ = _validate_launch_command(command)
    kinds = {"ddp": args.multi_gpu, "fsdp": args.use_fsdp, "deepspeed": args.use_deepspeed}
    kind, machines = TOPOLOGIES[name]
    assert [other for other, is_on in kinds.items() if is_on] == ([] if kind == "one" else [kind])
    assert (args.num_machines, args.num_processes) == (machines, content["num_processes"])
    assert args.num_processes > machines or name in ("cpu", "single_gpu")
    assert args.use_cpu == ("cpu" in name)
    assert args.mixed_precision == ("no" if args.use_cpu else "bf16")
    if kind == "fsdp":
        assert prepare_multi_gpu_env(args)["FSDP_VERSION"] == "2"
    if kind == "deepspeed":
        assert args.zero_stage == 2


def nodes(launchers, tmp_path, runs):
    """Start a launcher for each of two machines; returns the weights that each process of them ends with."""
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [
        subprocess.Popen([*launcher, TRAIN, str(tmp_path)], cwd=ROOT, env=ENVIRONMENT, **pipes)
        for launcher in launchers
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said[0][-3000:] + said[1][-3000:]
    reports = [json.loads((tmp_path / f"joint {rank}.json").read_text()) for rank in range(2)]
    assert [(report["processes"], report["wrapper"]) for report in reports] == [(2, "DistributedDataParallel")] * 2
    return [torch.load(tmp_path / f"joint {rank}.pt", weights_only=True) for rank in range(2)]


def torchrun(tmp_path, port):
    line = f"torchrun --nnodes 2 --nproc_per_node 1 --rdzv_backend c10d --rdzv_endpoint localhost:{port}"
    command = [sys.executable, "-m", "torch.distributed.run", *line.split()[1:], "--local_addr", "localhost"]
    return [command, command]


def accelerate(tmp_path, port):
    """multi_node.yaml with one process on the CPU of each machine."""
    config = yaml.safe_load(CONFIGS["multi_node"].read_text())
    config |= {"use_cpu": True, "mixed_precision": "no", "num_processes": 2}
    (tmp_path / "nodes.yaml").write_text(yaml.safe_dump(config))
    line = (
        f"accelerate launch --config_file {tmp_path}/nodes.yaml --main_process_ip localhost --main_process_port {port}"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", *line.split()[2:]]
    return [[*command, "--machine_rank", str(rank)] for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Weights of one process with batches of the same images."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "runs.json").write_text(json.dumps({"alone": {**RUN, "per_device_train_batch_size": 10}}))
    result = python(TRAIN, folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(folder / "alone 0.pt", weights_only=True)


@pytest.mark.parametrize("launcher", [torchrun, accelerate])
def test_two_machines_train_to_the_weights_of_one(launcher, alone, tmp_path):
    """The last of three batches has images for one of the machines only."""
    runs = {"joint": {**RUN, "per_device_train_batch_size": 5}}
    start = make_model("dinov2", "lora").state_dict()
    change = {name: value - start[name] for name, value in alone.items()}
    for weights in nodes(launcher(tmp_path, free_port()), tmp_path, runs):
        assert relative_error({name: weights[name] - start[name] for name in weights}, change) <= 1e-10
