"""YAML and command line to dataclasses; help, docstrings and choices agree; every recipe parses."""

import dataclasses
import inspect
import re
import typing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import TrainingArguments

from ft_focalsam import FocalSAMTrainingArguments, TuningOptions
from ft_focalsam.base.ranges import Range
from ft_focalsam.cli.arguments import ModelArguments
from ft_focalsam.cli.config import ConfigError, parse_config
from ft_focalsam.data import AUGMENTATIONS, ON_BAD_IMAGE, PROFILES, SAMPLERS, DataArguments
from ft_focalsam.losses import LOSSES
from ft_focalsam.models import HEAD_STARTS, HEADS
from ft_focalsam.models.text import choose_templates
from ft_focalsam.sharpness import DIRECTIONS, EVALUATIONS, SCHEDULES, SHARPNESS_METHODS, TARGETS
from ft_focalsam.trainer.arguments.loss import LossArguments
from ft_focalsam.trainer.arguments.run import RunArguments
from ft_focalsam.trainer.arguments.sampling import SamplingArguments
from ft_focalsam.trainer.arguments.sharpness import SharpnessArguments
from ft_focalsam.tuning import TUNING_METHODS, choose_methods, describe_methods
from ft_focalsam.tuning.lora import LORA_INITS

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted((REPOSITORY / "recipes" / "configs").rglob("*.yaml"))
OWN_TYPES = (DataArguments, ModelArguments, TuningOptions)
ALL_TYPES = (*OWN_TYPES, FocalSAMTrainingArguments)
# The families that FocalSAMTrainingArguments inherits, in the order of --help.
FAMILIES = (SharpnessArguments, LossArguments, SamplingArguments, RunArguments)
OWN_FIELDS = {f.name for f in dataclasses.fields(FocalSAMTrainingArguments)} - {
    f.name for f in dataclasses.fields(TrainingArguments)
}


@dataclass
class Example:
    rate: float = field(default=0.5, metadata={"help": "In %% of all."})
    count: int | None = field(default=None, metadata={"help": "How many."})
    names: list[str] = field(default_factory=lambda: ["a"], metadata={"help": "Which."})
    quick: bool = field(default=True, metadata={"help": "Whether."})
    loud: bool = field(default=False, metadata={"help": "Whether."})
    kind: str = field(default="x", metadata={"help": "What.", "choices": ["x", "y"]})


@pytest.fixture
def write(tmp_path):
    """Writes a YAML file; returns its path."""

    def write_text(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_text


def parse(*argv: str) -> Example:
    return parse_config((Example,), argv)[0]


# ---- values ----


def test_defaults_without_yaml():
    assert parse() == Example()
    data, model, tuning, args = parse_config(ALL_TYPES, ["--output_dir", "x"])
    assert (data, model, tuning) == (DataArguments(), ModelArguments(), TuningOptions())
    assert {name: getattr(args, name) for name in OWN_FIELDS} == {
        f.name: f.default for f in dataclasses.fields(FocalSAMTrainingArguments) if f.name in OWN_FIELDS
    }


def test_yaml_sets_the_defaults_and_the_command_line_wins(write):
    path = write("rate: 0.25\ncount: 3\nnames: [b, c]\nquick: false\nloud: true\nkind: y\n")
    assert parse(path) == Example(rate=0.25, count=3, names=["b", "c"], quick=False, loud=True, kind="y")
    actual = parse(path, "--count", "4", "--names", "d", "--quick", "true", "--loud", "no", "--kind=x")
    assert actual == Example(rate=0.25, count=4, names=["d"], quick=True, loud=False, kind="x")


def test_keys_reach_the_dataclass_they_belong_to(write):
    path = write("dataset: cifar\nhead: linear\nlora_rank: 3\nrho: 0.2\nlearning_rate: 1e-3\n")
    data, model, tuning, args = parse_config(ALL_TYPES, [path, "--focal-gamma", "2", "--output_dir", "x"])
    assert (data.dataset, model.head, tuning.lora_rank, args.rho, args.focal_gamma) == ("cifar", "linear", 3, 0.2, 2.0)
    assert args.learning_rate == 1e-3


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "'0.001'"])
def test_numbers_with_exponents(write, written):
    """YAML 1.1 reads 1e-3 as text."""
    assert parse(write(f"rate: {written}\n")).rate == 0.001
    assert parse("--rate", written.strip("'")).rate == 0.001


