"""The command `ft-focalsam`: imports a sub-command, and torch with it, when the keys on the command line are known.

`python -m ft_focalsam` is the same, for `accelerate launch -m ft_focalsam train ...`.
"""

import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from ..base.errors import nearest, told_in_one_sentence

# Title of a group -> command -> (its file in this folder, what it does). A new command is one entry here and a file
# with `make_parser()` and `main(argv)`.
COMMANDS = {
    "Look and train": {
        "inspect": ("inspect", "look at a data set: images per class, broken images, duplicates"),
        "train": ("train", "fine-tune on a folder of images, or as a configuration says"),
        "train_from_scratch": ("train_from_scratch", "train a network from random weights"),
        "compare": ("compare", "compare methods over several seeds"),
        "search": ("search", "search rho, gamma and lambda on held-out images"),
        "config": ("configs", "list and show the configurations that ship with the package"),
    },
    "Improve what was trained": {
        "retrain": ("retrain", "retrain or rescale the head, the backbone frozen"),
        "soup": ("soup", "average the weights of several runs or checkpoints"),
        "lt_soups": ("lt_soups", "train and average on subsets of growing imbalance"),
        "wise_ft": ("wise_ft", "interpolate between the weights before and after training"),
    },
    "Use it": {
        "evaluate": ("evaluate", "evaluate a classifier on test sets, with intervals and a report"),
        "analyse": ("analyse", "measure how sharp the loss is, per class"),
        "predict": ("predict", "classify a folder of images into a CSV file"),
        "export": ("export", "write it for transformers, open_clip or ONNX"),
        "push": ("push", "publish it on the Hugging Face Hub"),
    },
}
FILES = {name: file for commands in COMMANDS.values() for name, (file, _) in commands.items()}


def describe_commands() -> str:
    """What `ft-focalsam --help` prints."""
    width = max(map(len, FILES)) + 2
    lines = ["Fine-tune vision foundation models on long-tailed images with Focal-SAM.", ""]
    lines += ["usage: ft-focalsam COMMAND ...", "       ft-focalsam COMMAND --help", ""]
    for title, commands in COMMANDS.items():
        lines += [title, *(f"  {name:{width}}{what}" for name, (_, what) in commands.items()), ""]
    lines += ["Begin with a folder that has one sub-folder per class:", "", "  ft-focalsam inspect path/to/images"]
    lines += ["  ft-focalsam train path/to/images", "", "Without images of your own: ft-focalsam train quickstart"]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line, or that of the running script."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(describe_commands())
    elif argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(version("ft_focalsam"))
    else:
        run_command(argv[0].replace("-", "_"), argv[1:])


def run_command(name: str, argv: Sequence[str]) -> None:
    """Run one sub-command; what the user asked for and cannot be done ends the process with one sentence."""
    from .key_index import check_command_line, help_asked_for

    with told_in_one_sentence():
        if name not in FILES:
            like = "".join(f" Did you mean '{each}'?" for each in nearest(name, FILES))
            raise ValueError(f"There is no command '{name}'; ft-focalsam --help lists them.{like}")
        text = help_asked_for(name, argv)
        if text is not None:
            print(text)
            return
        argv = check_command_line(name, argv)
    run(lambda: import_module(f".{FILES[name]}", __package__).main(argv))


def run(function: Callable[[], object]) -> None:
    """Run the main function of a script that may train, and let it end as users expect: on an error with one sentence,
    at SIGTERM with 143."""
    try:
        with told_in_one_sentence():
            function()
    except SystemExit as end:
        if end.code == 128 + signal.SIGTERM:  # on all processes
            leave_process_group()
        raise
    leave_process_group()


def leave_process_group() -> None:
    """End what joins this process with others, where something was begun."""
    if "accelerate" in sys.modules:
        sys.modules["accelerate"].PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
