"""The recipe `finetune.py` where FSDP2 shards on a CPU, which it is told in the environment to do."""

import os
import sys

from distributed.sharded import sharding
from finetune import main

from ft_focalsam import FocalSAMTrainer

main(trainer_type=sharding(FocalSAMTrainer))
sys.stdout.flush()
os._exit(0)  # past torch's own clean-up, as train.py does
