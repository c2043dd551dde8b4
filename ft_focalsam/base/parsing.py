"""JSON and YAML of others: parsed within bounds, so that a small file cannot exhaust the memory or the stack."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import one_line

MAX_DEPTH = 64  # mappings and lists inside of each other
MAX_YAML_NODES = 100_000  # with every alias counted as what it stands for


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: If it is no JSON, or nests deeper than `MAX_DEPTH` levels; says so in a few words, without a stop.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"it nests deeper than {MAX_DEPTH} levels") from error
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, (dict, list))]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it nests deeper than {MAX_DEPTH} levels")
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return value


def mapping_argument(name: str, value: Any, *, example: Mapping[str, Any]) -> dict | None:
    """The value of an argument that is a mapping: as YAML has it, or JSON on a command line.

    Args:
        name (`str`): Of the argument.
        value: What was given; None where nothing was.
        example (mapping): What an error shows.

    Raises:
        ValueError: If it is no mapping.
    """
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise ValueError(
                f"{name} is {value[:80]!r}, which is not JSON ({error}); write a mapping in YAML, or JSON as in "
                f"'{json.dumps(example)}'."
            ) from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}; set it to a mapping, as in {json.dumps(example)}.")
    return value


def read_json_object(path: Path, *, called: str, remedy: str) -> dict:
    """The object in a JSON file.

    Args:
        path (`Path`): The file.
        called (`str`): How a sentence begins about it: "The tokenizer.json of 'x'".
        remedy (`str`): How it ends: "choose another model".

    Raises:
        ValueError: If it is no JSON, or holds something else than an object.
    """
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{called} is not valid JSON ({one_line(error)}); {remedy}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{called} holds a {type(content).__name__} and no JSON object; {remedy}.")
    return content


def parse_yaml(text: str | bytes) -> Any:
    """The value of a YAML text, of plain types alone.

    Raises:
        ValueError: If it is no YAML, a mapping has a key twice, it nests deeper than `MAX_DEPTH` levels, or its
            aliases stand for more than `MAX_YAML_NODES` values; says so in a few words, without a stop.
    """
    try:
        _check_yaml(text)
        return yaml.load(text, _OncePerKey)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # PyYAML lets what its constructors raise on "2000-99-99" or "!!int x" through.
        raise ValueError(_yaml_fault(error)) from error


class _OncePerKey(yaml.SafeLoader):
    """YAML whose mappings have each key once; by itself YAML takes the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if str(key.value) in lines and key.tag != "tag:yaml.org,2002:merge":
                fault = f"the key '{key.value}' stands in line {lines[str(key.value)]} already; remove one of the two"
                raise yaml.constructor.ConstructorError(problem=fault, problem_mark=key.start_mark)
            lines[str(key.value)] = line
        return super().construct_mapping(node, deep=deep)


def _yaml_fault(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split()).rstrip(".") or type(error).__name__
    fault = "a tab, where YAML indents by spaces" if "'\\t'" in problem else problem
    return f"line {mark.line + 1}, column {mark.column + 1}: {fault}"


def _check_yaml(text: str | bytes) -> None:
    """Walk through the events, in which an alias is not yet what it stands for."""
    sizes: dict[str | None, int] = {}  # of what has an anchor
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and nodes before it
    nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"the alias *{event.anchor} stands inside of what it names, or before it")
            nodes += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, nodes))
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            sizes[anchor] = nodes - before
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            sizes[event.anchor] = 1
        if len(open_nodes) > MAX_DEPTH:
            raise ValueError(f"it nests deeper than {MAX_DEPTH} levels in line {event.start_mark.line + 1}")
        if nodes > MAX_YAML_NODES:
            raise ValueError(f"it holds more than {MAX_YAML_NODES:,} values, aliases counted as what they stand for")