def test_whole_number_where_a_fraction_is_taken(write):
    rate = parse(write("rate: 2\n")).rate
    assert rate == 2.0 and isinstance(rate, float)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("[b, c]", ["b", "c"]), ("b", ["b"]), ("[1, -2]", ["1", "-2"]), ("[]", []), ("\n  - b\n  - c", ["b", "c"])],
    ids=["list", "single", "numbers", "empty", "block"],
)
def test_lists(write, written, expected):
    assert parse(write(f"names: {written}\n")).names == expected


@pytest.mark.parametrize("written", ["true", "True", "yes", "on", "1", "'true'"])
def test_booleans(write, written):
    assert parse(write(f"loud: {written}\n")).loud is True


@pytest.mark.parametrize(("flag", "expected"), [("--quick", True), ("--no_quick", False), ("--no-quick", False)])
def test_boolean_flags(write, flag, expected):
    assert parse(write("quick: true\n"), flag).quick is expected
    assert parse(write("quick: false\n"), flag).quick is expected


def test_null_is_none_where_none_is_the_default(write):
    assert parse(write("count: null\n")).count is None
    assert parse(write("count:\n")).count is None


def test_mappings_reach_the_trainer(write):
    path = write("lr_scheduler_kwargs: {num_cycles: 2}\nlr_scheduler_type: cosine\noutput_dir: x\n")
    *_, args = parse_config(ALL_TYPES, [path])
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}


@pytest.mark.parametrize("written", ["[lora, norms]", "'lora,norms'", "lora,norms", "\n  - lora\n  - norms"])
def test_tuning_methods_as_a_list(write, written):
    assert parse_config((ModelArguments,), [write(f"tuning: {written}\n")])[0].tuning == "lora,norms"
    assert parse_config((ModelArguments,), ["--tuning", "lora,norms"])[0].tuning == "lora,norms"


def test_peft_config_as_a_mapping_or_as_json(write):
    expected = {"peft_type": "LOHA", "r": 4, "target_modules": ["fc1"]}
    path = write("peft_config: {peft_type: LOHA, r: 4, target_modules: [fc1]}\n")
    assert parse_config((TuningOptions,), [path])[0].peft_config == expected
    text = '{"peft_type": "LOHA", "r": 4, "target_modules": ["fc1"]}'
    assert parse_config((TuningOptions,), ["--peft_config", text])[0].peft_config == expected
    with pytest.raises(ValueError, match=r"peft_config is 'LOHA', which is not JSON .*; write a mapping in YAML, or"):
        parse_config((TuningOptions,), ["--peft_config", "LOHA"])
    with pytest.raises(ValueError, match=r"peft_config is \[1\]; set it to a mapping, as in"):
        parse_config((TuningOptions,), ["--peft_config", "[1]"])


def test_empty_file_changes_nothing(write):
    assert parse(write("# nothing\n")) == Example()


@pytest.fixture
def family(tmp_path):
    """Files that inherit: child <- parent <- grand/parent; returns the path of the first."""
    (tmp_path / "grand").mkdir()
    (tmp_path / "grand" / "parent.yaml").write_text("rate: 0.1\ncount: 1\nnames: [a, b]\nkind: y\n")
    (tmp_path / "parent.yaml").write_text("base: grand/parent.yaml\nrate: 0.2\ncount: 2\n")
    (tmp_path / "child.yaml").write_text("base: parent.yaml\nrate: 0.3\nloud: true\n")
    return str(tmp_path / "child.yaml")


def test_a_file_overrides_what_it_inherits(family):
    assert parse(family) == Example(rate=0.3, count=2, names=["a", "b"], loud=True, kind="y")
    assert parse(family, "--count", "4", "--rate=0.5").count == 4


def test_a_base_is_found_from_anywhere(family, tmp_path, monkeypatch):
    (tmp_path / "grand" / "child.yaml").write_text("base: ../child.yaml\n")
    monkeypatch.chdir(tmp_path / "grand")
    assert parse("child.yaml") == parse(family)
    (tmp_path / "grand" / "child.yaml").write_text(f"base: {family}\n")
    assert parse("child.yaml") == parse(family)


