"""The table, the CSV and the drawing hold the numbers they were given."""

import csv
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from scipy.stats import binomtest

from ft_focalsam.data import exponential_counts, frequency_groups
from ft_focalsam.evaluation import (
    format_table,
    from_cell,
    per_class_rows,
    plot_accuracy_by_frequency,
    read_train_counts,
    write_per_class_csv,
)
from ft_focalsam.evaluation.report.frequency import frequency_figure
from ft_focalsam.evaluation.report.plots import LIGHT, curve

NAMES = ["Größe, „eins“", "cat", "dog"]
COUNTS = np.array([200, 50, 5])


def test_table_has_percent_with_one_decimal():
    text = format_table(
        {
            "zero-shot": {"accuracy": 0.8125, "mean_class_accuracy": 0.7, "many": 0.5, "medium": 0.25, "few": 0.0},
            "fine-tuned": {
                "eval_accuracy": 1.0,
                "eval_mean_class_accuracy": 0.9996,
                "eval_few": 0.1,
                "eval_loss": 3.0,
            },
        }
    )
    lines = text.splitlines()
    assert lines[0].split() == ["run", "top-1", "mean", "class", "many", "medium", "few"]
    assert lines[2].split() == ["zero-shot", "81.2", "70.0", "50.0", "25.0", "0.0"]
    assert lines[3].split() == ["fine-tuned", "100.0", "100.0", "-", "-", "10.0"]
    assert len({len(line) for line in lines}) == 1


def test_csv_reads_back(tmp_path):
    accuracy = np.array([0.5, np.nan, 1 / 3])
    rows = per_class_rows(NAMES, COUNTS, per_class_accuracy=accuracy, test_counts=np.array([10, 0, 3]))
    path = tmp_path / "new folder" / "per_class.csv"
    write_per_class_csv(path, rows)
    with path.open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    fields = ["class", "name", "group", "train_images", "test_images", "accuracy", "accuracy_low", "accuracy_high"]
    assert list(read[0]) == fields
    assert list(read[0].values())[:5] == ["0", NAMES[0], "many", "200", "10"]
    assert [row["group"] for row in read] == ["many", "medium", "few"]
    assert [read[1][field] for field in fields[5:]] == ["", "", ""]
    ends = [float(read[2][field]) for field in fields[6:]]
    assert ends == pytest.approx(binomtest(1, 3).proportion_ci(0.95, "exact"))
    assert float(read[2]["accuracy"]) == 1 / 3


def test_table_has_the_test_images_of_each_test_set_and_the_notes_of_each_run():
    first = {
        "accuracy": 0.5,
        "few": 0.25,
        "images": 1200,
        "group_images": {"few": 4},
        "notes": ["a: 4 are few.", "one"],
    }
    rows = {"x": first, "y": {**first, "notes": ["a: 4 are few."]}, "on b": {**first, "images": 80, "notes": []}}
    lines = format_table(rows).splitlines()
    assert [line.split() for line in lines[4:7:2]] == [
        ["test", "images", "1,200", "1,200", "-", "-", "4"],
        ["test", "images", "80", "80", "-", "-", "4"],
    ]
    assert lines[7:] == ["x, y: a: 4 are few.", "x: one"]


HOSTILE = [
    '=HYPERLINK("http://x","y")',
    "+1",
    "-1",
    "@x",
    " =1",
    "\t=1",
    "\r\n=1",
    "'=x",
    "'quoted'",
    "＝1",
    'a,b\n"c',
    "ok",
]


def test_no_name_is_a_formula_and_all_are_read_back(tmp_path):
    counts = np.arange(1, len(HOSTILE) + 1)
    rows = per_class_rows(HOSTILE, counts, per_class_accuracy=np.ones(len(HOSTILE)), test_counts=counts)
    write_per_class_csv(tmp_path / "per_class.csv", rows)
    with (tmp_path / "per_class.csv").open(encoding="utf-8", newline="") as file:
        cells = [row["name"] for row in csv.DictReader(file)]
    assert not [cell for cell in cells if cell.lstrip(" ")[0] in "=+-@\t\r\n＝＋－＠"]
    assert [from_cell(cell) for cell in cells] == HOSTILE
    assert cells[8:] == ["'quoted'", "'＝1", 'a,b\n"c', "ok"]
    assert read_train_counts(tmp_path / "per_class.csv", HOSTILE[::-1]).tolist() == counts[::-1].tolist()


