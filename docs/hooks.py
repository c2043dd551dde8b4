"""Hooks of MkDocs, named in mkdocs.yml: pages from outside docs/, links into the repository, the API reference."""

import posixpath
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "ft_focalsam"
# Page of the site -> its file in the repository. Those of docs/ are added by MkDocs, those of reference/ below.
PAGES = {
    "index.md": "README.md",
    "results.md": "recipes/RESULTS.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
OVERVIEW = "reference/index.md"
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
KINDS = (griffe.Kind.CLASS, griffe.Kind.FUNCTION, griffe.Kind.ATTRIBUTE)  # order on a page of the reference


def on_files(files: Files, config: MkDocsConfig) -> Files:
    package = griffe.load(PACKAGE, search_paths=[ROOT])
    for name, source in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, OVERVIEW, content="\n".join(_overview(package, config))))
    for name in _modules(config):
        content = "\n\n".join(_directives(package[name]))
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    for page in files.documentation_pages():
        for path in _linked(page.content_string, _source(page.src_uri)):
            place = _place(path, config)
            if files.get_file_from_path(place) is None and (ROOT / path).is_file():
                files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_) -> str:
    """Turn links to files of the repository into links to the page made of that file, or to its copy."""
    source, folder = _source(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def relative(match: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        return "](" + posixpath.relpath(_place(path, config), folder or ".")

    return markdown if source.startswith("reference/") else LINK.sub(relative, markdown)


def on_page_content(content: str, page: Page, **_) -> str:
    """Show the types of docstrings, as in (`int`, *optional*), and their references, as in [`name`]."""
    if not page.file.src_uri.startswith("reference/"):
        return content
    content = re.sub(r"<code>([^<]*(?:`|\*optional\*)[^<]*)</code>", lambda match: _type(match[1]), content)
    return re.sub(r"\[(<code>[^<]*</code>)\]", r"\1", content)


def _type(text: str) -> str:
    text = re.sub(r", defaults to .*", "", text)  # the default of the signature stands behind it
    return re.sub(r"\*([^*`]+)\*", r"<em>\1</em>", re.sub(r"`([^`]+)`", r"<code>\1</code>", text))


def _source(page: str) -> str:
    """File of the repository that a page is made of."""
    return PAGES.get(page) or (page if page.startswith("reference/") else f"docs/{page}")


def _place(path: str, config: MkDocsConfig) -> str:
    """Where the site has a file of the repository: as a page, by the reference of its module, or as a copy."""
    pages = {source: page for page, source in PAGES.items()}
    folder, _, rest = path.partition("/")
    module = rest.partition("/")[0].removesuffix(".py")
    if path in pages or folder == "docs":
        return pages.get(path, rest)
    return f"reference/{module}.md" if folder == PACKAGE and module in _modules(config) else f"repository/{path}"


def _linked(markdown: str, source: str) -> list[str]:
    """Files of the repository that a page links to."""
    return [posixpath.normpath(posixpath.join(posixpath.dirname(source), target)) for target in LINK.findall(markdown)]


def _modules(config: MkDocsConfig) -> list[str]:
    """Parts of the package that the navigation has in the reference."""
    return [name for name in re.findall(r"'reference/(\w+)\.md'", str(config.nav)) if name != "index"]


def _public(module: griffe.Module) -> Iterator[griffe.Object | griffe.Alias]:
    """What `__all__` names, classes first; without `__all__` the documented classes and functions, of all files."""
    names = getattr(import_module(module.path), "__all__", None)
    if names is None:
        files = [file for file in module.modules.values() if not file.is_alias]
        yield from (member for file in files for member in _public(file))
        members = [member for member in module.members.values() if member.is_public and member.has_docstring]
        members = [member for member in members if member.is_class or member.is_function]
    else:  # a function may be named like its file; sub-packages have pages of their own
        members = [module[name] for name in names]
        members = [member.members.get(member.name) if member.is_module else member for member in members]
    members = [member for member in members if member is not None and member.kind in KINDS]
    yield from sorted(members, key=lambda member: KINDS.index(member.kind))


def _directives(module: griffe.Module) -> Iterator[str]:
    yield f"# {module.path}"
    yield f"::: {module.path}\n    options: {{members: false, show_root_heading: false, show_root_toc_entry: false}}"
    for member in _public(module):
        yield f"::: {member.path}"


def _overview(package: griffe.Module, config: MkDocsConfig) -> Iterator[str]:
    yield f"# API reference\n\nImport from `{PACKAGE}`:\n\n| name | what it is |\n|---|---|"
    for member in _public(package):
        yield f"| [`{member.name}`][{member.target_path}] | {_summary(member)} |"
    yield "\nand from its parts:\n\n| part | what it has |\n|---|---|"
    for name in _modules(config):
        yield f"| [`{PACKAGE}.{name}`]({name}.md) | {_summary(package[name])} |"


def _summary(item: griffe.Object | griffe.Alias) -> str:
    return re.split(r"(?<=\.)\s|\n\n", item.docstring.value if item.docstring else "")[0].replace("\n", " ")
