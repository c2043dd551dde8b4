"""Pushing a saved model: what arrives, what is refused, and what happens when a connection drops."""

import configparser
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hub.conftest import OTHER_TOKEN, READ_TOKEN, TOKEN, TOKENS
from hub_server import Fault
from huggingface_hub import ModelCard
from running import ENVIRONMENT, QUICKSTART, ROOT

from ft_focalsam import ImageClassifier
from ft_focalsam.hub import files_to_push
from ft_focalsam.hub.space import write_space

pytestmark = pytest.mark.slow

LARGE = ["accuracy_by_frequency.png", "adapter_model.safetensors", "model.safetensors"]


def test_a_run_that_pushes_leaves_model_report_and_card_on_the_hub(hub, pushed):
    content = hub.content("alice/trained")
    assert {"README.md", "run.json", "metrics.json", "per_class.csv", "report.html", "report.md", *LARGE} <= set(
        content
    )
    assert {"config.json", "adapter_config.json", "preprocessor_config.json"} <= set(content)
    assert any(path.startswith("report_images/") for path in content)
    for path, sent in content.items():
        if path != ".gitattributes":
            assert sent == (pushed.folder / path).read_bytes()
    assert hub.repositories["model", "alice/trained"].private
    assert re.search(r"The model is on the Hub: \S+/alice/trained/commit/\w{40}", pushed.output)


def test_what_the_trainer_keeps_for_itself_stays_here(hub, client, folder):
    (folder / "checkpoint-3").mkdir()
    torch.save({}, folder / "checkpoint-3" / "optimizer.pt")
    shutil.copy(folder / "model.safetensors", folder / "checkpoint-3" / "model.safetensors")
    torch.save({}, folder / "training_args.bin")
    (folder / "notes.txt").write_text("mine")
    assert client("ft-focalsam", "push", folder, "alice/checkpoints").status == 0
    pushed = set(hub.content("alice/checkpoints")) - {".gitattributes"}
    assert pushed == set(files_to_push(folder))
    assert not [path for path in pushed if "checkpoint" in path or path.endswith((".pt", ".bin", ".txt"))]
    assert not hub.repositories["model", "alice/checkpoints"].private


def test_a_second_push_sends_nothing_that_is_there(hub, client, folder):
    for _ in range(2):
        before = len(hub.sent())
        assert client("ft-focalsam", "push", folder, "alice/twice").status == 0
    assert hub.sent()[before:] == []
    assert len(hub.repositories["model", "alice/twice"].commits) == 2  # of the server itself, and of the first push


def test_a_private_repository_and_a_branch_of_it(hub, client, folder):
    result = client("ft-focalsam", "push", folder, "alice/branched", "--private", "--revision", "rho-0.1")
    assert result.status == 0, result.output
    repository = hub.repositories["model", "alice/branched"]
    assert repository.private
    assert set(repository.files("main")) == {".gitattributes"}
    assert "model.safetensors" in repository.files("rho-0.1")


