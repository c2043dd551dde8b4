"""`ft-focalsam train_from_scratch`, for accelerate launch.

accelerate launch recipes/train_from_scratch.py recipes/configs/cifar100_lt/resnet32.yaml --sharpness sam
"""

import sys

from ft_focalsam.cli.main import run_command

if __name__ == "__main__":
    run_command("train_from_scratch", sys.argv[1:])
