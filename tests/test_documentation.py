"""The documentation: links that work on GitHub, pictures that are what commands print, folders kept apart."""

import ast
import html
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*.md") if "runs" not in path.parts)]
)


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "docs/tour.ipynb"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_relative_links_and_their_anchors_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {_slug(heading) for heading in headings}, link


def _slug(heading):
    """The anchor that GitHub and the site give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_every_page_has_one_title_of_its_own():
    titles = [re.findall(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)[:1] for page in PAGES]
    assert all(titles), [page for page, title in zip(PAGES, titles, strict=True) if not title]
    assert len({title[0] for title in titles}) == len(titles)


def printed_in(picture):
    """The lines of a terminal's picture, without the seconds that a conversion takes."""
    lines = {}
    for y, text in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>(.*?)</text>', picture, flags=re.DOTALL):
        lines.setdefault(y, []).append(html.unescape(text).replace("\xa0", " ").strip())
    whole = "\n".join(" ".join(parts) for parts in lines.values())
    return re.sub(r"in [\d.]+ s", "in some s", whole)


def test_the_readmes_picture_is_what_its_command_prints(tmp_path):
    draw = runpy.run_path(str(ROOT / "docs/pictures/terminal.py"))["draw"]
    draw(tmp_path / "now.svg")
    committed = (ROOT / "docs/pictures/conversion.svg").read_text(encoding="utf-8")
    now = (tmp_path / "now.svg").read_text(encoding="utf-8")
    assert printed_in(now) == printed_in(committed)
    assert "pfa-convert resnet50 --rule pfa" in printed_in(now)
    assert "--rule pfa" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", now).replace("https://www.textualize.io", "")


def test_the_picture_of_the_pathways_is_what_its_script_draws(tmp_path):
    from matplotlib.image import imread

    runpy.run_path(str(ROOT / "docs/pictures/pathways.py"))["draw"](tmp_path / "now.png")
    committed, now = imread(ROOT / "docs/pictures/pathways.png"), imread(tmp_path / "now.png")
    assert committed.shape == now.shape
    assert abs(committed - now).mean() < 0.02  # another version of the font


ORDER = (
    "errors seeds worker comparison atomic flops",
    "importing devices files",
    "registry",
    "feedback",
    "rules",
    "graph rule_facts symmetry",
    "convert",
    "audit data models",
    "alignment",
    "inspection saving testing zoo",
    "expansion",
    "recipe recipe_check recipe_files recipe_schema recipe_text",
    "training",
    "bench",
    "reporting",
    "commands",
    "cli",
    "__main__",
)
"""The package from below: a part imports from rows above its own and, of recipes, from its own."""

NARROW = {
    "feedback": {"errors", "registry"},
    "convert": {"errors", "feedback", "graph"},
    "audit": {"feedback", "graph"},
    "data": {"atomic", "errors", "registry"},
    "models": {"atomic", "errors", "importing", "registry"},
}
"""Parts that know less than their row would let them."""


def imported_by(path):
    """The parts of the package that a file imports when it runs."""
    found, checked = set(), set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            checked |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in checked and node.module:
            package, _, rest = node.module.partition(".")
            if package == "pfa_convert" and rest:
                found.add(rest.partition(".")[0])
    return found


def test_parts_import_only_what_is_below_them():
    package = ROOT / "pfa_convert"
    row = {part: index for index, parts in enumerate(ORDER) for part in parts.split()}
    seen = set()
    for path in package.rglob("*.py"):
        part = path.relative_to(package).parts[0].removesuffix(".py")
        imports = imported_by(path) - {part}
        if part == "__init__":
            assert imports <= {"errors"}, path
            continue
        seen.add(part)
        below = {other for other in row if row[other] < row[part]}
        beside = {other for other in row if row[other] == row[part] and part.startswith("recipe")}
        assert imports <= NARROW.get(part, below | beside), (path, imports)
    assert seen == set(row)
