"""Publish a saved model on the Hugging Face Hub, with a card made of its own files.

    ft-focalsam push runs/quickstart user/name
    ft-focalsam push runs/quickstart user/name --private --revision experiment
    ft-focalsam push runs/quickstart user/name --space user/demo

The folder is one that ft-focalsam train wrote. What goes there: adapter and head (safetensors only), configuration,
preprocessing, metrics, the report and README.md; not the Trainer's checkpoints. The report shows images of the test
set: remove report* from the folder where these are not to be seen. Log in by `hf auth login`, or set HF_TOKEN. A push
that was cut off is run again by the same command, and sends only what is missing.
"""

import argparse

from ..hub import check_push, push_folder, push_space
from ..hub.card import DEFAULT_LICENSE
from .parsers import command_parser


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("push", __doc__)
    parser.add_argument("folder", metavar="FOLDER", help="Folder of the model.")
    parser.add_argument("repo_id", metavar="REPO", help="user/name; the repository is made where it does not exist.")
    parser.add_argument("--private", action="store_true", default=None, help="Make it a private one.")
    parser.add_argument("--revision", help="Branch to push to, made where it does not exist; main by default.")
    parser.add_argument("--license", default=DEFAULT_LICENSE, help="Of the model, by its name on the Hub.")
    parser.add_argument("--space", metavar="SPACE", help="user/name of a demo (gradio) to publish, too.")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = make_parser().parse_args(argv)
    if args.space:
        check_push(args.space)
        if "/" not in args.repo_id:
            raise ValueError(f"The demo has to load '{args.repo_id}'; give it with its namespace, user/name.")
    overrides = {"license": args.license}
    url = push_folder(args.folder, args.repo_id, private=args.private, revision=args.revision, overrides=overrides)
    print(f"'{args.folder}' is on the Hub: {url}")
    if args.space:
        url = push_space(args.repo_id, space_id=args.space, private=args.private)
        secret = "; give it a token that may read the model as its secret HF_TOKEN" if args.private else ""
        print(f"Its demo is at {url}{secret}.")
