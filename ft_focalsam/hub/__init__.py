"""A run on the Hugging Face Hub: what is told about it, which of its files go there, and how.

`run_file.py` notes what a run was, `card.py` makes the model card of a folder from that, `files.py` says what may be
uploaded, `push.py` uploads it, `trainer_push.py` is the Trainer's side, and `space.py` makes a demo.
"""

from .card import make_card, write_card
from .files import files_to_push
from .push import check_push, push_folder
from .run_file import describe_run, read_run, write_run
from .space import push_space
from .trainer_push import HubPushing

__all__ = [
    "HubPushing",
    "check_push",
    "describe_run",
    "files_to_push",
    "make_card",
    "push_folder",
    "push_space",
    "read_run",
    "write_card",
    "write_run",
]
