"""The page says what the numbers are, whatever the names are, and needs nothing from outside."""

import base64
import hashlib
import re
from dataclasses import replace
from datetime import datetime, timezone
from html.parser import HTMLParser
from xml.etree import ElementTree

import datasets
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from ft_focalsam.evaluation import (
    EvalResult,
    MethodRuns,
    Predictions,
    SampleResults,
    accuracy_interval,
    compare_results,
    format_table,
    write_comparison,
    write_page,
)
from ft_focalsam.evaluation.predictions import FORMAT
from ft_focalsam.evaluation.report.html import SCRIPT
from ft_focalsam.evaluation.report.images import example, scaled, worst_confusions

pytestmark = pytest.mark.slow

NAMES = ["<script>alert(1)</script>", "Größe & „eins“", "a|b *c* $x$", "plain"]
COUNTS = np.array([200, 50, 30, 5])
LOG = [{"step": s, "loss": 3.0 / s, "eval_accuracy": s / 10} for s in range(1, 9)] + [{"train_loss": 1.0}]
RUN = {
    "method": {
        **{"sharpness": "focal_sam", "rho": 0.05, "focal_gamma": 1.5, "focal_lambda": 0.7, "loss": "<ce>"},
        **{"train_sampler": "instance", "num_train_epochs": 20.0, "max_steps": -1, "seed": 3},
    },
    "data": {"name": "path/to/<photos>", "notes": ["2 of 9 training images cannot be read & are <skipped>"]},
    "model": {"tuning": "lora", "parameters": 200, "trained_parameters": 5},
    "resolved": {"backbone": "tiny<clip>", "validation_fraction": 0.1},
    "date": "2026-02-03T04:05:06+00:00",
    "versions": {"ft_focalsam": "9.9"},
}
NOW = datetime(2026, 5, 6, 7, 8, tzinfo=timezone.utc)  # noqa: UP017, which Python 3.10 lacks
WORDS = {"title": "A <b>title</b>", "log_history": LOG, "run": RUN, "written": NOW}
VOID = {"meta", "img", "source", "br", "link", "input"}


class Page(HTMLParser):
    """Tags in balance, attributes, ids and links, rows of tables, scripts and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.addresses, self.text, self.rows = [], [], [], [], [], []
        self.ids, self.targets, self.scripts = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.addresses += [value for name, value in attrs if name in ("src", "srcset")]
        self.ids += [value for name, value in attrs if name == "id"]
        self.targets += [value for name, value in attrs if name == "popovertarget"]
        self.targets += [value.removeprefix("#") for name, value in attrs if name == "href"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.text).append(data)
        if self.open and (self.open[-1] in ("td", "th") or self.open[-2:] == ["th", "span"]):
            self.rows[-1][-1] += data


def check_safe(page):
    """No tag or script but the page's own, nothing from outside, and every link leads somewhere."""
    assert page.open == [] and "b" not in page.tags and not {"onerror", "onclick"} & set(page.attributes)
    assert page.scripts == [SCRIPT] and page.tags.count("script") == 1
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert len(set(page.ids)) == len(page.ids) and page.targets and set(page.targets) <= set(page.ids)


def verdict_of(strength, *, seed=0, counts=COUNTS, dataset="test <set>", images=120):
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 4
    logits = np.random.default_rng(9).normal(size=(images, 4)) + strength * np.eye(4)[labels]
    logits += 0.3 * rng.normal(size=logits.shape)
    ids = [f"{row}.png" for row in range(images)]
    return EvalResult(Predictions.of_logits(logits, labels, ids=ids, class_names=NAMES, dataset=dataset), counts)


def seeds_of(results):
    return {"test <set>": list(results.values())}


@pytest.fixture(scope="module")
def images():
    images = [Image.new("RGB", (8, 6), (row, 0, 0)) for row in range(120)]
    return datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))