def test_null_takes_an_inherited_value_back(write, family):
    assert parse(write(f"base: {family}\ncount: null\n")).count is None
    assert parse(family, "--count", "null").count is None


def test_null_on_the_command_line_is_no_value_of_keys_with_a_default():
    with pytest.raises(ValueError, match="Argument --rate: invalid float value: 'null'; --help lists all keys"):
        parse("--rate", "null")
    with pytest.raises(ValueError, match="Argument --count: invalid int value: 'many'"):
        parse("--count", "many")


# ---- errors ----


@pytest.mark.parametrize(("key", "nearest"), [("rat", "rate"), ("cuont", "count"), ("Loud", "loud"), ("1", "")])
def test_unknown_key_in_yaml_names_the_nearest(write, key, nearest):
    path = write(f"rate: 1\n{key}: 2\n")
    with pytest.raises(ConfigError, match=rf"Unknown key '{key}' in '{path}'; did you mean '{nearest}.*--help"):
        parse(path)


@pytest.mark.parametrize("argv", [["--focal-gama", "2"], ["--focal_gama=2"], ["--rho", "0.1", "--focal_gama", "2"]])
def test_unknown_key_on_the_command_line_names_the_nearest(argv):
    with pytest.raises(ConfigError, match=r"Unknown key 'focal.gama' on the command line; did you mean 'focal_gamma'"):
        parse_config(ALL_TYPES, ["--output_dir", "x", *argv])


def test_abbreviated_key_is_unknown():
    with pytest.raises(ConfigError, match="Unknown key 'rat' on the command line; did you mean 'rate'"):
        parse("--rat", "1")


def test_yaml_after_the_keys_is_stray(write):
    with pytest.raises(ConfigError, match=r"Stray '.*run.yaml' on the command line; write \[config.yaml\] \[--key"):
        parse("--rate", "1", write("count: 3\n"))


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=rf"'{tmp_path}/gone.yaml' does not exist; check the path"):
        parse(str(tmp_path / "gone.yaml"))


def test_missing_base(write, tmp_path):
    path = write("base: gone.yaml\n")
    with pytest.raises(
        ConfigError, match=rf"file '{tmp_path}/gone.yaml', the base of '{path}', does not exist; check"
    ):
        parse(path)


def test_a_mistake_in_a_base_names_the_base(family, tmp_path):
    parent = tmp_path / "grand" / "parent.yaml"
    parent.write_text("rat: 1\n")
    with pytest.raises(ConfigError, match=rf"Unknown key 'rat' in '{parent}'; did you mean 'rate'"):
        parse(family)
    parent.write_text("rate: high\n")
    with pytest.raises(ConfigError, match=rf"The key 'rate' in '{parent}' cannot be 'high'"):
        parse(family)


@pytest.mark.parametrize("back", ["child.yaml", "grand/../parent.yaml", "grand/parent.yaml"])
def test_files_that_inherit_in_a_circle(family, tmp_path, back):
    (tmp_path / "grand" / "parent.yaml").write_text(f"base: ../{back}\n")
    with pytest.raises(ConfigError, match=r"in a circle: '\S+child.yaml' -> .*/\S+.yaml'; take 'base' out of one"):
        parse(family)


@pytest.mark.parametrize("written", ["[a.yaml, b.yaml]", "", "1"], ids=["list", "nothing", "number"])
def test_a_base_that_is_no_path(write, written):
    path = write(f"base: {written}\n")
    with pytest.raises(ConfigError, match=rf"The key 'base' in '{path}' cannot be .*; set it to the path of one YAML"):
        parse(path)


def test_misspelt_base(write):
    with pytest.raises(ConfigError, match=r"Unknown key 'bsae' in .*; did you mean 'base'"):
        parse(write("bsae: other.yaml\n"))


@pytest.mark.parametrize(("text", "kind"), [("- rate\n- 1\n", "list"), ("rate\n", "str"), ("7\n", "int")])
def test_file_that_is_no_mapping(write, text, kind):
    path = write(text)
    with pytest.raises(ConfigError, match=rf"'{path}' holds a {kind}; write `key: value` lines"):
        parse(path)


