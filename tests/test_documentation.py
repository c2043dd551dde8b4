"""README.md and docs/: their paths, links, options, defaults and code are those of the package."""

import ast
import functools
import re
import shlex
from dataclasses import MISSING, fields

import pytest
import yaml
from PIL import Image
from running import ROOT, python
from transformers import TrainingArguments

from ft_focalsam import FocalSAMTrainingArguments, TuningOptions
from ft_focalsam.cli.arguments import ModelArguments
from ft_focalsam.cli.key_index import keys_of, read_index
from ft_focalsam.data import DataArguments

README = ROOT / "README.md"
EXTENDING, HUB, OWN_IMAGES, PYTHON = (
    ROOT / f"docs/{name}.md" for name in ("extending", "hub", "own_images", "python")
)
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("recipes", "accelerate_configs", "ft_focalsam", "tests", "docs")
OF_FINETUNE = (DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments)
SCRIPTS = {"recipes/finetune.py": "train", "recipes/train_from_scratch.py": "train_from_scratch"}
on_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def anchors(page):
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@on_each_page
def test_paths_and_commands_exist(page):
    mentioned = re.findall(rf"(?:{'|'.join(FOLDERS)})/[\w/]+\.(?:py|yaml|md)", page.read_text())
    assert [path for path in mentioned if not (ROOT / path).exists()] == []


@on_each_page
def test_relative_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_the_readme_links_every_page():
    assert [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in README.read_text()] == []


@on_each_page
def test_options_exist(page):
    known = {key["name"] for section in read_index()["sections"].values() for key in section["keys"]}
    known |= {"help", "key"}  # of argparse, and as in `--key value`
    for script in (ROOT / "recipes").rglob("*.py"):
        known |= set(re.findall(r'"--(\w+)"', script.read_text()))
    for name in re.findall(r'argument="(\w+)"', page.read_text()):  # declared on the page
        known |= {name, f"{name}_range"}
    text = re.sub(r"(accelerate launch|torchrun|srun) .*?recipes/", "", page.read_text())  # options of the launchers
    assert [name for name in re.findall(r"--([a-z]\w+)", text) if name not in known] == []


def commands(page):
    """(command of ft-focalsam or script of recipes/, what follows it) of the shell commands."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    for line in "\n".join(blocks).splitlines():
        words = shlex.split(line, comments=True)
        for i, word in enumerate(words):
            if word == "ft-focalsam":
                yield words[i + 1], words[i + 2 :]
            elif re.fullmatch(r"recipes/[\w/]+\.py", word):
                yield SCRIPTS.get(word, word), words[i + 1 :]


@functools.cache
def options(command):
    if command in read_index()["commands"]:
        return set(keys_of(command))
    result = python(command, "--help")
    assert result.returncode == 0, result.stderr[-3000:]
    return set(re.findall(r"(?<![\w-])--(\w+)", result.stdout))


@pytest.mark.slow
@on_each_page
def test_commands_have_their_options(page):
    for command, words in commands(page):
        unknown = {word[2:] for word in words if word.startswith("--")} - options(command)
        assert not unknown, (command, unknown)


@on_each_page
def test_python_code_compiles_and_what_it_imports_is_there(page):
    for block in python_blocks(page):
        tree = ast.parse(block)
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, type_ignores=[]), str(page), "exec"), {})


def test_settings_have_every_key_with_its_default():
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    written = {name: None if cell == "–" else yaml.safe_load(cell) for name, cell in rows}
    assert len(written) == len(rows)
    theirs = {field.name for field in fields(TrainingArguments)} - set(FocalSAMTrainingArguments.__annotations__)
    ours = {field.name: field for each in OF_FINETUNE for field in fields(each) if field.name not in theirs}
    assert sorted(written) == sorted(ours)
    for name, field in ours.items():
        default = field.default if field.default is not MISSING else field.default_factory()
        default = ", ".join(default) if isinstance(default, list) else default
        assert written[name] == (None if default == "" else default), name


def test_every_page_with_python_code_is_run_below():
    assert [page for page in PAGES if python_blocks(page)] == [README, EXTENDING, HUB, OWN_IMAGES, PYTHON]


def test_choices_for_a_folder_are_printed_as_the_page_says(tmp_path, capsys):
    for name, count in (("cat", 6), ("lynx", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (40, 30), (40 * number, 0, 0)).save(tmp_path / name / f"{number}.png")
    (code,) = python_blocks(OWN_IMAGES)
    exec(code.replace('"path/to/images"', repr(str(tmp_path))), {})
    assert "training images of 2 classes" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.slow
def test_the_readmes_example_and_the_pages_python_and_hub_run_in_their_order(tmp_path):
    Image.new("L", (40, 30), 128).save(tmp_path / "photo.jpg")
    here = {'"runs/': f'"{tmp_path}/', '"user/name"': f'"{tmp_path}/digits"', '"photo.jpg"': f'"{tmp_path}/photo.jpg"'}
    code = "\n".join([python_blocks(README)[0], *python_blocks(PYTHON), *python_blocks(HUB), "print(classify.model)"])
    for theirs, ours in here.items():
        code = code.replace(theirs, ours)
    (tmp_path / "example.py").write_text(code)
    result = python(tmp_path / "example.py")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "LongTailClassifier" in result.stdout


@pytest.mark.slow
def test_the_tuning_method_of_ones_own_trains_is_saved_and_loads(tmp_path):
    *_, code = python_blocks(EXTENDING)
    assert len([line for line in code.splitlines() if line.strip()]) < 20
    use = f"""
import torch.nn.functional as F
from ft_focalsam import FocalSAM, LongTailClassifier, apply_tuning

model = LongTailClassifier.from_backbone("tiny_clip", ["a", "b"])
apply_tuning(model, "lora,shift")
parameters = [p for p in model.parameters() if p.requires_grad]
optimizer = FocalSAM(torch.optim.SGD(parameters, lr=0.1), model, class_counts=[3, 1])
images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 0])
for _ in range(4):
    optimizer.step(lambda: F.cross_entropy(model(images).logits, labels, reduction="none"), labels=labels)
assert optimizer.sharpness_step.backward_passes == 1
vectors = [p for name, p in model.named_parameters() if name.endswith("vector")]
assert len(vectors) == len(model.family.blocks(model.backbone)) and all(v.any() for v in vectors)
model.eval().save_pretrained({str(tmp_path)!r})
loaded = LongTailClassifier.from_pretrained({str(tmp_path)!r})
torch.testing.assert_close(loaded(images).logits, model(images).logits)
print("as the page says")
"""
    (tmp_path / "example.py").write_text(code + use)
    result = python(tmp_path / "example.py")
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip() == "as the page says"
