"""`ft-focalsam train` where FSDP2 shards on a CPU, which it is told in the environment to do."""

import os
import sys

from distributed.sharded import sharding

from ft_focalsam import FocalSAMTrainer
from ft_focalsam.cli.train import main

main(trainer_type=sharding(FocalSAMTrainer))
sys.stdout.flush()
os._exit(0)  # past torch's own clean-up, as train.py does