@pytest.mark.parametrize("text", ["rate: [1\n", "rate: 1\n\tcount: 2\n", "a: b: c\n"], ids=["open", "tab", "colons"])
def test_invalid_yaml_says_where(write, text):
    path = write(text)
    with pytest.raises(ConfigError, match=rf"'{path}' is not valid YAML: .*line [12]") as error:
        parse(path)
    assert "\n" not in str(error.value)


def test_file_that_is_no_text(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"rate: \xff\xfe")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        parse(str(tmp_path / "run.yaml"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("rate: high", "'high': invalid float value"),
        ("count: 1.5", "1.5: invalid int value"),
        ("rate: [0.1, 0.2]", r"\[0.1, 0.2\]: it takes one value"),
        ("rate:", "None: it has no value"),
        ("loud: maybe", "'maybe': .*Truthy value expected"),
        ("kind: z", "'z': invalid choice.*x.*y"),
    ],
    ids=["text", "fraction", "list", "nothing", "boolean", "choice"],
)
def test_value_of_the_wrong_kind_in_yaml(write, line, reason):
    path = write(line + "\n")
    with pytest.raises(ConfigError, match=rf"The key '\w+' in '{path}' cannot be {reason}.*; correct it, or leave"):
        parse(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rho": -0.1}, r"rho is -0\.1; set the radius .* to 0 .*or more"),
        ({"rho": float("nan")}, r"rho is nan; set"),
        ({"focal_gamma": -1.0}, r"focal_gamma is -1\.0; set it to 0 or more"),
        ({"focal_lambda": -0.5}, r"focal_lambda is -0\.5; set it to 0 or more"),
        ({"imbsam_eta": 0.0}, r"imbsam_eta is 0\.0; set it to a number above 0"),
        ({"sharpness": "focalsam"}, r"sharpness is 'focalsam'; choose one of .*focal_sam"),
        ({"loss": "poly"}, r"loss is 'poly'; choose one of cross_entropy, class_balanced, grw"),
        ({"loss": "vs", "vs_gamma": -0.1}, r"vs_gamma is -0\.1; set it to 0 or more"),
        ({"effective_number_beta": 1.0}, r"effective_number_beta is 1\.0; set it to 0 or more and below 1"),
        ({"drw_start": 80.0}, r"drw_start is 80\.0; set it to a share of training, from 0 to 1"),
        ({"train_sampler": "balanced"}, r"train_sampler is 'balanced'; choose one of instance, class_balanced"),
        ({"perturbation_scope": "rank"}, r"perturbation_scope is 'rank'; choose one of global, local"),
        (
            {"few_shot_threshold": 50, "many_shot_threshold": 20},
            r"few_shot_threshold is 50 and many_shot_threshold 20; set 0 <= few <= many",
        ),
        ({"few_shot_threshold": -1}, r"few_shot_threshold is -1 .*set 0 <= few <= many"),
    ],
    ids=[
        "rho_negative",
        "rho_nan",
        "gamma_negative",
        "lambda_negative",
        "eta_zero",
        "sharpness",
        "loss",
        "loss_hyperparameter",
        "beta",
        "drw_start",
        "sampler",
        "scope",
        "few_above_many",
        "few_negative",
    ],
)
def test_bad_training_arguments(tmp_path, write, values, message):
    with pytest.raises(ValueError, match=message):
        FocalSAMTrainingArguments(str(tmp_path), **values)
    with pytest.raises(ValueError, match=message):
        parse_config(ALL_TYPES, [write("".join(f"{key}: {value}\n" for key, value in values.items()))])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--gradient_accumulation_steps 0", r"gradient_accumulation_steps is 0; set it to 1 or more\.$"),
        ("--per_device_train_batch_size 0", "per_device_train_batch_size is 0; set it to 1 or more"),
        ("--per_device_eval_batch_size -4", "per_device_eval_batch_size is -4; set it to 1 or more"),
        ("--learning_rate -1", r"learning_rate is -1\.0; set it to 0 or more"),
        ("--learning_rate nan", "learning_rate is nan; set it to 0 or more"),
        ("--learning_rate inf", "learning_rate is inf; set it to 0 or more"),
        ("--num_train_epochs -1", r"num_train_epochs is -1\.0; set it to a number above 0, or tuning to zero_shot"),
        ("--max_steps 0", "max_steps is 0; set it to 1 or more, or to -1 to train for num_train_epochs"),
        ("--warmup_steps -1", r"warmup_steps is -1\.0; set it to 0 or more steps, or to a share"),
        ("--warmup_steps 9 --max_steps 5", "warmup_steps is 9 and max_steps 5.*; set warmup_steps to fewer"),
        ("--weight_decay -1", r"weight_decay is -1\.0; set it to 0 or more"),
        ("--label_smoothing_factor 1.5", r"label_smoothing_factor is 1\.5; set it to a number from 0 to 1"),
        ("--dataloader_num_workers -1", "dataloader_num_workers is -1; set it to 0 or more"),
        ("--logging_steps 0", r"logging_steps is 0\.0; set it to a number above 0, or set logging_strategy to no"),
        ("--save_steps 0", r"save_steps is 0\.0; set it to a number above 0, or set save_strategy to no"),
        ("--save_total_limit 0", "save_total_limit is 0; set it to 1 or more, or leave it out"),
        ("--seed -1", "seed is -1; set it to a whole number from 0 to 4294967295"),
        ("--lora_rank 0", "lora_rank is 0; set it to 1 or more"),
        ("--adapter_width 0", "adapter_width is 0; set it to 1 or more, or leave it out"),
        ("--tuned_layers 0 -1", r"tuned_layers is \[0, -1\]; set it to 0 or more"),
        ("--max_train_per_class 0", "max_train_per_class is 0; set it to 1 or more"),
        ("--test_fraction 1", r"test_fraction is 1\.0; set it to a number above 0 and below 1, or leave it out"),
        ("--head_scale 0", r"head_scale is 0\.0; set it to a number above 0"),
        ("--head cosin", "Unknown head 'cosin'; choose one of linear, cosine"),
        ("--tuning lorra", "Unknown tuning method 'lorra'"),
        ("--head_start txt", "head_start is 'txt'; did you mean 'text'. Choose one of"),
        ("--prompt_templates a", "template 'a' has no {}; write {} where the class name goes"),
        (
            "--prompt_names gone.txt",
            "prompt_names is 'gone.txt', which is no file; give one with a class name",
        ),
        ("--augmentation flip", "augmentation is 'flip'; .*hoose one of none, crop"),
        ("--imbalance_profile exp", "imbalance_profile is 'exp'; .*hoose one of exponential, step, pareto"),
        ("--on_bad_image ignore", "on_bad_image is 'ignore'; .*hoose one of fail, skip, unchecked"),
        ("--report_to wanbd", "report_to is 'wanbd'; did you mean 'wandb'"),
        (
            "--optim sgd --optim_args momentum",
            "optim is 'sgd' and optim_args 'momentum', which do not fit .*key=value",
        ),
        ("--optim sgd --optim_args momentm=0.9", "optim_args 'momentm=0.9', which do not fit .it takes no momentm"),
        ("--lr_scheduler_type cosine_with_min_lr", "lr_scheduler_type is 'cosine_with_min_lr' and .*min_lr_rate"),
    ],
    ids=lambda value: value.lstrip("-") if value.startswith("--") else "",
)
def test_values_that_no_run_can_have_are_refused_at_the_parse(argv, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        parse_config(ALL_TYPES, ["--output_dir", "x", *argv.split()])


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "mlflow"])
def test_a_tracker_that_is_not_installed(name, tmp_path):
    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(ValueError, match=f"report_to is '{name}', .* not installed; run pip install {name}, or set"):
        FocalSAMTrainingArguments(str(tmp_path), report_to=name)


