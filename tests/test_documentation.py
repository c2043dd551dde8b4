"""README.md and docs/: their paths, links, options, defaults and code are those of the package."""

import ast
import re
from dataclasses import MISSING, fields

import pytest
import yaml
from running import ROOT, python
from transformers import TrainingArguments

from ft_focalsam import FocalSAMTrainingArguments, TuningOptions
from ft_focalsam.analysis.measure import MeasureOptions
from ft_focalsam.analysis.runs import ImageOptions
from ft_focalsam.cli.arguments import ModelArguments
from ft_focalsam.data import DataArguments

README, PYTHON, EXTENDING = ROOT / "README.md", ROOT / "docs/python.md", ROOT / "docs/extending.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("recipes", "accelerate_configs", "ft_focalsam", "tests", "docs")
OF_FINETUNE = (DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments)
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
    assert mentioned or page in (PYTHON, EXTENDING)
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
    known = {field.name for each in (*OF_FINETUNE, ImageOptions, MeasureOptions) for field in fields(each)}
    known |= {"help", "key"}  # of argparse, and as in `--key value`
    scripts = [*(ROOT / "recipes").glob("*.py"), *(ROOT / "ft_focalsam" / "retraining").glob("*.py")]
    for script in (*scripts, *(ROOT / "ft_focalsam" / "cli").glob("*.py")):
        source = script.read_text()
        known |= {*re.findall(r'"--(\w+)"', source), *re.findall(r"^    (\w+): .* = field\(", source, re.MULTILINE)}
    text = re.sub(r"(accelerate launch|torchrun|srun) .*?recipes/", "", page.read_text())  # options of the launchers
    assert [name for name in re.findall(r"--([a-z]\w+)", text) if name not in known] == []


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


@pytest.mark.slow
def test_the_readmes_example_and_the_python_page_run_in_their_order(tmp_path):
    code = "\n".join([python_blocks(README)[0], *python_blocks(PYTHON)])
    (tmp_path / "example.py").write_text(code.replace('"runs/', f'"{tmp_path}/'))
    result = python(tmp_path / "example.py")
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_the_tuning_method_of_ones_own_trains_is_saved_and_loads(tmp_path):
    (code,) = python_blocks(EXTENDING)
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
