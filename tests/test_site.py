"""The documentation site: it builds without a warning, has every page and public name, and asks no other host."""

import inspect
import re
from html.parser import HTMLParser
from importlib import import_module

import pytest
from running import ROOT, python

import ft_focalsam

pytest.importorskip("material", reason="mkdocs-material is in the extra `docs`")
pytest.importorskip("mkdocstrings_handlers.python", reason="mkdocstrings[python] is in the extra `docs`")
pytestmark = pytest.mark.slow
NAVIGATION = re.search(r"^nav:\n(?:[ ].*\n)+", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)[0]


class Tags(HTMLParser):
    """What a page loads by itself, where its links go, and the anchors it has."""

    def __init__(self, page):
        super().__init__()
        self.loaded, self.links, self.anchors = [], [], set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        self.loaded += [attributes["src"]] if "src" in attributes else []
        if "href" in attributes:
            (self.links if tag == "a" else self.loaded).append(attributes["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (folder / "build.py").write_text("from mkdocs.__main__ import cli\ncli()\n")
    result = python(folder / "build.py", "build", "--strict", "--quiet", "--site-dir", folder / "site")
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / "site"


def test_each_page_of_the_navigation_is_built_and_loads_nothing_from_elsewhere(site):
    pages = re.findall(r"[\w/]+\.md", NAVIGATION)
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(pages)
    for page in pages:
        tags = Tags((site / page).with_suffix(".html"))
        assert len(tags.loaded) > 3
        assert [address for address in tags.loaded if re.match(r"(https?:)?//", address)] == []


def test_links_lead_to_files_and_anchors_of_the_site(site):
    pages = {page: Tags(page) for page in site.rglob("*.html") if page.name != "404.html"}
    for page, tags in pages.items():
        for link in tags.links:
            path, _, anchor = link.partition("#")
            if not re.match(r"\w+:", link):
                target = (page.parent / path).resolve() if path else page
                assert (target / "index.html" if target.is_dir() else target).is_file(), (page.name, link)
                assert not anchor or target.suffix != ".html" or anchor in pages[target].anchors, (page.name, link)


def test_the_reference_has_every_public_name(site):
    overview = (site / "reference/index.html").read_text(encoding="utf-8")
    for name in ft_focalsam.__all__:
        item = getattr(ft_focalsam, name)
        if not inspect.ismodule(item):
            module = item.__module__.split(".")[1]
            assert f'href="{module}.html#ft_focalsam.{module}.{name}"' in overview
    packages = {path.parent.name for path in (ROOT / "ft_focalsam").glob("*/__init__.py")} - {"base", "cli"}
    assert packages <= set(re.findall(r"reference/(\w+)\.md", NAVIGATION))
    for package in packages:
        anchors = Tags(site / f"reference/{package}.html").anchors
        for name in getattr(import_module(f"ft_focalsam.{package}"), "__all__", ()):
            path = f"ft_focalsam.{package}.{name}"
            assert anchors & {path, f"{path}.{name}"}, path  # the latter where a function is named like its file


def test_types_of_docstrings_are_shown_as_code(site):
    page = (site / "reference/sharpness.html").read_text(encoding="utf-8")
    text = re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)
    assert "(<code>nn.Module</code>)" in re.sub(r"\s+|</?span[^>]*>", "", text)
    assert "<em>optional</em>" in text and "*optional*" not in text
    assert "`" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
