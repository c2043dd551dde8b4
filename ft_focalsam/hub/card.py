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

from ..base.errors import printable
from ..data.long_tail import frequency_groups
from ..evaluation.report.formats import format_interval, format_percent
from ..evaluation.report.markdown import escape_markdown
from ..evaluation.report.method_names import (
    declared,
    describe_length,
    describe_values,
    describe_weights_schedule,
    method_hyperparameters,
    method_title,
)
from ..evaluation.report.tables import distinct_notes
from ..losses import LOSSES
from ..models import HEADS
from ..models.backbones import is_pretrained
from ..models.classifier_config import MULTI_LABEL
from ..sharpness import DIRECTIONS, EVALUATIONS, SCHEDULES, SHARPNESS_METHODS, TARGETS
from ..sharpness.hyperparameters import hyperparameters_of
from .run_file import base_model, hub_id, read_json, read_run, settings_yaml

CARD_NAME = "README.md"
MADE_HERE = "<!-- Made by ft_focalsam from the files of this repository; one without this line is left as it is. -->"
DEFAULT_LICENSE = "apache-2.0"
COLUMNS = {
    "mAP": "mAP",
    "accuracy": "overall (top-1)",
    "mean_class_accuracy": "mean per class",
    "many": "many-shot",
    "medium": "medium-shot",
    "few": "few-shot",
}
PLOTS = [
    {"file": f"{score.lower().replace(' ', '_')}_by_frequency.png", "score": score}
    for score in ("Accuracy", "Average precision")
]
TEMPLATE = Path(__file__).with_name("card.md.jinja")


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
        "tags": [
            *("image-classification", "long-tailed", "focal-sam"),
            *(["multi-label"] if config.get("problem_type") == MULTI_LABEL else []),
            *(["peft"] if adapter else []),
        ],
    }
    data |= {name: value for name, value in (overrides or {}).items() if value is not None}
    data["eval_results"] = list(_eval_results(metrics, run["data"])) or None
    if data["eval_results"] is None:
        data.pop("model_name")
    name = repo_id or folder.as_posix()
    return ModelCard.from_template(
        ModelCardData(**{name: value for name, value in data.items() if value is not None}),
        template_path=str(TEMPLATE),
        made_here=MADE_HERE,
        fenced=_fenced,
        title=escape_markdown(title),
        method=_method(run["method"]),
        data=_data(run["data"], metrics),
        model=_model(run["model"], config, adapter, backbone=backbone),
        results=_results(folder, metrics),
        use=_use(name, config, adapter, backbone=backbone),
        run=_run(run),
        license=escape_markdown(", ".join(np.atleast_1d(data["license"]))),
    )