def test_an_upload_goes_on_after_its_connection_dropped(hub, client, folder):
    """The client tries again by itself, and the server checks the hash of what then arrives."""
    change(folder)
    hub.faults.append(Fault("PUT", "/storage/", times=1, keep=5000))
    assert client("ft-focalsam", "push", folder, "alice/dropped").status == 0
    assert [status for method, _, status in hub.requests if method == "PUT"].count(0) == 1
    assert hub.content("alice/dropped")["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_a_push_that_was_cut_off_resumes(hub, client, folder):
    change(folder)
    before = len(hub.sent())
    hub.faults.append(Fault("POST", "/api/models/alice/resumed/commit/", times=1, keep=1000))
    cut = client("ft-focalsam", "push", folder, "alice/resumed")
    assert cut.status == 1 and "Traceback" not in cut.output
    assert cut.last.startswith("Error: The push to 'alice/resumed' was cut off (")
    assert cut.last.endswith("run it again by ft-focalsam push: what has arrived is not sent again.")
    arrived = hub.sent()[before:]
    assert len(arrived) == 1  # the weights that are new; the plot and the adapter were here already
    assert "model.safetensors" not in hub.content("alice/resumed")
    assert client("ft-focalsam", "push", folder, "alice/resumed").status == 0
    assert hub.sent()[before:] == arrived
    assert hub.content("alice/resumed")["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def change(folder):
    """Other weights, which the Hub has not seen yet."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[0]
    save_file(
        {**tensors, name: tensors[name] + torch.rand(())}, folder / "model.safetensors", metadata={"format": "pt"}
    )


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("alice/x", "hf_Unknown", "The Hub does not accept the token (401); log in again by `hf auth login`"),
        ("alice/x", READ_TOKEN, "The token may not write to 'alice/x' (403)"),
        ("bob/new", TOKEN, "The token may not write to 'bob/new' (403); give a repository of your own"),
        ("alice/trained", OTHER_TOKEN, "The token may not write to 'alice/trained' (403)"),
        ("alice/public", OTHER_TOKEN, "The token may not write to 'alice/public' (403)"),
        ("alice/x", "", "There is no token to push to 'alice/x' with; log in by `hf auth login`, or set HF_TOKEN"),
        ("alice/x/y", TOKEN, "The repository name 'alice/x/y' is none of the Hub's"),
        ("alice/a--b", TOKEN, "The repository name 'alice/a--b' is none of the Hub's"),
    ],
)  # fmt: skip
def test_a_push_that_is_refused_says_so_in_one_sentence(hub, client, pushed, repo, token, message):
    hub.make("model", "alice/public")
    before = len(hub.requests)
    result = client("ft-focalsam", "push", pushed.folder, repo, token=token)
    assert result.status == 1
    assert "Traceback" not in result.output
    assert result.last.startswith(f"Error: {message}")
    assert not [path for method, path, _ in hub.requests[before:] if method == "PUT" or "commit" in path]


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (404, {}, "The Hub has no repository 'alice/answered' that the token may see (404); check the name"),
        (409, {}, "The repository 'alice/answered' was changed by another push meanwhile, or its name"),
        (413, {}, "The Hub takes no push as large as this one to 'alice/answered' (413); leave report_images out"),
        (429, {"Retry-After": "60"}, "The Hub has had too many requests of yours (429); run the push to"),
        (503, {"Retry-After": "\x1b[2J"}, "The Hub is not available (503); run the push to 'alice/answered' again l"),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_success_is_told_with_what_to_do(hub, client, folder, status, headers, message):
    hub.faults.append(Fault("POST", "/api/models/alice/answered/commit/", 99, status=status, headers=headers))
    try:
        result = client("ft-focalsam", "push", folder, "alice/answered")
    finally:
        hub.faults.clear()
    assert result.status == 1 and "Traceback" not in result.output
    assert result.last.startswith(f"Error: {message}") and result.last.isprintable()
    assert ("again in 60 seconds" in result.last) == (status == 429)


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_nothing_that_a_run_writes_holds_the_token(hub, client, tmp_path, by):
    """Its checkpoints and its arguments among them, which the Trainer pickles with all they hold."""
    options = ("--output_dir", tmp_path / by, "--push_to_hub", "true", "--hub_model_id", f"alice/{by}")
    options += ("--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1", "--max_test_per_class", "10")
    token = ("--hub_token", TOKEN) if by == "argument" else ()
    result = client("recipes/finetune.py", QUICKSTART, *options, *token, token="" if token else TOKEN)
    assert result.status == 0, result.output[-3000:]
    written = {path: path.read_bytes() for path in (tmp_path / by).rglob("*") if path.is_file()}
    assert {"training_args.bin", "trainer_state.json", "run.json"} <= {path.name for path in written}
    assert [path for path, content in written.items() if TOKEN.encode() in content] == []
    assert TOKEN not in result.output
    assert not [path for path, content in hub.content(f"alice/{by}").items() if TOKEN.encode() in content]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda f: torch.save({}, f / "pytorch_model.bin"), "pytorch_model.bin' is a pickle, which runs code"),
        (lambda f: torch.save({}, f / "head.pt"), "head.pt' is a pickle"),
        (lambda f: torch.save({}, f / "adapter_model.safetensors"), "adapter_model.safetensors' is not in the format"),
        (lambda f: [p.unlink() for p in f.glob("*.safetensors")], "has no *.safetensors; give a folder that"),
        (lambda f: (f / "report.md").write_text(f"run by {TOKEN}"), "report.md' holds your token of the Hub"),
        (
            lambda f: (f / "README.md").write_text("---\nmodel-index: [{name: x}]\n---\n"),
            "Invalid metadata in README.md",
        ),
        (lambda f: shutil.rmtree(f), "does not exist; give one that recipes/finetune.py wrote"),
    ],
    ids=[
        "pickled weights",
        "a pickle",
        "a pickle by another name",
        "no weights",
        "a token",
        "a card that is none",
        "no folder",
    ],
)
def test_what_is_not_to_be_published_is_refused(hub, client, folder, prepare, message):
    prepare(folder)
    result = client("ft-focalsam", "push", folder, "alice/refused")
    assert result.status == 1
    assert result.last.startswith("Error: ") and message in result.last
    assert set(hub.content("alice/refused") if ("model", "alice/refused") in hub.repositories else {}) <= {
        ".gitattributes"
    }


def test_a_card_of_the_users_own_is_left_as_it_is(hub, client, folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    assert client("ft-focalsam", "push", folder, "alice/mine").status == 0
    assert hub.content("alice/mine")["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"


def test_the_trainer_pushes_during_training_and_at_its_end(hub, client, tmp_path):
    """With a data set and a loop of the user's own, not the recipe."""
    code = f"""
from ft_focalsam import FocalSAMTrainer, FocalSAMTrainingArguments, LongTailClassifier, apply_tuning
from ft_focalsam.data import TransformedImages, eval_transform, load_image_data
from ft_focalsam.models import load_image_processor

data = load_image_data("digits")
processor = load_image_processor("tiny_clip")
images = TransformedImages(data.test.select(range(0, 540, 9)), eval_transform(processor))
model = LongTailClassifier.from_backbone("tiny_clip", data.class_names)
apply_tuning(model, "lora")
args = FocalSAMTrainingArguments(
    {str(tmp_path / "own")!r}, max_steps=2, save_steps=1, eval_steps=2, eval_strategy="steps", rho=0.1,
    per_device_train_batch_size=16, report_to="none", push_to_hub=True, hub_model_id="own", hub_always_push=True,
)
trainer = FocalSAMTrainer(model, args, train_dataset=images, eval_dataset=images, processing_class=processor)
trainer.train()
trainer._finish_current_push()
print(trainer.push_to_hub(license="mit", dataset_tags="alice/digits").commit_message)
"""
    result = client(code=code)
    assert result.status == 0, result.output[-3000:]
    assert result.last == "End of training"
    repository = hub.repositories["model", "alice/own"]
    assert len(repository.commits) >= 3
    first = list(repository.commits.values())[1]
    assert "model.safetensors" in first and "README.md" not in first and "training_args.bin" not in first
    content = hub.content("alice/own")
    assert not [path for path in content if path.endswith((".bin", ".pt")) or "checkpoint" in path]
    state = json.loads((tmp_path / "own" / "checkpoint-2" / "trainer_state.json").read_text())
    logged = next(entry for entry in state["log_history"] if "eval_accuracy" in entry)
    card = ModelCard(content["README.md"].decode())
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["Accuracy, few-shot"] == logged["eval_few"]
    assert (card.data.license, card.data.datasets) == ("mit", "alice/digits")
    assert "ρ (rho) = 0.1, γ (focal_gamma) = 1, λ (focal_lambda) = 0.8" in card.text


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        (["--hub_model_id", "alice/x"], "", "There is no token to push to 'alice/x' with"),
        (["--hub_model_id", "a/b/c"], TOKEN, "The repository name 'a/b/c' is none of the Hub's"),
        (["--hub_model_id", "alice/x", "--hub_strategy", "checkpoint"], TOKEN, "hub_strategy is 'checkpoint', which"),
        (["--hub_model_id", "bob/x"], TOKEN, "The token may not write to 'bob/x' (403)"),
        (["--hub_model_id", "alice/x", "--hub_token", "hf_Unknown"], TOKEN, "The Hub does not accept the token (401)"),
    ],
)  # fmt: skip
def test_a_run_whose_push_cannot_work_ends_before_it_trains(client, tmp_path, options, token, message):
    command = ("recipes/finetune.py", "recipes/configs/quickstart.yaml", "--output_dir", tmp_path / "out")
    result = client(*command, "--push_to_hub", "true", *options, token=token)
    assert result.status == 1
    assert result.last.startswith(f"Error: {message}")
    assert "Traceback" not in result.output and "hf_Unknown" not in result.output
    assert "  loss " not in result.output and not (tmp_path / "out" / "model.safetensors").exists()