def test_intervals_that_are_not_used_may_be_zero(tmp_path):
    args = FocalSAMTrainingArguments(str(tmp_path), save_strategy="no", save_steps=0, max_steps=-1)
    assert args.save_steps == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rho": "0.1"}, "rho is '0.1'; set it to a number that is finite"),
        ({"focal_gamma": False}, "focal_gamma is False; set it to a number, 0 or more"),
        ({"per_device_train_batch_size": 2.5}, r"batch_size is 2\.5; set it to a whole number, 1 or more"),
    ],
    ids=["text", "boolean", "fraction"],
)
def test_numbers_of_another_type(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        FocalSAMTrainingArguments(str(tmp_path), **values)


@pytest.mark.parametrize("arguments", OWN_TYPES, ids=lambda arguments: arguments.__name__)
def test_every_range_is_the_one_documented(arguments):
    for name, hint in typing.get_type_hints(arguments, include_extras=True).items():
        documented = re.search(
            rf"^ {{4}}{name} \(`[^`]+`, ((?:>=|>|above)? ?\d[^*)]*)", inspect.cleandoc(arguments.__doc__), re.MULTILINE
        )
        if documented:
            allowed = next(note for note in hint.__metadata__ if isinstance(note, Range))
            numbers = [float(number) for number in re.findall(r"[\d.]+", documented[1])]
            assert numbers == [allowed.low, allowed.high][: len(numbers)], name


def test_a_key_twice_in_yaml(write):
    path = write("rate: 1\ncount: 2\nrate: 3\n")
    message = rf"'{path}' is not valid YAML: line 3, column 1: the key 'rate' stands in line 1 already; remove one"
    with pytest.raises(ConfigError, match=message):
        parse(path)


def test_keys_merged_by_yaml_may_be_overridden(write):
    path = write("lr_scheduler_kwargs: {<<: &a {num_cycles: 1}, num_cycles: 2}\nlr_scheduler_type: cosine\n")
    assert parse_config(ALL_TYPES, [path, "--output_dir", "x"])[3].lr_scheduler_kwargs == {"num_cycles": 2}


def test_a_tab_in_yaml(write):
    with pytest.raises(ConfigError, match=r"is not valid YAML: line 2, column 1: a tab, where YAML indents by spaces"):
        parse(write("rate: 1\n\tcount: 2\n"))


def test_exponents_without_a_dot_are_numbers(write):
    assert parse(write("rate: 1e-3\n")).rate == 0.001  # to YAML it is text


def test_a_misspelt_file_names_the_nearest(write, tmp_path):
    path = write("rate: 1\n")
    with pytest.raises(
        ConfigError, match=rf"'{tmp_path}/rnu.yaml' does not exist; check the path. Did you mean '{path}'"
    ):
        parse(str(tmp_path / "rnu.yaml"))
    with pytest.raises(ConfigError, match=rf"'{tmp_path}' is a folder; give a file in it"):
        parse(str(tmp_path))


def test_a_configuration_by_key():
    with pytest.raises(ConfigError, match=r"Unknown key 'config' .*; the configuration file comes first and without"):
        parse("--config", "run.yaml")


def test_one_dash(write):
    with pytest.raises(ConfigError, match=r"'-rate' on the command line has one dash; write '--rate'"):
        parse("-rate", "1")


# ---- help, docstrings, recipes ----


def squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def docstring_entries(documented: type) -> dict[str, tuple[str, str]]:
    """Entries `name (type, defaults to ...):` with an indented text: name -> (heading, text)."""
    pattern = re.compile(r"^ {4}(\w+) \((.*?)\):\n((?: {8}.*\n)+)", flags=re.MULTILINE)
    return {m[1]: (m[2], squeeze(m[3])) for m in pattern.finditer(inspect.cleandoc(documented.__doc__) + "\n")}


@pytest.mark.parametrize("arguments", ALL_TYPES, ids=lambda arguments: arguments.__name__)
def test_every_field_has_help(arguments):
    fields = dataclasses.fields(arguments)
    if arguments is FocalSAMTrainingArguments:
        fields = [f for f in fields if f.name in OWN_FIELDS]
    assert fields and all(f.metadata.get("help", "").endswith(".") for f in fields)


@pytest.mark.parametrize("arguments", OWN_TYPES, ids=lambda arguments: arguments.__name__)
def test_every_field_is_documented_once(arguments):
    listed = re.findall(r"^ {4}((?:\w+, )*\w+) \(", inspect.cleandoc(arguments.__doc__), flags=re.MULTILINE)
    assert [name for names in listed for name in names.split(", ")] == [f.name for f in dataclasses.fields(arguments)]


@pytest.mark.parametrize("arguments", FAMILIES, ids=lambda arguments: arguments.__name__)
def test_docstring_agrees_with_help_and_defaults(arguments):
    entries = docstring_entries(arguments)
    fields = [f for f in dataclasses.fields(arguments) if f.name in OWN_FIELDS]
    assert list(entries) == [f.name for f in fields]
    for f in fields:
        heading, text = entries[f.name]
        beginning = f.metadata["help"].partition(":")[0] if "a name in `" in text else f.metadata["help"]
        assert text.startswith(squeeze(beginning)), f.name
        default = f'"{f.default}"' if isinstance(f.default, str) else f.default
        assert heading.endswith(f"defaults to `{default}`"), f.name


def test_every_argument_is_of_one_family():
    of_families = [f for family in FAMILIES for f in dataclasses.fields(family) if f.name in OWN_FIELDS]
    assert [f.name for f in of_families] == [
        f.name for f in dataclasses.fields(FocalSAMTrainingArguments) if f.name in OWN_FIELDS
    ]


@pytest.mark.parametrize(
    ("arguments", "name", "choices"),
    [
        (FocalSAMTrainingArguments, "sharpness", SHARPNESS_METHODS),
        (FocalSAMTrainingArguments, "rho_schedule", SCHEDULES),
        (FocalSAMTrainingArguments, "sharpness_schedule", SCHEDULES),
        (FocalSAMTrainingArguments, "sharpness_initial", set(SHARPNESS_METHODS) - {"cc_sam"}),
        (FocalSAMTrainingArguments, "perturb", TARGETS),
        (FocalSAMTrainingArguments, "ascent", DIRECTIONS),
        (FocalSAMTrainingArguments, "evaluation", EVALUATIONS),
        (FocalSAMTrainingArguments, "loss", LOSSES),
        (FocalSAMTrainingArguments, "train_sampler", SAMPLERS),
        (ModelArguments, "tuning", TUNING_METHODS),
        (TuningOptions, "lora_init", LORA_INITS),
        (ModelArguments, "head", HEADS),
        (ModelArguments, "head_start", HEAD_STARTS),
        (DataArguments, "augmentation", AUGMENTATIONS),
        (DataArguments, "imbalance_profile", PROFILES),
        (DataArguments, "on_bad_image", ON_BAD_IMAGE),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_help_lists_the_choices(arguments, name, choices):
    text = next(f for f in dataclasses.fields(arguments) if f.name == name).metadata["help"]
    words = set(re.findall(r"\w+", text.rpartition(": ")[2].partition(";")[0])) - {"or"}
    assert words == set(choices)


@pytest.mark.parametrize("arguments", [(Example,), ALL_TYPES], ids=["percent_sign", "recipe"])
def test_help_runs_and_lists_every_key(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        parse_config(arguments, ["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"--{f.name}" in text for one in arguments for f in dataclasses.fields(one) if f.init)
    assert arguments != (Example,) or "In % of all." in squeeze(text)


def test_help_explains_every_tuning_method(capsys):
    with pytest.raises(SystemExit):
        parse_config((TuningOptions,), ["--help"], epilog=describe_methods())
    lines = capsys.readouterr().out.partition("Ways to tune (--tuning):\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == sorted(TUNING_METHODS)
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


def test_there_are_recipes():
    assert REPOSITORY / "recipes" / "configs" / "quickstart.yaml" in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(REPOSITORY / "recipes" / "configs")))
def test_recipe_parses(path):
    data, model, tuning, args = parse_config(ALL_TYPES, [str(path)])
    assert args.output_dir and data.dataset and tuning.lora_rank >= 1
    assert data.augmentation in AUGMENTATIONS
    assert choose_methods(model.tuning) and model.head in HEADS
    assert model.head_start is None or model.head_start in HEAD_STARTS
    assert all("{}" in template for template in choose_templates(model.prompt_templates))


def test_every_tuning_method_has_a_recipe():
    tunings = [parse_config(ALL_TYPES, [str(path)])[1].tuning for path in RECIPES]
    assert {name for tuning in tunings for name in tuning.split(",")} == set(TUNING_METHODS)
