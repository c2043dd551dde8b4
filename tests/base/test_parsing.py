"""JSON and YAML that are small and stand for too much, wherever they come in."""

import json

import pytest

from ft_focalsam import LongTailClassifier, TuningOptions
from ft_focalsam.base.parsing import MAX_DEPTH, MAX_YAML_NODES, parse_json, parse_yaml
from ft_focalsam.cli.arguments import ModelArguments
from ft_focalsam.cli.config import ConfigError, parse_config
from ft_focalsam.data import load_image_data
from ft_focalsam.data.streaming import read_class_counts
from ft_focalsam.evaluation.class_matching import read_train_counts
from ft_focalsam.hub.run_file import read_run
from ft_focalsam.trainer.checkpointing import find_fault

DEEP = "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)
VERY_DEEP = "[" * 100_000
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
def test_nesting_is_bounded_and_up_to_the_bound_read(parse):
    assert parse(DEEP[1:-1]) == json.loads(DEEP[1:-1])
    for text in (DEEP, VERY_DEEP, VERY_DEEP.encode()):
        with pytest.raises(ValueError, match="nests deeper than 64 levels"):
            parse(text)


@pytest.mark.parametrize("text", [LAUGHS, MERGES], ids=["billion laughs", "merged mappings"])
def test_aliases_count_as_what_they_stand_for(text):
    with pytest.raises(ValueError, match=f"holds more than {MAX_YAML_NODES:,} values, aliases counted"):
        parse_yaml(text)


def test_aliases_that_stand_for_little_are_read():
    assert parse_yaml("a: &a {rho: 0.1}\nb: {<<: *a, lr: 1}\nc: *a\n") == {
        "a": {"rho": 0.1},
        "b": {"rho": 0.1, "lr": 1},
        "c": {"rho": 0.1},
    }
    with pytest.raises(ValueError, match=r"the alias \*a stands inside of what it names"):
        parse_yaml("&a [*a]")


@pytest.mark.parametrize(
    "text",
    ["2000-99-99", "!!int x", "!!timestamp x", "!!bool z", "!!int ''", "9" * 5000, "1:" * 3000 + "1.5", "\0",
     "!!python/object/apply:os.getcwd []", "? [a]\n: b", "a: *nothing", "\xff"],
)  # fmt: skip
def test_whatever_is_wrong_with_yaml_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_yaml(text.encode("latin-1"))


@pytest.fixture
def saved(tmp_path):
    LongTailClassifier.from_backbone("tiny_clip", ["a", "b"]).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_every_place_that_reads_a_file_refuses_it_in_one_sentence(saved, tmp_path):
    """A configuration of either kind, lists, class names and counts, a saved model, a checkpoint and a run."""
    for name in ("laughs.yaml", "merges.yaml", "deep.yaml", "deep.json", "deep.jsonl"):
        (tmp_path / name).write_text({"laughs": LAUGHS, "merges": MERGES}.get(name.partition(".")[0], DEEP))
    (saved / "config.json").write_text(VERY_DEEP)
    (saved / "run.json").write_text(VERY_DEEP)
    deep = str(tmp_path / "deep.json")
    uses = [
        *(lambda n=n: parse_config((ModelArguments,), [str(tmp_path / n)]) for n in ("laughs.yaml", "merges.yaml")),
        lambda: parse_config((ModelArguments,), [str(tmp_path / "deep.yaml")]),
        lambda: load_image_data(deep),
        lambda: load_image_data(f"{deep}l"),
        lambda: load_image_data("digits", class_names=deep),
        lambda: read_class_counts(tmp_path / "deep.json", ["a"]),
        lambda: read_train_counts(deep, ["a"]),
        lambda: LongTailClassifier.from_pretrained(saved),
        lambda: read_run(saved),
        lambda: TuningOptions(peft_config=VERY_DEEP),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=r"nests deeper than 64 levels|holds more than 100,000 values") as error:
            use()
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
    with pytest.raises(ConfigError, match="is not valid YAML: it holds more than 100,000 values"):
        uses[0]()
    (saved / "trainer_state.json").write_text(VERY_DEEP)
    assert "nests deeper than 64 levels" in find_fault(saved)