# ---- the demo ----


def test_a_space_brings_the_package_and_loads_the_model(hub, client, folder, tmp_path):
    result = client("ft-focalsam", "push", folder, "alice/shown", "--space", "alice/demo")
    assert result.status == 0, result.output[-3000:]
    assert re.search(r"Its demo is at \S+/alice/demo/commit/\w{40}\.$", result.last)
    content = hub.content("alice/demo", kind="space")
    front = yaml.safe_load(content["README.md"].decode().split("---")[1])
    assert (front["sdk"], front["app_file"], front["models"]) == ("gradio", "app.py", ["alice/shown"])
    assert 'MODEL = "alice/shown"' in content["app.py"].decode()
    modules = {path for path in content if path.startswith("ft_focalsam/") and path.endswith(".py")}
    of_package = (ROOT / "ft_focalsam").rglob("*.py")
    assert modules == {p.relative_to(ROOT).as_posix() for p in of_package if "space" not in p.parts}
    assert "ft_focalsam/assets/tiny_clip/model.safetensors" in content


def test_a_space_requires_what_the_package_does():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options"]["install_requires"].split()
    assert (ROOT / "ft_focalsam/assets/space/requirements.txt").read_text().split() == wanted


def test_the_demo_answers_over_http(pushed, images, tmp_path):
    """The app itself, asked as a browser would."""
    client_of = pytest.importorskip("gradio_client")
    write_space(tmp_path, str(pushed.folder))
    images[0].save(tmp_path / "digit.png")
    environment = {**ENVIRONMENT, "GRADIO_SERVER_PORT": str(free_port()), "GRADIO_ANALYTICS_ENABLED": "False"}
    app = subprocess.Popen(
        [sys.executable, "app.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        url = re.search(r"http://\S+", next(line for line in app.stdout if "http://" in line))[0]
        answer = client_of.Client(url, verbose=False).predict(client_of.handle_file(tmp_path / "digit.png"))
    finally:
        app.terminate()
        app.wait()
    guesses = ImageClassifier.from_pretrained(pushed.folder)(images[0])
    assert [each["label"] for each in answer["confidences"]] == [guess["label"] for guess in guesses]
    assert [each["confidence"] for each in answer["confidences"]] == pytest.approx([g["score"] for g in guesses])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_no_token_is_in_any_log_or_file(hub, client, pushed):
    """Looks at all that the tests above have printed, written and sent."""
    tokens = [token.encode() for token in TOKENS]
    files = [path for path in pushed.folder.rglob("*") if path.is_file()]
    assert len(files) > 10 and len(hub.blobs) > 10 and len(client.said) > 2
    for content in [*(path.read_bytes() for path in files), *hub.blobs.values(), *map(str.encode, client.said)]:
        assert not [token for token in tokens if token in content]
    command = json.loads((pushed.folder / "run.json").read_text())["command"]
    assert "hub" not in command and str(Path.home()) not in command and "--output_dir" not in command
