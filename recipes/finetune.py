"""`ft-focalsam train`, for accelerate launch.

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/finetune.py recipes/configs/quickstart.yaml
"""

import sys

from ft_focalsam.cli.main import run_command

if __name__ == "__main__":
    run_command("train", sys.argv[1:])
