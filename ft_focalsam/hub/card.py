"""The model card of a folder: every number from its metrics.json, everything else from its other files."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data.long_tail import frequency_groups
from ..errors import printable
from ..evaluation.report.formats import format_interval, format_percent
from ..evaluation.report.markdown import escape_markdown
from ..evaluation.report.method_names import (
    declared,
    describe_length,
    describe_values,
    method_hyperparameters,
    method_title,
)
from ..evaluation.report.tables import distinct_notes
from ..losses import LOSSES
from ..models import HEADS
from ..models.backbones import is_pretrained
from ..sharpness import DIRECTIONS, EVALUATIONS, SHARPNESS_METHODS, TARGETS
from ..sharpness.hyperparameters import hyperparameters_of
from .run_file import base_model, hub_id, read_json, read_run, settings_yaml

CARD_NAME = "README.md"
MADE_HERE = "<!-- Made by ft_focalsam from the files of this repository; one without this line is left as it is. -->"
DEFAULT_LICENSE = "apache-2.0"
COLUMNS = {
    "accuracy": "overall (top-1)",
    "mean_class_accuracy": "mean per class",
    "many": "many-shot",
    "medium": "medium-shot",
    "few": "few-shot",
}
# Schedules of rho other than constant, and the arguments that each reads.
SCHEDULES = {"linear": ("rho_initial",), "step": ("rho_initial", "rho_step_at")}
CITATION = """\
@inproceedings{li2025focalsam,
  title     = {Focal-{SAM}: Focal Sharpness-Aware Minimization for Long-Tailed Classification},
  author    = {Li, Sicong and Xu, Qianqian and Yang, Zhiyong and Wang, Zitai and Zhang, Linchao and Cao, Xiaochun and
               Huang, Qingming},
  booktitle = {International Conference on Machine Learning},
  year      = {2025},
  url       = {https://arxiv.org/abs/2505.01660}
}"""


def write_card(
    folder: str | os.PathLike, *, repo_id: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Path:
    """Write the card of a folder to its README.md; one that somebody else wrote is left as it is.

    Args:
        folder, repo_id, overrides: As in [`make_card`].

    Returns:
        `Path`: Of the README.md.
    """
    path = Path(folder, CARD_NAME)
    if not path.exists() or MADE_HERE in path.read_text(encoding="utf-8"):
        make_card(folder, repo_id=repo_id, overrides=overrides).save(path)
    return path


def make_card(
    folder: str | os.PathLike, *, repo_id: str | None = None, overrides: Mapping[str, Any] | None = None
) -> ModelCard:
    """The model card of a folder that a run wrote.

    Args:
        folder (`str` or path): With config.json, metrics.json and run.json; what is missing, the card does not say.
        repo_id (`str`, *optional*): Repository that the lines of Python load from; by default the folder.
        overrides (mapping, *optional*): Metadata that is not to be what the files say: "license", "language", "tags",
            "base_model", "datasets", "pipeline_tag", "model_name".

    Raises:
        ValueError: If a file is no JSON object.
    """
    folder = Path(folder)
    run, config = read_run(folder), read_json(folder / "config.json")
    metrics, adapter = read_json(folder / "metrics.json"), read_json(folder / "adapter_config.json")
    title = (repo_id or folder.resolve().name).rpartition("/")[2]
    backbone = config.get("backbone") or adapter.get("base_model_name_or_path") or run["model"].get("base_model") or ""
    data = {
        "model_name": title,
        "license": DEFAULT_LICENSE,
        "library_name": "ft_focalsam",
        "pipeline_tag": "image-classification",
        "base_model": run["model"].get("base_model") if run["model"] else base_model(backbone),
        "datasets": run["data"].get("hub_id"),
        "tags": ["image-classification", "long-tailed", "focal-sam", *(["peft"] if adapter else [])],
    }
    data |= {name: value for name, value in (overrides or {}).items() if value is not None}
    data["eval_results"] = list(_results(metrics, run["data"])) or None
    if data["eval_results"] is None:
        data.pop("model_name")
    sections = [
        f"# {escape_markdown(title)}\n\n{MADE_HERE}",
        *_introduction(run, config),
        *_about_method(run["method"]),
        *_about_data(run["data"], metrics),
        *_about_model(run["model"], config, adapter, backbone=backbone),
        *_about_results(folder, metrics),
        *_use(repo_id or folder.as_posix(), config, adapter, backbone=backbone),
        *_reproduce(run),
        *_license(data["license"], backbone),
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    metadata = ModelCardData(**{name: value for name, value in data.items() if value is not None})
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _results(metrics: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[EvalResult]:
    """What the last row of metrics.json says, for the model-index."""
    if not metrics:
        return
    name = data.get("name") or "the run's own test images"
    for metric, title in COLUMNS.items():
        value = list(metrics.values())[-1].get(metric)
        if value is not None:
            yield EvalResult(
                task_type="image-classification",
                dataset_type=data.get("hub_id") or re.sub(r"\W+", "-", name).strip("-").lower() or "unnamed",
                dataset_name=name,
                dataset_split="test",
                metric_type="accuracy",
                metric_value=value,
                metric_name=f"Accuracy, {title}",
            )


def _introduction(run: dict, config: dict) -> Iterator[str]:
    classes = len(config.get("id2label") or ())
    what = f"An image classifier for {classes:,} classes" if classes else "A model"
    name = run["method"].get("sharpness")
    method = method_title(name) if name in SHARPNESS_METHODS else ""
    trained = "fine-tuned" if is_pretrained(config.get("backbone") or "") else "trained from scratch"
    by = f", {trained} on long-tailed images{f' by {method}' if method else ''} with ft_focalsam"
    yield f"{what}{by}."


def _about_method(method: Mapping[str, Any]) -> Iterator[str]:
    if not method:
        return
    name = method["sharpness"]
    values = describe_values(method, method_hyperparameters(name))
    paper = " ([paper](https://arxiv.org/abs/2505.01660))" if name == "focal_sam" else ""
    lines = [f"- **{escape_markdown(method_title(name))}**{paper}{f': {values}' if values else ''}"]
    if name != "none":
        lines += _about_perturbation(method)
    loss, sampler = escape_markdown(method["loss"]), escape_markdown(method["train_sampler"])
    values = describe_values(method, declared(LOSSES, method["loss"]))
    loss += f" ({values})" if values else ""
    lines.append(f"- loss: {loss}; sampler: {sampler}; {describe_length(method)}; seed {method['seed']}")
    yield "## Method\n\n" + "\n".join(lines)


def _about_perturbation(method: Mapping[str, Any]) -> Iterator[str]:
    """A line for each choice that is not the default; run files of earlier versions have fewer choices."""
    if method["adaptive_rho"]:
        yield "- adaptive: ρ is relative to each weight (ASAM)"
    schedule, ascent = method.get("rho_schedule"), method.get("ascent")
    if schedule in SCHEDULES:
        values = [f"{key} = {method[key]:g}" for key in SCHEDULES[schedule]]
        yield "- schedule of ρ: " + ", ".join([schedule, *values])
    if method.get("perturb") in TARGETS.keys() - {"trained"}:
        yield f"- perturbed: {method['perturb']}"
    if ascent in DIRECTIONS.keys() - {"gradient"}:
        values = describe_values(method, declared(DIRECTIONS, ascent))
        yield "- direction: " + ", ".join(filter(None, (ascent, values)))
    if method.get("evaluation") in EVALUATIONS.keys() - {"two_point"}:
        yield f"- evaluation: {method['evaluation']}"
    if method.get("ascent_interval", 1) > 1:
        yield f"- perturbed in one step of {method['ascent_interval']}"
    if method["perturbation_scope"] != "global":
        yield "- each process and micro-batch perturbed by its own gradient (local)"


def _about_data(data: Mapping[str, Any], metrics: Mapping[str, Any]) -> Iterator[str]:
    if not data or not data.get("class_counts"):
        return
    counts = np.array(data["class_counts"])
    many, few = data["many_shot_threshold"], data["few_shot_threshold"]
    ranges = {"many": f"> {many}", "medium": f"{few} to {many}", "few": f"< {few}"}
    own = escape_markdown(data["name"] or "A data set of the author's")
    name = _hub_link(data["hub_id"], "datasets/") if data["hub_id"] else own
    cut = f", cut to an imbalance factor of {data['imbalance_factor']:g}" if data["imbalance_factor"] else ""
    text = (
        f"{name}{cut}: {counts.sum():,} training images of {len(counts):,} classes, from {counts.max():,} to "
        f"{counts.min():,} a class (imbalance factor {counts.max() / counts.min():.1f})"
    )
    images = next((row["images"] for row in metrics.values() if "images" in row), None)
    rows = ["| classes | images a class | number of classes | training images |", "|---|---|---:|---:|"]
    for group, classes in frequency_groups(counts, many=many, few=few).items():
        rows.append(f"| {group}-shot | {ranges[group]} | {len(classes):,} | {counts[classes].sum():,} |")
    yield "## Data\n\n" + text + (f"; tested on {images:,} images.\n\n" if images else ".\n\n") + "\n".join(rows)


def _about_model(
    model: Mapping[str, Any], config: Mapping[str, Any], adapter: Mapping[str, Any], *, backbone: str
) -> Iterator[str]:
    lines = []
    if backbone:
        lines.append(f"- backbone: {_backbone_name(backbone, model.get('base_model') or base_model(backbone))}")
    inserted = [str(name) for name in config.get("inserted") or ()]
    ways = model.get("tuning") or ",".join([*([adapter["peft_type"].lower()] if adapter else []), *inserted])
    if ways:
        size = f", rank {adapter['r']}, alpha {adapter['lora_alpha']:g}" if adapter.get("peft_type") == "LORA" else ""
        known = ("lora_rank", "lora_alpha") if size else ()
        options = [
            f", {name} = {escape_markdown(str(value))}"
            for name, value in (model.get("tuning_options") or {}).items()
            if name not in known
        ]
        lines.append(f"- tuned by: {escape_markdown(ways)}{size}{''.join(options)}")
    if "head" in config:
        scale = "" if config["head"] == "linear" else f", scale {config['head_scale']:g}"
        options = _head_options(config)
        lines.append(f"- head: {escape_markdown(config['head'])}{scale}{f', {options}' if options else ''}")
    if model:
        trained, total = model["trained_parameters"], model["parameters"]
        lines.append(f"- trained parameters: {trained:,} of {total:,} ({trained / total:.2%})")
    if lines:
        yield "## Model\n\n" + "\n".join(lines)


def _head_options(config: Mapping[str, Any]) -> str:
    known = hyperparameters_of(HEADS[config["head"]]) if config["head"] in HEADS else {}
    values = {known[name].argument: v for name, v in (config.get("head_options") or {}).items() if name in known}
    return describe_values(values, known.values())


def _backbone_name(backbone: str, repository: str | None) -> str:
    if repository:
        return _hub_link(repository)
    if backbone == "tiny_clip":
        return "tiny_clip, the toy-sized CLIP that ships with ft_focalsam"
    return (
        f"{escape_markdown(Path(backbone).name)}, a folder of the author's"
        if _is_path(backbone)
        else escape_markdown(backbone)
    )


def _is_path(backbone: str) -> bool:
    """Whether a backbone is in a folder, which others do not have."""
    is_named = backbone == "tiny_clip" or ":" in backbone
    return not is_named and hub_id(backbone) is None and ("/" in backbone or Path(backbone).exists())


def _about_results(folder: Path, metrics: Mapping[str, Any]) -> Iterator[str]:
    columns = {name: title for name, title in COLUMNS.items() if any(name in row for row in metrics.values())}
    if not columns:
        return
    rows = ["| % | " + " | ".join(columns.values()) + " |", "|---|" + "---:|" * len(columns)]
    for name, row in metrics.items():
        cells = [_cell(row.get(metric), row.get("intervals", {}).get(metric)) for metric in columns]
        rows.append(f"| {escape_markdown(name)} | " + " | ".join(cells) + " |")
    images = list(metrics.values())[-1]
    if "group_images" in images:
        counts = {**dict.fromkeys(columns, images["images"]), **images["group_images"]}
        rows.append("| test images | " + " | ".join(f"{counts[metric]:,}" for metric in columns) + " |")
    text = "## Results\n\n" + "\n".join(rows)
    if any(row.get("intervals") for row in metrics.values()):
        text += (
            "\n\nIn parentheses: 95 % intervals. They say what other test images would change, not what another "
            "training would."
        )
    for note in distinct_notes({name: row.get("notes", ()) for name, row in metrics.items()}):
        text += f"\n\n{escape_markdown(note)}"
    if (folder / "accuracy_by_frequency.png").is_file():
        text += "\n\n![Accuracy of each class over its number of training images](accuracy_by_frequency.png)"
    files = {"metrics.json": "all metrics", "per_class.csv": "every class", "report.md": "the report"}
    named = [f"[{title}]({name})" for name, title in files.items() if (folder / name).is_file()]
    yield text + f"\n\nMore: {', '.join(named)}."


def _cell(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "–"
    return format_percent(value) + (f" ({format_interval(interval)})" if interval else "")


def _code(text: str, language: str) -> str:
    """A block of code; its fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    lines = "\n".join(map(printable, text.rstrip().split("\n")))
    return f"{fence}{language}\n{lines}\n{fence}"


def _literal(text: str) -> str:
    """A string of Python on one line."""
    return printable(json.dumps(text, ensure_ascii=False))


def _hub_link(repository: str, kind: str = "") -> str:
    return f"[{escape_markdown(repository)}](https://huggingface.co/{kind}{quote(repository)})"


def _use(name: str, config: Mapping[str, Any], adapter: Mapping[str, Any], *, backbone: str) -> Iterator[str]:
    """Lines that run as they are, where the backbone is not in a folder that the reader has to name."""
    source = f"path/to/{Path(backbone).name}" if _is_path(backbone) else backbone
    if config.get("id2label"):
        place = f", backbone={_literal(source)}" if source != backbone else ""
        code = f"""\
from PIL import Image

from ft_focalsam import ImageClassifier

classify = ImageClassifier.from_pretrained({_literal(name)}{place})
picture = Image.new("RGB", (224, 224), "white")  # or the path of a picture, or a list of them
for guess in classify(picture, top_k=5):
    print(f"{{guess['score']:.3f}}  {{guess['label']}}")

model = classify.model  # pixel_values -> logits"""
        yield "## Use\n\n" + _code(code, "python")
    if adapter and config.get("model_type") == "long_tail_classifier":
        choices = {"dtype": config["backbone_dtype"], "features": config["backbone_features"]}
        choices = {key: value for key, value in choices.items() if value not in (None, "float32")}
        choices |= {"image_size": config["image_size"]} if config["image_size"] is not None else {}
        options = "".join(
            f", {key}={_literal(value) if isinstance(value, str) else repr(value)}" for key, value in choices.items()
        )
        code = f"""\
from peft import PeftModel

from ft_focalsam.models import load_backbone

backbone = PeftModel.from_pretrained(load_backbone({_literal(source)}{options}), {_literal(name)})"""
        yield "The adapter alone, without the head, is in the format of peft:\n\n" + _code(code, "python")


def _reproduce(run: Mapping[str, Any]) -> Iterator[str]:
    if not run["versions"]:
        return
    versions = escape_markdown(", ".join(f"{name} {number}" for name, number in run["versions"].items()))
    text = f"## Reproduce\n\nTrained with {versions}."
    if run["command"]:
        text += f" In a checkout of ft_focalsam:\n\n{_code(run['command'], 'bash')}"
    if run["settings"]:
        use = "A file of these lines in the place of the one above does the same" if run["command"] else "As YAML"
        settings = f"{use}:\n\n{_code(settings_yaml(run['settings']), 'yaml')}"
        title = "<summary>Settings that differ from the defaults</summary>"
        text += f"\n\n<details>{title}\n\n{settings}\n\n</details>"
    yield text


def _license(license: str | list[str], backbone: str) -> Iterator[str]:
    keeps = "; the backbone keeps its own" if backbone and is_pretrained(backbone) else ""
    names = escape_markdown(license if isinstance(license, str) else ", ".join(license))
    yield f"## License\n\n{names}, of what was trained{keeps}."
