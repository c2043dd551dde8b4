"""The settings of a run, as its run.json has them."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from ...losses import LOSSES
from ...sharpness import Hyperparameter
from .blocks import Block, Facts, Heading, Text
from .method_names import (
    SEVERAL,
    declared,
    describe_length,
    describe_values,
    method_hyperparameters,
    method_title,
)


def settings(run: Mapping) -> Iterator[Block]:
    """How a model was trained; nothing where there is no run.json, as of a model from elsewhere. An average of runs
    has the settings that all of them have.

    Args:
        run (mapping): Of [`~ft_focalsam.hub.read_run`].
    """
    if not run.get("method"):
        return
    method, model, data, resolved = (run.get(name) or {} for name in ("method", "model", "data", "resolved"))
    name = method.get("sharpness", SEVERAL)
    pairs = [("method", method_title(name)), *_values(method, method_hyperparameters(name))]
    loss = method.get("loss", SEVERAL)
    pairs += [("loss", loss), *_values(method, declared(LOSSES, loss))]
    pairs += [("sampler", method.get("train_sampler", SEVERAL))]
    pairs += [("length", describe_length(method)), ("seed", str(method.get("seed", SEVERAL)))]
    optional = {
        "backbone": _backbone(run),
        "tuning": model.get("tuning"),
        "trained parameters": _parameters(model),
        "data set": data.get("name") and data["name"].removeprefix("path/to/"),
        "imbalance factor": data.get("imbalance_factor") and f"{data['imbalance_factor']:g}",
        "learning rate": resolved.get("learning_rate") and f"{resolved['learning_rate']:g}",
        "optimizer": resolved.get("optim"),
        "trained on": _date(run),
        "versions": format_versions(run.get("versions") or {}),
    }
    yield Heading("Settings")
    yield Facts([*pairs, *((title, str(value)) for title, value in optional.items() if value)])


def subtitle(run: Mapping) -> Iterator[Block]:
    """The method and what it was applied to, in a line; nothing where there is no run.json."""
    if not run.get("method"):
        return
    method, backbone, tuning = run["method"], _backbone(run), (run.get("model") or {}).get("tuning")
    name = method.get("sharpness", SEVERAL)
    values = describe_values(method, method_hyperparameters(name))
    parts = [f"{method_title(name)}{f' with {values}' if values else ''}"]
    parts += [f"backbone {backbone}"] if backbone else []
    parts += [f"tuning {tuning}"] if tuning else []
    parts += [describe_length(method)]
    parts += [f"seed {method.get('seed', SEVERAL)}"]
    yield Text("; ".join([*parts, *([f"trained on {_date(run)}"] if _date(run) else [])]) + ".", is_note=True)


def _values(method: Mapping, known: Iterable[Hyperparameter]) -> Iterator[tuple[str, str]]:
    for each in known:
        value = method.get(each.argument, SEVERAL)
        title = f"{each.argument} ({each.symbol})" if each.symbol else each.argument
        if value is not None:
            yield title, value if value == SEVERAL else f"{value:g}"


def _backbone(run: Mapping) -> str | None:
    return (run.get("resolved") or {}).get("backbone") or (run.get("model") or {}).get("base_model")


def _date(run: Mapping) -> str | None:
    return format_date(datetime.fromisoformat(run["date"])) if run.get("date") else None


def _parameters(model: Mapping) -> str | None:
    trained, total = model.get("trained_parameters"), model.get("parameters")
    return f"{trained:,} of {total:,} ({trained / total:.2%})" if total else None


def format_date(date: datetime) -> str:
    """ "2026-01-31 12:00 UTC"."""
    return f"{date:%Y-%m-%d %H:%M %Z}".strip()


def format_versions(versions: Mapping[str, str]) -> str:
    """ "ft_focalsam 1.0, torch 2.6"."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
