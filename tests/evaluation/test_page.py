"""The page says what the numbers are, whatever the names are, and needs nothing from outside."""

import base64
import re
from html.parser import HTMLParser

import datasets
import numpy as np
import pytest
from PIL import Image

from ft_focalsam.evaluation import (
    MethodRuns,
    Outcomes,
    Predictions,
    Verdict,
    accuracy_interval,
    compare_verdicts,
    format_table,
    write_comparison,
    write_page,
)
from ft_focalsam.evaluation.report.pictures import example, worst_confusions

NAMES = ["<script>alert(1)</script>", "Größe & „eins“", "a|b *c* $x$", "plain"]
COUNTS = np.array([200, 50, 30, 5])
LOG = [{"step": s, "loss": 3.0 / s, "eval_accuracy": s / 10} for s in range(1, 9)] + [{"train_loss": 1.0}]
WORDS = {"title": "A <b>title</b>", "log_history": LOG}
VOID = {"meta", "img", "source", "br", "link", "input"}


class Page(HTMLParser):
    """Tags in balance, attributes, rows of tables and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.addresses, self.text, self.rows = [], [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def verdict_of(strength, *, seed=0, counts=COUNTS, dataset="test <set>", images=120):
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 4
    logits = np.random.default_rng(9).normal(size=(images, 4)) + strength * np.eye(4)[labels]
    logits += 0.3 * rng.normal(size=logits.shape)
    ids = [f"{row}.png" for row in range(images)]
    return Verdict(Predictions.of_logits(logits, labels, ids=ids, class_names=NAMES, dataset=dataset), counts)


def seeds_of(verdicts):
    return {"test <set>": list(verdicts.values())}


@pytest.fixture(scope="module")
def pictures():
    images = [Image.new("RGB", (8, 6), (row, 0, 0)) for row in range(120)]
    return datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))


@pytest.fixture(scope="module")
def written(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("page")
    verdicts = {"zero <shot>": verdict_of(1.0), "ours & theirs": verdict_of(1.8)}
    write_page(folder, verdicts, **WORDS, pictures={"test <set>": pictures}, seeds=seeds_of(verdicts))
    return folder, verdicts


def test_page_is_whole_safe_and_alone(written):
    html = (written[0] / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert "script" not in page.tags and "b" not in page.tags
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert not re.search(r"https?://(?!www\.w3\.org)", re.sub(r"base64,[\w+/=]+", "", html))
    text = "".join(page.text)
    for name in (*NAMES, "zero <shot>", "ours & theirs", "A <b>title</b>"):
        assert name in text
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html


def test_drawings_are_there_in_light_and_dark(written):
    page = Page((written[0] / "report.html").read_text(encoding="utf-8"))
    drawings = [a.partition(",")[2] for a in page.addresses if a.startswith("data:image/svg+xml;base64,")]
    assert len(drawings) == 2 * 4  # frequency, calibration, loss, accuracy
    texts = [base64.b64decode(drawing).decode() for drawing in drawings]
    assert all("#15181c" not in light and dark != light for dark, light in zip(texts[::2], texts[1::2], strict=True))


def test_tables_hold_the_numbers(written):
    folder, verdicts = written
    rows = {row[0]: row[1:] for row in reversed(Page((folder / "report.html").read_text()).rows) if row}
    first, last = verdicts.values()
    value = [f"{100 * verdict.metrics['accuracy']:.1f}" for verdict in verdicts.values()]
    assert [cell[:4] for cell in rows["top-1"]] == value
    assert rows["worst class"] == [
        f"{100 * verdict.metrics['worst_class_accuracy']:.1f}" for verdict in verdicts.values()
    ]
    test = compare_verdicts(first, last)
    assert rows["images that only ours & theirs has right"] == [str(test.only_second)]
    for name, train, accuracy in zip(NAMES, COUNTS, last.class_accuracies, strict=True):
        # The first table with that name at its left may be that of the confusions.
        row = next(r for r in Page((folder / "report.html").read_text()).rows if r[0] == name and len(r) == 6)
        low, high = accuracy_interval(accuracy, 30)
        assert row[2:4] == [str(train), "30"]
        assert row[5] == f"{100 * accuracy:.1f}"
        assert f"<small>{100 * low:.1f} to {100 * high:.1f}</small>" in (folder / "report.html").read_text()


def test_tables_hold_the_number_of_test_images(written):
    rows = {row[0]: row[1:] for row in reversed(Page((written[0] / "report.html").read_text()).rows) if row}
    assert rows["test images"] == ["120", "120"]
    assert [rows[f"of {group}-shot classes"] for group in ("many", "medium", "few")] == [
        ["30"] * 2,
        ["60"] * 2,
        ["30"] * 2,
    ]


def test_markdown_says_the_same_and_its_pictures_exist(written):
    folder, verdicts = written
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert re.search(r"^# A \\<b\\>title\\</b\\>$", text, re.MULTILINE)
    assert "<script>" not in text and r"a\|b \*c\* \$x\$" in text
    links = re.findall(r"\]\((report_pictures/[\w.]+)\)", text)
    assert len(links) > 4 and all((folder / link).is_file() for link in links)
    last = list(verdicts.values())[-1]
    low, high = (100 * end for end in last.intervals["accuracy"])
    assert f"{100 * last.metrics['accuracy']:.1f} ({low:.1f} to {high:.1f}) |" in text
    tables = [block for block in text.split("\n\n") if block.startswith("| ")]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_same_verdicts_give_the_same_bytes(written, pictures, tmp_path):
    folder, verdicts = written
    write_page(tmp_path, verdicts, **WORDS, pictures={"test <set>": pictures}, seeds=seeds_of(verdicts))
    for name in ("report.html", "report.md"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_page_without_counts_pictures_or_mistakes(tmp_path):
    perfect = verdict_of(50.0, counts=None)
    write_page(tmp_path, {"run": perfect, "other": verdict_of(1.0, counts=None, dataset="second")})
    text = "".join(Page((tmp_path / "report.html").read_text()).text)
    assert "run has every image right." in text and "few-shot" not in text and "Test set second" in text


def test_two_seeds_show_their_runs_and_three_a_deviation(tmp_path):
    runs = [verdict_of(1.0, seed=seed) for seed in range(3)]
    for number in (2, 3):
        write_page(tmp_path, {"run": runs[0]}, seeds={"test <set>": runs[:number]})
        table = (tmp_path / "report.md").read_text().partition(f"## Over {number} seeds")[2].partition("\n\n## ")[0]
        values = [100 * run.metrics["few"] for run in runs[:number]]
        (cell,) = (line for line in table.splitlines() if line.startswith("| few-shot"))
        if number == 2:
            assert f"| {np.mean(values):.1f} ({values[0]:.1f}, {values[1]:.1f}) (" in cell and "±" not in table
            assert "not for another training, which takes three seeds or more" in table
        else:
            assert f"| {np.mean(values):.1f} ± {np.std(values, ddof=1):.1f} (" in cell.replace("\u00a0", " ")


def test_a_group_of_fewer_than_ten_images_is_named_with_its_number(tmp_path):
    verdicts = {name: verdict_of(strength, images=36) for name, strength in (("a", 1.0), ("b", 2.0))}
    sentences = [f"test <set>: the {group}-shot classes have 9 test images, too few" for group in ("many", "few")]
    write_page(tmp_path, verdicts)
    text = "".join(Page((tmp_path / "report.html").read_text()).text)
    methods = [MethodRuns(name, {0: verdict}, {0: 1.0}) for name, verdict in verdicts.items()]
    printed = write_comparison(tmp_path, methods, title="T", clock="time")
    compared = "".join(Page((tmp_path / "comparison.html").read_text()).text)
    table = format_table({name: verdict.record() for name, verdict in verdicts.items()})
    for shown in (text, compared, printed, table, *(" ".join(v.record()["notes"]) for v in verdicts.values())):
        assert [shown.count(sentence) for sentence in sentences] == [1, 1]
        assert "medium-shot classes have" not in shown


def test_runs_on_other_pictures_are_not_compared(tmp_path):
    with pytest.raises(ValueError, match="cannot be paired"):
        write_page(tmp_path, {"a": verdict_of(1.0), "b": verdict_of(1.0, images=80)})


def test_worst_confusions_against_a_count_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 3])
    predicted = np.array([1, 1, 0, 2, 0, 0, 2, 2, 1, -1])
    got = worst_confusions(Outcomes.of(predicted, labels, num_classes=4))
    assert [(c.label, c.predicted, c.rows.tolist()) for c in got] == [
        (1, 0, [4, 5]), (0, 1, [0, 1]), (2, 1, [8]), (0, 2, [3])
    ]  # fmt: skip
    assert [c.share for c in got] == [1, 0.5, 1 / 3, 0.25]


def test_examples_show_the_surest_mistakes_first():
    labels, logits = np.zeros(5, int), np.array([[0, 1.0], [0, 3.0], [0, 2.0], [9, 0], [0, 0.5]])
    (pair,) = worst_confusions(Outcomes.of(logits, labels, num_classes=2))
    assert pair.rows.tolist() == [1, 2, 0, 4]


def test_examples_are_scaled(pictures):
    assert example(pictures, 3).size == (112, 84)
    assert example(pictures, 3).getpixel((50, 50)) == (3, 0, 0)
    large = datasets.Dataset.from_dict({"image": [Image.new("L", (600, 300))]}, features=pictures.features)
    assert example(large, 0).size == (112, 56)