@pytest.fixture(scope="module")
def written(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("page")
    results = {"zero <shot>": verdict_of(1.0), "ours & theirs": verdict_of(1.8)}
    write_page(folder, results, **WORDS, images={"test <set>": images}, seeds=seeds_of(results))
    return folder, results


def test_page_is_whole_safe_and_alone(written):
    html = (written[0] / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    check_safe(page)
    assert base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode() in html  # the one that may run
    assert not re.search(r"https?://(?!www\.w3\.org)", re.sub(r"base64,[\w+/=]+", "", html))
    text = "".join(page.text)
    for name in (*NAMES, "zero <shot>", "ours & theirs", "A <b>title</b>"):
        assert name in text
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html


def test_drawings_are_there_in_light_and_dark(written):
    page = Page((written[0] / "report.html").read_text(encoding="utf-8"))
    drawings = [a.partition(",")[2] for a in page.addresses if a.startswith("data:image/svg+xml;base64,")]
    assert len(drawings) == 2 * 4  # frequency, calibration, loss, accuracy; each dark and light
    texts = [base64.b64decode(drawing).decode() for drawing in drawings]
    assert all("#15181c" not in light and dark != light for dark, light in zip(texts[::2], texts[1::2], strict=True))


def test_tables_hold_the_numbers(written):
    folder, results = written
    page = Page((folder / "report.html").read_text())
    rows = {row[0]: row[1:] for row in reversed(page.rows) if row}
    first, last = results.values()
    test = compare_results(first, last)
    for metric, title in (("accuracy", "top-1"), ("worst_class_accuracy", "worst class"), ("few", "few-shot")):
        values = [first.metrics[metric], last.metrics[metric]]
        shown = [f"{100 * value:.1f}" for value in values] + [f"{100 * (values[1] - values[0]):+.1f}"]
        cells = [cell[: cell.index(".") + 2] for cell in rows[title][:3]]  # without the intervals below
        assert cells == [text.replace("-", "−") for text in shown]
    told = f"ours & theirs alone is right on {test.only_second} and zero <shot> alone on {test.only_first};"
    assert told in "".join(page.text)
    for name, train, accuracy in zip(NAMES, COUNTS, last.class_accuracies, strict=True):
        # The first table with that name at its left may be that of the confusions.
        row = next(r for r in page.rows if r[:1] == [name] and r[-1] == "30" and len(r) == 7)
        low, high = accuracy_interval(accuracy, 30)
        assert row[5:] == [str(train), "30"]
        assert row[2] == f"{100 * accuracy:.1f}"
        assert f"<small>{100 * low:.1f} to {100 * high:.1f}</small>" in (folder / "report.html").read_text()


def test_page_has_no_error_of_an_html5_parser(written):
    html5lib = pytest.importorskip("html5lib", reason="html5lib is in the extra `test`")
    html = (written[0] / "report.html").read_text(encoding="utf-8")
    html5lib.HTMLParser(strict=True).parse(html)
    with pytest.raises(html5lib.html5parser.ParseError):
        html5lib.HTMLParser(strict=True).parse(html.replace("</table>", "", 1))


def test_settings_and_what_was_told_about_the_data_are_shown(written):
    for name in ("report.html", "report.md"):
        text = (written[0] / name).read_text(encoding="utf-8")
        text = "".join(Page(text).text) if name.endswith("html") else text.replace("\\", "")
        for shown in (
            "Focal-SAM with ρ (rho) = 0.05, γ (focal_gamma) = 1.5, λ (focal_lambda) = 0.7; backbone tiny<clip>; "
            "tuning lora; 20 epochs; seed 3; trained on 2026-02-03 04:05 UTC.",
            "2 of 9 training images cannot be read & are <skipped>",
            "5 of 200 (2.50%)",
            "ft_focalsam 9.9",
            "Written 2026-05-06 07:08 UTC with ft_focalsam",
        ):
            assert shown in text
        assert "path/to" not in text


def test_confusion_matrix_counts_every_image(written):
    folder, results = written
    outcomes = list(results.values())[-1].outcomes
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    start = page.rows.index(["", *NAMES])
    for label, row in enumerate(page.rows[start + 1 : start + 1 + len(NAMES)]):
        pairs = zip(outcomes.labels, outcomes.predicted, strict=True)
        taken_for = [predicted for own, predicted in pairs if own == label]
        counts = [taken_for.count(predicted) for predicted in range(len(NAMES))]
        assert row == [NAMES[label], *(str(count) if count else "" for count in counts)]


def test_examples_name_their_files_and_open_large_ones(written):
    html = (written[0] / "report.html").read_text(encoding="utf-8")
    outcomes = list(written[1].values())[-1].outcomes
    shown = [row for confusion in worst_confusions(outcomes) for row in confusion.rows[:4]]
    places = re.findall(r'<div popover id="([\w-]+)".*?<p>([^<]+)</p>', html)
    assert [file for _, file in places] == [f"{row}.png" for row in shown]
    for place, _ in places:
        assert html.count(f'popovertarget="{place}"') == 2  # opens and closes it


def test_comparison_tells_classes_first(tmp_path):
    runs = {"plain": [verdict_of(1.0, seed=s) for s in range(3)], "SAM": [verdict_of(1.8, seed=s) for s in range(3)]}
    methods = [MethodRuns(name, dict(enumerate(each)), dict.fromkeys(range(3), 1.0)) for name, each in runs.items()]
    write_comparison(tmp_path, methods, title="T", clock="time", written=NOW)
    page = Page((tmp_path / "comparison.html").read_text(encoding="utf-8"))
    check_safe(page)
    (start,) = (index for index, row in enumerate(page.rows) if row[:2] == ["class", "SAM minus plain"])
    assert start == 0
    expected = {}
    for label, name in enumerate(NAMES):
        gains = [b.class_accuracies[label] - a.class_accuracies[label] for a, b in zip(*runs.values(), strict=True)]
        expected[name] = (np.mean(gains), f"{100 * np.mean(gains):+.1f} ± {100 * np.std(gains, ddof=1):.1f}")
    shown = page.rows[1 : 1 + len(NAMES)]
    gains = [expected[row[0]][0] for row in shown]
    assert set(expected) == {row[0] for row in shown} and np.all(np.diff(gains) < 1e-9)
    for name, cell, *_ in shown:
        assert cell.replace("\u00a0", " ").startswith(expected[name][1].replace("-", "−"))
    text = "".join(page.text)
    assert "SAM against plain: " in text and "Written 2026-05-06 07:08 UTC" in text


def test_tables_hold_the_number_of_test_images(written):
    rows = {row[0]: row[1:] for row in reversed(Page((written[0] / "report.html").read_text()).rows) if row}
    titles = ("top-1", "many-shot", "medium-shot", "few-shot", "worst class")
    assert [rows[title][-1] for title in titles] == ["120", "30", "60", "30", "120"]


def test_markdown_says_the_same_and_its_images_exist(written):
    folder, results = written
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert re.search(r"^# A \\<b\\>title\\</b\\>$", text, re.MULTILINE)
    assert "<script>" not in text and r"a\|b \*c\* \$x\$" in text
    links = re.findall(r"\]\((report_images/[\w.]+)\)", text)
    assert len(links) == len(set(links)) > 4 and all((folder / link).is_file() for link in links)
    last = list(results.values())[-1]
    low, high = (100 * end for end in last.intervals["accuracy"])
    assert f"{100 * last.metrics['accuracy']:.1f} ({low:.1f} to {high:.1f}) |" in text
    tables = [block for block in text.split("\n\n") if block.startswith("| ")]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_same_verdicts_give_the_same_bytes(written, images, tmp_path):
    folder, results = written
    write_page(tmp_path, results, **WORDS, images={"test <set>": images}, seeds=seeds_of(results))
    for name in ("report.html", "report.md"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_page_without_counts_images_or_mistakes(tmp_path):
    perfect = verdict_of(50.0, counts=None)
    write_page(tmp_path, {"run": perfect, "other": verdict_of(1.0, counts=None, dataset="second")})
    text = "".join(Page((tmp_path / "report.html").read_text()).text)
    assert "run has every image right." in text and "few-shot" not in text and "Test set second" in text


def test_page_of_predicted_classes_says_nothing_of_confidence(tmp_path, images):
    known = verdict_of(1.0)
    said = replace(known.predictions, log_probabilities=None, predicted=known.outcomes.predicted)
    write_page(tmp_path, {"run": EvalResult(said, COUNTS)}, images={"test <set>": images})
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "What is confused" in text and "confidence unknown" in text and "Calibration" not in text


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
    results = {name: verdict_of(strength, images=36) for name, strength in (("a", 1.0), ("b", 2.0))}
    sentences = [f"test <set>: the {group}-shot classes have 9 test images, too few" for group in ("many", "few")]
    write_page(tmp_path, results)
    text = "".join(Page((tmp_path / "report.html").read_text()).text)
    methods = [MethodRuns(name, {0: result}, {0: 1.0}) for name, result in results.items()]
    printed = write_comparison(tmp_path, methods, title="T", clock="time")
    compared = "".join(Page((tmp_path / "comparison.html").read_text()).text)
    table = format_table({name: result.record() for name, result in results.items()})
    for shown in (text, compared, printed, table, *(" ".join(v.record()["notes"]) for v in results.values())):
        assert [shown.count(sentence) for sentence in sentences] == [1, 1]
        assert "medium-shot classes have" not in shown


HOSTILE = [
    "</script><script>alert(1)</script>",
    "a|b\n| c | d |",
    "```\n# Heading\n```",
    "\"' onerror=alert(1)",
    "\x1b[31mred\x00\x07",
    "safe\u202egnp.exe",
    "-- ]]> --><b>",
    "- item",
]


def test_no_name_breaks_out_of_the_report(tmp_path):
    counts = np.arange(8, 0, -1) * 20
    rng, labels = np.random.default_rng(0), np.arange(80) % 8
    logits = rng.normal(size=(80, 8)) + np.eye(8)[labels]
    predictions = Predictions.of_logits(
        logits, labels, ids=list(map(str, labels)), class_names=HOSTILE, dataset=HOSTILE[0], model=HOSTILE[1]
    )
    results = {name: EvalResult(predictions, counts, notes=[name]) for name in HOSTILE[:6]}
    write_page(tmp_path, results, title=HOSTILE[2], seeds={HOSTILE[0]: list(results.values())[:2]})
    methods = [MethodRuns(name, {0: result}, {0: 1.0 + index}) for index, (name, result) in enumerate(results.items())]
    write_comparison(tmp_path, methods, title=HOSTILE[7], clock="time")
    markdown_it = pytest.importorskip("markdown_it")  # transformers brings it
    for name in ("report", "comparison"):
        html = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        page = Page(html)
        check_safe(page)
        drawings = [a.partition(",")[2] for a in page.addresses if a.startswith("data:image/svg+xml;base64,")]
        for drawing in drawings:
            ElementTree.fromstring(base64.b64decode(drawing))
        markdown = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
        tokens = markdown_it.MarkdownIt().enable("table").parse(markdown)
        kinds = {token.type for token in tokens} | {c.type for token in tokens for c in token.children or ()}
        assert not kinds & {"html_block", "html_inline", "fence", "code_block", "code_inline", "bullet_list_open"}
        assert markdown.count("\n#") + 1 == sum(token.type == "heading_open" for token in tokens)
        for text in (html, markdown):
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


def test_what_numbers_rest_on_is_told():
    labels = np.arange(40) % 4
    logits = np.random.default_rng(0).normal(size=(40, 4)) + 2 * np.eye(4)[labels]

    def warnings(logits, labels=labels, counts=COUNTS):
        ids = list(map(str, range(len(labels))))
        return EvalResult(
            Predictions.of_logits(logits, labels, ids=ids, class_names=NAMES, dataset="d"), counts
        ).warnings

    broken = logits.copy()
    broken[:2, 1], broken[2, 0], broken[3, 0] = np.nan, np.inf, -np.inf
    assert warnings(logits) == []
    assert warnings(broken) == ["d: images with NaN or infinite logits: 3; they count as wrong, check the model."]
    assert warnings(0 * logits) == [
        "d: images with several equally high logits: 40; the first of these classes counts."
    ]
    assert warnings(logits[labels < 3], labels[labels < 3]) == [
        "d: the few-shot classes have no test image, and so no accuracy.",
        "d: classes without a test image: 1 of 4; no mean counts them.",
    ]
    assert warnings(logits, counts=np.array([300, 200, 300, 200])) == []  # groups without a class are no gap
    assert warnings(logits[:1], labels[:1], counts=None)[0].startswith(
        "d: all classes together have 1 test image, too"
    )
    with pytest.raises(ValueError, match="2 class counts for the 4 classes of the predictions on 'd'"):
        warnings(logits, counts=np.ones(2))
    with pytest.raises(ValueError, match=r"test labels have the value 0\.5"):
        warnings(logits, labels + 0.5)
    with pytest.raises(ValueError, match="The test set has no image"):
        warnings(logits[:0], labels[:0])


@pytest.mark.parametrize("damage", ["nothing", "names", "shapes"])
def test_damaged_predictions_are_named(tmp_path, damage):
    texts = {"ids": '["0"]', "class_names": '["a", "b"]', "dataset": "", "model": ""}
    texts |= {"names": {"class_names": '["a'}, "shapes": {"ids": "[]"}}.get(damage, {})
    texts = {"format": FORMAT} | ({} if damage == "nothing" else texts)
    arrays = {"log_probabilities": np.zeros((1, 2), np.float32), "labels": np.zeros(1, np.int64)}
    save_file(arrays, tmp_path / "p.safetensors", metadata=texts)
    with pytest.raises(ValueError, match=r"p\.safetensors' is damaged \(.*\); evaluate the model again"):
        Predictions.load(tmp_path / "p.safetensors")


def test_runs_on_other_images_are_not_compared(tmp_path):
    with pytest.raises(ValueError, match="cannot be paired"):
        write_page(tmp_path, {"a": verdict_of(1.0), "b": verdict_of(1.0, images=80)})


def test_worst_confusions_against_a_count_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 3])
    predicted = np.array([1, 1, 0, 2, 0, 0, 2, 2, 1, -1])
    got = worst_confusions(SampleResults.of(predicted, labels, num_classes=4))
    assert [(c.label, c.predicted, c.rows.tolist()) for c in got] == [
        (1, 0, [4, 5]), (0, 1, [0, 1]), (2, 1, [8]), (0, 2, [3])
    ]  # fmt: skip
    assert [c.share for c in got] == [1, 0.5, 1 / 3, 0.25]


def test_examples_show_the_surest_mistakes_first():
    labels, logits = np.zeros(5, int), np.array([[0, 1.0], [0, 3.0], [0, 2.0], [9, 0], [0, 0.5]])
    (pair,) = worst_confusions(SampleResults.of(logits, labels, num_classes=2))
    assert pair.rows.tolist() == [1, 2, 0, 4]


def test_examples_are_scaled(images):
    assert example(images, 3).size == (448, 336) and scaled(example(images, 3), 112).size == (112, 84)
    assert example(images, 3).getpixel((50, 50)) == (3, 0, 0)
    large = datasets.Dataset.from_dict({"image": [Image.new("L", (600, 300))]}, features=images.features)
    assert example(large, 0).size == (448, 224)
