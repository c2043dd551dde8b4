"""Export a fine-tuned classifier for programs that do not have this package.

    ft-focalsam export runs/quickstart --format onnx --output exported

The folder is one that ft-focalsam train wrote. The formats:

  transformers  an image classifier for pipeline("image-classification"); the head must be linear
  open_clip     both towers for open_clip.create_model_and_transforms, and the class vectors of the head
  onnx          a graph from images to logits, of any head and any tuning

What is written is compared with the classifier; nothing is left behind that gives other logits.
"""

import argparse

from ..base.files import check_is_free
from ..export import FORMATS
from ..models import LongTailClassifier
from .parsers import command_parser

USE = {
    "transformers": 'pipeline("image-classification", model="{output}")',
    "open_clip": "the lines in {output}/README.md",
    "onnx": 'onnxruntime.InferenceSession("{output}/model.onnx"); labels and preprocessing are in {output}/model.json',
}


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("export", __doc__)
    parser.add_argument("folder", help="Folder of the classifier, or its repository on the Hub.")
    parser.add_argument("--format", required=True, choices=FORMATS, help="What to write.")
    parser.add_argument("--output", required=True, help="Folder to make; it must not exist, or be empty.")
    parser.add_argument("--backbone", help="Where the backbone is now, if not under the name it had in training.")
    parser.add_argument("--revision", help="Branch, tag or commit of the Hub repository.")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = make_parser().parse_args(argv)
    check_is_free(args.output)
    model = LongTailClassifier.from_pretrained(args.folder, backbone=args.backbone, revision=args.revision)
    FORMATS[args.format](model, args.output)
    print(f"The classifier is in {args.output}. To use it: {USE[args.format].format(output=args.output)}")
