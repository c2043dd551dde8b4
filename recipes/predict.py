"""Classify a folder of pictures, however deep they lie, into a CSV file.

    python recipes/predict.py runs/quickstart path/to/pictures --output predictions.csv
    python recipes/predict.py user/name path/to/pictures --output predictions.csv --top_k 3 --on_bad_image skip

MODEL is a folder or Hub repository of this package or of transformers. Columns: path (in the folder), then label_1,
probability_1, label_2, ... What a spreadsheet would take for a formula (=1+1) begins with an apostrophe.
"""

import argparse
import csv
import sys
from pathlib import Path

from tqdm.auto import tqdm

from ft_focalsam import ImageClassifier
from ft_focalsam.data import BadImageError, find_pictures
from ft_focalsam.evaluation import to_cell
from ft_focalsam.files import opened_aside


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL", help="Folder or Hub repository of a classifier.")
    add("folder", metavar="FOLDER", type=Path, help="Folder of pictures; its sub-folders are looked through, too.")
    add("--output", required=True, type=Path, help="CSV file to write.")
    add("--top_k", type=int, default=5, help="Classes to name for each picture.")
    add("--on_bad_image", choices=("fail", "skip"), default="fail", help="What to do about pictures that are broken.")
    add("--batch_size", type=int, default=32, help="Pictures at a time.")
    add("--num_workers", type=int, default=0, help="Processes that read pictures.")
    add("--revision", help="Branch, tag or commit of the Hub repository.")
    add("--backbone", help="Where the backbone is now, if not under the name it had in training.")
    add("--device", help="Where to run: cpu, cuda, ...; an accelerator by default, where there is one.")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the recipe; returns the number of pictures in the CSV file."""
    args = parse(argv)
    if not args.folder.is_dir():
        raise FileNotFoundError(f"The folder '{args.folder}' does not exist; check the path.")
    pictures = list(map(Path, find_pictures(args.folder)))
    if not pictures:
        raise FileNotFoundError(f"There is no picture in '{args.folder}' (.jpg, .png, .webp, ...); check the path.")
    classify = ImageClassifier.from_pretrained(
        args.model, revision=args.revision, backbone=args.backbone, device=args.device
    )
    top_k = min(args.top_k, len(classify.class_names))
    results = classify.stream(pictures, top_k=top_k, batch_size=args.batch_size, num_workers=args.num_workers)
    written = 0
    with opened_aside(args.output, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        header = [name for rank in range(1, top_k + 1) for name in (f"label_{rank}", f"probability_{rank}")]
        writer.writerow(["path", *header])
        for path, guesses in zip(pictures, tqdm(results, total=len(pictures), unit=" images"), strict=True):
            if isinstance(guesses, BadImageError):
                if args.on_bad_image == "fail":
                    raise guesses
                tqdm.write(f"Skipped: {guesses}", file=sys.stderr)
                continue
            cells = [cell for guess in guesses for cell in (to_cell(guess["label"]), f"{guess['score']:.6f}")]
            writer.writerow([to_cell(path.relative_to(args.folder).as_posix()), *cells])
            written += 1
    skipped = f"; {len(pictures) - written:,} could not be read" if written < len(pictures) else ""
    print(f"{written:,} of {len(pictures):,} pictures are in {args.output}{skipped}.")
    return written


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
