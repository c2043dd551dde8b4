"""`ft-focalsam`: help and mistakes are told before torch is imported, and the index of keys is that of the parsers."""

import json
import sys
from configparser import ConfigParser

import pytest
import yaml
from running import ROOT, python, run

import ft_focalsam
from ft_focalsam.cli.arguments import TYPES
from ft_focalsam.cli.build_index import build
from ft_focalsam.cli.config import parse_config
from ft_focalsam.cli.config_files import CONFIGS, config_names, find_config
from ft_focalsam.cli.configs import show
from ft_focalsam.cli.key_index import ALL, check_command_line, describe, keys_of, read_index
from ft_focalsam.cli.main import COMMANDS, FILES, describe_commands, main

# A child process that ends as the command does, and says what it took.
TIMED = """
import atexit, resource, sys
from ft_focalsam.cli.main import main
def tell():
    heavy = sorted({"torch", "transformers", "accelerate", "datasets"} & set(sys.modules))
    print("imported", heavy, resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)
atexit.register(tell)
main(sys.argv[1:])
"""


def test_the_index_is_that_of_the_parsers():
    assert read_index() == json.loads(json.dumps(build())), "run python -m ft_focalsam.cli.build_index"


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["--help"], 0, "ft-focalsam train path/to/images"),
        (["train", "--help"], 0, "--focal_gamma float"),
        (["train", "--help", "loss"], 0, "--ldam_max_margin"),
        (["evaluate", "--help"], 0, "--datasets str ..."),
        (["config", "list"], 0, "cifar10_lt/clip_vit_b16_lora"),
        (["trian"], 1, "There is no command 'trian'; ft-focalsam --help lists them. Did you mean 'train'?"),
        (["train", "quickstart", "--rhoo", "1"], 1, "Unknown key 'rhoo' on the command line; did you mean 'rho'?"),
        (["train", "quikstart"], 1, "'quikstart' does not exist; check the path. Did you mean 'quickstart'?"),
        (["predict", "runs/x", "images", "--outputs", "o.csv"], 1, "Unknown key 'outputs' on the command line"),
        (["soup", "a", "b", "--datset", "digits"], 1, "did you mean 'dataset'?"),
        (["train", "--help", "sharpnes"], 1, "Did you mean 'sharpness'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.slow
def test_help_and_mistakes_need_no_torch(argv, status, said):
    result = run([sys.executable, "-c", TIMED, *argv])
    assert result.returncode == status
    assert said in (result.stderr if status else result.stdout)
    assert "Traceback" not in result.stderr
    heavy, seconds = result.stderr.rpartition("imported ")[2].rsplit(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 1


@pytest.mark.slow
def test_a_wrong_key_in_a_file_is_told_before_torch_is_imported(tmp_path):
    (tmp_path / "run.yaml").write_text(f"base: {CONFIGS / 'quickstart.yaml'}\nlerning_rate: 0.1\n")
    result = run([sys.executable, "-c", TIMED, "search", str(tmp_path / "run.yaml")])
    assert result.returncode == 1
    assert (
        f"Error: Unknown key 'lerning_rate' in '{tmp_path}/run.yaml'; did you mean 'learning_rate'?" in result.stderr
    )
    assert "imported []" in result.stderr


@pytest.mark.parametrize("command", sorted(FILES))
def test_the_help_on_a_command_shows_all_its_keys_and_sections(command):
    text = describe(command, ALL)
    assert all(f"--{name}" in text for name in keys_of(command))
    for section in read_index()["commands"][command]["sections"]:
        title, *_ = describe(command, section).splitlines()
        assert title == read_index()["sections"][section]["title"] != ""
    for name in keys_of(command):
        assert describe(command, name).strip()
    assert command in describe_commands()


def test_every_command_is_in_one_group():
    assert sum(map(len, COMMANDS.values())) == len(FILES)
    found = {path.stem for path in (ROOT / "ft_focalsam/cli").glob("*.py") if "def make_parser(" in path.read_text()}
    assert found - {"train_from_scratch"} == set(FILES.values()) - {"train_from_scratch"}


def test_keys_may_be_written_with_dashes():
    argv = check_command_line("train", ["quickstart", "--output-dir", "runs/a-b", "--focal-gamma=2"])
    assert argv == ["quickstart", "--output_dir", "runs/a-b", "--focal_gamma=2"]


def test_without_arguments_the_commands_are_listed(capsys):
    main([])
    assert "usage: ft-focalsam COMMAND" in capsys.readouterr().out
    main(["--version"])
    assert capsys.readouterr().out.strip() == ft_focalsam.__version__


@pytest.mark.parametrize("name", config_names())
def test_a_configuration_that_is_shown_describes_the_same_run(name, tmp_path):
    (tmp_path / "shown.yaml").write_text(show(name))
    assert "base" not in yaml.safe_load((tmp_path / "shown.yaml").read_text())
    shown, shipped = parse_config(TYPES, [str(tmp_path / "shown.yaml")]), parse_config(TYPES, [name])
    assert shown[:3] == shipped[:3]
    same = [{**each.to_dict(), "logging_dir": None} for each in (shown[3], shipped[3])]
    assert same[0] == same[1]


def test_configurations_are_found_by_name_and_by_path():
    path = str(CONFIGS / "quickstart.yaml")
    assert find_config("quickstart") == find_config("quickstart.yaml") == find_config(path) == path


@pytest.mark.parametrize("argv", [["list", "quickstart"], ["show"]])
def test_config_says_what_to_write(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(["config", *argv])
    assert str(end.value) == "Error: Write ft-focalsam config list, or ft-focalsam config show NAME."


def test_what_ships_beside_python_files_is_declared():
    """Every other file of the package is matched by `package_data`, so that the command works from a wheel."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    package = ROOT / "ft_focalsam"
    patterns = setup["options.package_data"]["ft_focalsam"].split()
    declared = {path for pattern in patterns for path in package.glob(pattern)}
    declared |= set(CONFIGS.rglob("*.yaml")) if "configs/**/*.yaml" in patterns else set()
    files = {*package.rglob("*"), *CONFIGS.rglob("*")}
    files = {path for path in files if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files - declared == set()


@pytest.mark.slow
def test_a_mistake_ends_with_one_sentence_where_several_processes_start(tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "-m", "ft_focalsam", "train"]
    result = run([*launcher, "quickstart", "--rhoo", "1"])
    assert result.returncode == 1
    assert "Error: Unknown key 'rhoo'" in result.stderr


@pytest.mark.slow
def test_the_command_trains_and_predicts(tmp_path):
    short = ("--max_steps", "2", "--max_test_per_class", "4", "--save_strategy", "no")
    result = python("ft-focalsam", "train", "quickstart", "--output-dir", tmp_path / "run", *short)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "run" / "report.html").is_file()