def test_no_control_character_reaches_a_terminal():
    names = [
        "\x1b[2J\x07",
        "a\rb\nc",
        "safe\u202egnp.exe",
        "\u200fmark\x9b",
        "\udcff",
        "größe 猫 👩\u200d🔬 می\u200cشود",
    ]
    text = format_table({name: {"accuracy": 0.5, "notes": [f"{name}: few"]} for name in names})
    assert len(text.split("\n")) == 2 + 2 * len(names)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    assert names[-1] in text and "\\x1b[2J\\x07" in text


def test_rows_follow_the_thresholds():
    rows = per_class_rows(NAMES, COUNTS, per_class_accuracy=np.ones(3), test_counts=COUNTS, many=300, few=10)
    assert [row["group"] for row in rows] == ["medium", "medium", "few"]


@pytest.mark.parametrize(
    ("counts", "runs"),
    [
        (exponential_counts(10, 5000, imbalance_factor=100), 2),
        (exponential_counts(100, 500, imbalance_factor=100), 3),
        (np.full(10, 300), 1),
        (np.array([7]), 6),
    ],
    ids=["ten_classes", "hundred_classes", "balanced", "one_class"],
)
def test_drawing_is_a_png(tmp_path, recwarn, counts, runs):
    rng = np.random.default_rng(0)
    accuracies = {f"run {index}": rng.uniform(size=len(counts)) for index in range(runs)}
    if len(counts) > 1:
        accuracies["run 0"][1] = np.nan
    path = tmp_path / "figures" / "accuracy.png"
    names = [f"class {index}" for index in range(len(counts))]
    plot_accuracy_by_frequency(path, counts, accuracies=accuracies, class_names=names)
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width >= 1200
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert not [str(warning.message) for warning in recwarn.list if "matplotlib" in str(warning.filename)]


def _drawn(figure):
    """The figure's own box, and those of its axes with their texts and of its legend, in pixels, once laid out."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (legend,) = figure.legends
    return figure.bbox, [axes.get_tightbbox(renderer) for axes in figure.axes], legend.get_window_extent(renderer)


@pytest.mark.parametrize("name_length", [5, 30])
@pytest.mark.parametrize("num_runs", [1, 3, 6])
@pytest.mark.parametrize("size", [(5.2, 4), (9, 4.7)], ids=["narrow", "wide"])
def test_the_legend_of_accuracy_by_frequency_meets_nothing_and_is_whole(size, num_runs, name_length):
    counts = exponential_counts(8, 500, imbalance_factor=100)
    accuracies = {f"{index} {'x' * name_length}": np.linspace(0, 1, 8) for index in range(num_runs)}
    names, groups = [f"class {index} of a long name" for index in range(8)], frequency_groups(counts)
    figure = frequency_figure(LIGHT, counts, accuracies=accuracies, class_names=names, groups=groups, size=size)
    whole, axes, legend = _drawn(figure)
    assert not any(legend.overlaps(box) for box in axes)
    assert whole.x0 <= legend.x0 and legend.x1 <= whole.x1 and whole.y0 <= legend.y0


def test_the_legend_of_a_training_curve_meets_nothing():
    lines = {f"loss {index}": [(step, index + 1 / step) for step in range(1, 30)] for index in range(4)}
    whole, axes, legend = _drawn(curve(LIGHT, lines, "loss"))
    assert not any(legend.overlaps(box) for box in axes)
    assert whole.x0 <= legend.x0 and legend.x1 <= whole.x1 and whole.y0 <= legend.y0


def test_errors_name_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="There are 2 accuracies of ours for 3 classes"):
        plot_accuracy_by_frequency(tmp_path / "a.png", COUNTS, accuracies={"ours": np.ones(2)}, class_names=NAMES)
    with pytest.raises(ValueError, match="Class 1 has no training image"):
        plot_accuracy_by_frequency(
            tmp_path / "a.png", np.array([3, 0]), accuracies={"ours": np.ones(2)}, class_names=["a", "b"]
        )
    with pytest.raises(ValueError, match="0 runs are given"):
        plot_accuracy_by_frequency(tmp_path / "a.png", COUNTS, accuracies={}, class_names=NAMES)
    with pytest.raises(ValueError, match="There are 2 test counts for 3 classes"):
        per_class_rows(NAMES, COUNTS, per_class_accuracy=np.ones(3), test_counts=np.ones(2))
