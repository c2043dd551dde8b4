"""The page in a browser: it fits, its own script runs and no other, images open and tables sort."""

import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from ft_focalsam.evaluation import EvalResult, Predictions, write_page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra `test`")
NAMES = ["<img src=x onerror=document.title='taken'>", "b", "a long name of a class", "d"]


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    rng, labels = np.random.default_rng(0), np.arange(80) % 4
    images = [Image.new("RGB", (64, 48), (row, 0, 0)) for row in range(80)]
    images = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    ids = [f"{row}.png" for row in range(80)]
    runs = {}
    for name, strength in (("before", 0.5), ("after", 1.5)):
        logits = rng.normal(size=(80, 4)) + strength * np.eye(4)[labels]
        predictions = Predictions.of_logits(logits, labels, ids=ids, class_names=NAMES, dataset="test")
        runs[name] = EvalResult(predictions, np.array([1200, 50, 9, 3]))
    log = [{"step": step, "loss": 1 / step, "eval_loss": 2 / step} for step in range(1, 5)]
    write_page(folder, runs, images={"test": images}, log_history=log)
    return (folder / "report.html").as_uri()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=str)
def page(request, browser, address):
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.messages = []
    page.on("console", lambda message: page.messages.append(message.text))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    page.goto(address)
    yield page
    page.close()


def test_page_fits_its_window_and_runs_no_foreign_script(page):
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    assert page.title() == "How good the model is" and page.messages == []
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    page.wait_for_function("document.images[document.images.length - 1].complete")
    assert page.title() == "How good the model is"  # the policy holds even where escaping would fail
    assert any("Content Security Policy" in message for message in page.messages)
    expected = {"dark": "rgb(21, 24, 28)", "light": "rgb(255, 255, 255)"}
    is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == expected["dark" if is_dark else "light"]


def test_an_image_opens_large_and_closes(page):
    button = page.locator("button.zoom").first
    large = page.locator(f"#{button.get_attribute('popovertarget')}")
    assert not large.is_visible()
    button.click()
    assert large.is_visible() and ".png" in large.inner_text()
    width = large.locator("img").bounding_box()["width"]
    assert button.bounding_box()["width"] < width <= page.viewport_size["width"]
    page.keyboard.press("Escape")
    assert not large.is_visible()


@pytest.mark.parametrize(("title", "values"), [("training images", [3, 9, 50, 1200]), ("difference", None)])
def test_a_click_on_a_title_sorts(page, title, values):
    table = page.locator("table.sortable")
    column = [text.strip() for text in table.locator("thead th").all_inner_texts()].index(title)

    def shown():
        cells = table.locator(f"tbody tr > :nth-child({column + 1})").all_inner_texts()
        return [float(cell.split()[0].replace(",", "").replace("−", "-")) for cell in cells]

    before, button = shown(), table.locator("thead button").nth(column)
    assert before != sorted(before)
    button.click()
    assert shown() == sorted(before) and (values is None or shown() == values)
    assert table.locator("thead th").nth(column).get_attribute("aria-sort") == "ascending"
    button.click()
    assert shown() == sorted(before, reverse=True)