def _eval_results(metrics: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[EvalResult]:
    """What the last row of metrics.json says, for the model-index."""
    if not metrics:
        return
    name = data.get("name") or "the run's own test images"
    is_multi_label = "mAP" in list(metrics.values())[-1]
    for metric, title in COLUMNS.items():
        value = list(metrics.values())[-1].get(metric)
        if value is not None:
            yield EvalResult(
                task_type="image-classification",
                dataset_type=data.get("hub_id") or re.sub(r"\W+", "-", name).strip("-").lower() or "unnamed",
                dataset_name=name,
                dataset_split="test",
                metric_type="mean_average_precision" if is_multi_label else "accuracy",
                metric_value=value,
                metric_name=f"{'Mean average precision' if is_multi_label else 'Accuracy'}, {title}",
            )


# What the template of the card is filled with. All text is Markdown already: what others wrote is escaped here.


def _method(method: Mapping[str, Any]) -> dict[str, Any]:
    if not method:
        return {}
    name, loss = method["sharpness"], method["loss"]
    values = describe_values(method, declared(LOSSES, loss))
    return {
        "family": method_title(name) if name in SHARPNESS_METHODS else "",
        "title": escape_markdown(method_title(name)),
        "paper": " ([paper](https://arxiv.org/abs/2505.01660))" if name == "focal_sam" else "",
        "hyperparameters": describe_values(method, method_hyperparameters(name)),
        "perturbation": [] if name == "none" else list(_perturbation(method)),
        "loss": escape_markdown(loss) + (f" ({values})" if values else ""),
        "sampler": escape_markdown(method["train_sampler"]),
        "length": describe_length(method),
        "seed": method["seed"],
    }


def _perturbation(method: Mapping[str, Any]) -> Iterator[str]:
    """A line for each choice that is not the default; run files of earlier versions have fewer choices."""
    if method["adaptive_rho"]:
        yield "adaptive: ρ is relative to each weight (ASAM)"
    schedule, ascent = method.get("rho_schedule"), method.get("ascent")
    if schedule in SCHEDULES.keys() - {"constant"}:
        keys = ("rho_initial", "rho_step_at") if schedule == "step" else ("rho_initial",)
        values = [f"{key} = {method[key]:g}" for key in keys]
        yield "schedule of ρ: " + ", ".join([schedule, *values])
    if course := describe_weights_schedule(method):
        yield f"schedule of the class weights: {course}"
    if method.get("perturb") in TARGETS.keys() - {"trained"}:
        yield f"perturbed: {method['perturb']}"
    if ascent in DIRECTIONS.keys() - {"gradient"}:
        values = describe_values(method, declared(DIRECTIONS, ascent))
        yield "direction: " + ", ".join(filter(None, (ascent, values)))
    if method.get("evaluation") in EVALUATIONS.keys() - {"two_point"}:
        yield f"evaluation: {method['evaluation']}"
    if method.get("ascent_interval", 1) > 1:
        yield f"perturbed in one step of {method['ascent_interval']}"
    if method["perturbation_scope"] != "global":
        yield "each process and micro-batch perturbed by its own gradient (local)"


def _data(data: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    if not data or not data.get("class_counts"):
        return {}
    counts = np.array(data["class_counts"])
    many, few = data["many_shot_threshold"], data["few_shot_threshold"]
    ranges = {"many": f"> {many}", "medium": f"{few} to {many}", "few": f"< {few}"}
    groups = frequency_groups(counts, many=many, few=few).items()
    own = escape_markdown(data["name"] or "A data set of the author's")
    images = next((row["images"] for row in metrics.values() if "images" in row), None)
    return {
        "name": _hub_link(data["hub_id"], "datasets/") if data["hub_id"] else own,
        "cut": f"{data['imbalance_factor']:g}" if data["imbalance_factor"] else "",
        "images": f"{data.get('images') or counts.sum():,}",
        "counted": "labels" if data.get("is_multi_label") else "training images",
        "classes": f"{len(counts):,}",
        "most": f"{counts.max():,}",
        "fewest": f"{counts.min():,}",
        "imbalance": f"{counts.max() / counts.min():.1f}",
        "test_images": f"{images:,}" if images else "",
        "groups": [
            {"name": name, "range": ranges[name], "classes": f"{len(own):,}", "images": f"{counts[own].sum():,}"}
            for name, own in groups
        ],
    }


def _model(
    model: Mapping[str, Any], config: Mapping[str, Any], adapter: Mapping[str, Any], *, backbone: str
) -> dict[str, Any]:
    classes = len(config.get("id2label") or ())
    several = ", several an image" if config.get("problem_type") == MULTI_LABEL else ""
    lines = {
        "backbone": backbone and _backbone_name(backbone, model.get("base_model") or base_model(backbone)),
        "tuned by": _tuning(model, config, adapter),
        "head": _head(config) if "head" in config else "",
        "trained parameters": _parameters(model) if model else "",
    }
    return {
        "what": f"An image classifier for {classes:,} classes{several}" if classes else "A model",
        "trained": "fine-tuned" if is_pretrained(config.get("backbone") or "") else "trained from scratch",
        "is_pretrained": bool(backbone) and is_pretrained(backbone),
        "lines": [(name, value) for name, value in lines.items() if value],
    }


def _tuning(model: Mapping[str, Any], config: Mapping[str, Any], adapter: Mapping[str, Any]) -> str:
    inserted = [str(name) for name in config.get("inserted") or ()]
    ways = model.get("tuning") or ",".join([*([adapter["peft_type"].lower()] if adapter else []), *inserted])
    if not ways:
        return ""
    options = dict(model.get("tuning_options") or {})
    size = ""
    if adapter.get("peft_type") == "LORA":
        size = f", rank {adapter['r']}, alpha {adapter['lora_alpha']:g}"
        options = {name: value for name, value in options.items() if name not in ("lora_rank", "lora_alpha")}
    told = [f", {escape_markdown(name)} = {escape_markdown(str(value))}" for name, value in options.items()]
    return escape_markdown(ways) + size + "".join(told)


def _head(config: Mapping[str, Any]) -> str:
    scale = "" if config["head"] == "linear" else f", scale {config['head_scale']:g}"
    options = _head_options(config)
    return escape_markdown(config["head"]) + scale + (f", {options}" if options else "")


def _parameters(model: Mapping[str, Any]) -> str:
    trained, total = model["trained_parameters"], model["parameters"]
    return f"{trained:,} of {total:,} ({trained / total:.2%})"


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


def _results(folder: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    columns = {name: title for name, title in COLUMNS.items() if any(name in row for row in metrics.values())}
    if not columns:
        return {}
    rows = [
        [escape_markdown(name), *(_cell(row.get(key), row.get("intervals", {}).get(key)) for key in columns)]
        for name, row in metrics.items()
    ]
    last = list(metrics.values())[-1]
    if "group_images" in last:
        counts = {**dict.fromkeys(columns, last["images"]), **last["group_images"]}
        rows.append(["test images", *(f"{counts[key]:,}" for key in columns)])
    files = {"metrics.json": "all metrics", "per_class.csv": "every class", "report.md": "the report"}
    return {
        "titles": list(columns.values()),
        "rows": rows,
        "has_intervals": any(row.get("intervals") for row in metrics.values()),
        "notes": list(
            map(escape_markdown, distinct_notes({name: row.get("notes", ()) for name, row in metrics.items()}))
        ),
        "plot": next((plot for plot in PLOTS if (folder / plot["file"]).is_file()), None),
        "files": ", ".join(f"[{title}]({name})" for name, title in files.items() if (folder / name).is_file()),
    }


def _cell(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "–"
    return format_percent(value) + (f" ({format_interval(interval)})" if interval else "")


def _fenced(text: str, language: str) -> str:
    """A block of code; its fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    lines = "\n".join(map(printable, text.rstrip().split("\n")))
    return f"{fence}{language}\n{lines}\n{fence}"


def _literal(text: str) -> str:
    """A string of Python on one line."""
    return printable(json.dumps(text, ensure_ascii=False))


def _hub_link(repository: str, kind: str = "") -> str:
    return f"[{escape_markdown(repository)}](https://huggingface.co/{kind}{quote(repository)})"


def _use(name: str, config: Mapping[str, Any], adapter: Mapping[str, Any], *, backbone: str) -> dict[str, Any]:
    """For lines that run as they are, where the backbone is not in a folder that the reader has to name."""
    source = f"path/to/{Path(backbone).name}" if _is_path(backbone) else backbone
    has_adapter = bool(adapter) and config.get("model_type") == "long_tail_classifier"
    choices = {}
    if has_adapter:
        choices = {"dtype": config["backbone_dtype"], "features": config["backbone_features"]}
        choices = {key: value for key, value in choices.items() if value not in (None, "float32")}
        choices |= {"image_size": config["image_size"]} if config["image_size"] is not None else {}
    options = [f", {key}={_literal(v) if isinstance(v, str) else repr(v)}" for key, v in choices.items()]
    return {
        "name": _literal(name),
        "backbone": _literal(source),
        "has_classes": bool(config.get("id2label")),
        "has_adapter": has_adapter,
        "is_in_a_folder": source != backbone,
        "options": "".join(options),
    }


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "versions": escape_markdown(", ".join(f"{name} {number}" for name, number in run["versions"].items())),
        "command": run["command"],
        "settings": settings_yaml(run["settings"]) if run["settings"] else "",
    }
