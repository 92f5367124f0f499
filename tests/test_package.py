"""The package as a whole: its floors, its wheel, its public names, its index, and the commands that its pages show."""

import ast
import importlib
import importlib.metadata
import inspect
import itertools
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

import pocketzoo
from pocketzoo import cli
from pocketzoo.zoo import index

ROOT = Path(__file__).parents[1]
FLOORS = (
    "errors",
    "graph",
    "zoo",
    "profiler",
    "packing",
    "training",
    "search",
    "compress",
    "leaderboards",
    "commands",
)  # each imports only those before it
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
SOURCES = [*ROOT.glob("*.py"), *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


# -- floors --------------------------------------------------------------------------------------------------------


def floor_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Dotted names below pocketzoo that a file imports, anywhere in it, relatively or not."""
    package = ["pocketzoo", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("pocketzoo.") for name in names if name.startswith("pocketzoo."))


def test_the_reader_of_imports_sees_each_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "graph").mkdir()
    file = tmp_path / "graph" / "x.py"
    file.write_text(
        "import os, pocketzoo.zoo.layers\nfrom pocketzoo import search\nfrom .sizes import a\n"
        "def f():\n    from ..errors import b\n    from .. import training, zoo\n"
    )
    assert sorted(imported(file)) == ["errors.b", "graph.sizes.a", "search", "training", "zoo", "zoo.layers"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_lead_downwards(path: Path) -> None:
    floor = floor_of(path)
    reached = {name.partition(".")[0] for name in imported(path)}
    if floor in FLOORS:
        above = FLOORS[FLOORS.index(floor) + 1 :]
        assert not reached & set(above), f"{floor} imports from a floor above it"
        if floor in ("search", "compress"):  # one floor: neither knows the other
            assert not reached & {"search", "compress"} - {floor}
    if floor != "__main__":
        assert "cli" not in reached, "the command line is for people, not for modules"


def test_every_package_has_a_floor() -> None:
    assert set(PACKAGES) <= set(FLOORS)
    assert not [path for path in SOURCES if path.stem in ("utils", "util", "helpers", "common")]


# -- the wheel -----------------------------------------------------------------------------------------------------


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "any_name"
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=unwanted)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    kinds = ("*.json", "*.csv", "*.jsonl", "*.html", "*.css", "*.js")
    data = [path for name in PACKAGES for kind in kinds for path in (ROOT / name).rglob(kind)]
    assert held == {f"pocketzoo/{path.relative_to(ROOT).as_posix()}" for path in (*SOURCES, *data, ROOT / "py.typed")}
    assert any(name.endswith("licenses/LICENSE") for name in names)


# -- what users import ---------------------------------------------------------------------------------------------


def modules() -> list[str]:
    found = pkgutil.walk_packages(pocketzoo.__path__, "pocketzoo.")
    return [module.name for module in found if module.name != "pocketzoo.__main__"]


def test_public_names_survive_the_import_of_every_module() -> None:
    """An imported submodule becomes an attribute of its package, over a function of the same name."""
    names = modules()
    assert len(names) == len(SOURCES) - 2  # all but the root and __main__
    for name in names:
        importlib.import_module(name)
    for name in pocketzoo.__all__:
        first, second = getattr(pocketzoo, name), getattr(pocketzoo, name)
        assert first is second
        assert not isinstance(first, ModuleType)
        assert first.__name__ == name
    assert not set(pocketzoo.__all__) & {name.split(".")[1] for name in names}
    assert set(pocketzoo.__all__) <= set(dir(pocketzoo))


@pytest.mark.parametrize("name", pocketzoo.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    documented = getattr(pocketzoo, name)
    text = documented.__doc__ or ""
    assert text.strip()
    assert not text.startswith(f"{name}("), "that is what a dataclass writes when nobody else does"
    if inspect.isfunction(documented):
        assert documented.__annotations__.keys() >= {*inspect.signature(documented).parameters, "return"}


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        pocketzoo.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    ["import pocketzoo", *(f"main({arguments}, standalone_mode=False)" for arguments in (["--help"], ["list"]))],
)
def test_torch_is_not_imported_for(statement: str) -> None:
    code = f"import sys; from pocketzoo.cli import main; {statement}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_versions_are_what_they_say() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert importlib.metadata.version("torch").partition("+")[0] == pinned["torch"]
    assert importlib.metadata.version("pocketzoo") == pocketzoo.__version__


def test_the_index_of_the_zoo_is_fresh() -> None:
    assert index.counted() == index.matching(), "stale: python -m pocketzoo.zoo.index"


# -- what the pages show -------------------------------------------------------------------------------------------


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def command_lines(text: str) -> list[list[str]]:
    """Arguments of each call of pocketzoo, up to a pipe or redirection."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if match := re.match(r"\s*(?:\$ )?(?:\S*/bin/)?pocketzoo\s+(?P<rest>.*)", line):
            words = shlex.shlex(match["rest"], posix=True, punctuation_chars="|>&;")
            words.whitespace_split = True
            found.append(list(itertools.takewhile(lambda word: word not in ("|", ">", "&&", ";"), words)))
    return found


def understood(arguments: list[str]) -> None:
    """Let click read the whole line, which refuses unknown words, options and values; nothing runs."""
    name, rest = arguments[0], arguments[1:]
    if name.startswith("-"):
        assert name in ("--help", "-h", "--version")
        return
    assert name in cli.main.commands, f"no command {name}"
    with click.Context(cli.main) as context:
        try:
            cli.main.commands[name].make_context(name, rest, parent=context, resilient_parsing="--help" in rest)
        except click.exceptions.Exit as done:  # what prints a list and ends, such as --method help
            if done.exit_code:
                raise


def test_the_reader_of_pages() -> None:
    text = "$ pocketzoo list 'm*' | head  # all\n.venv/bin/pocketzoo train a \\\n  --data b --out c\necho pocketzoo"
    lines = command_lines(text)
    assert lines == [["list", "m*"], ["train", "a", "--data", "b", "--out", "c"]]
    for line in lines:
        understood(line)
    with pytest.raises(click.UsageError, match="--dta"):
        understood(["train", "a", "--dta", "b"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_names_on_a_page_exist(page: Path) -> None:
    for language, text in blocks(page):
        for line in command_lines(text):
            understood(line)
        if language == "python":
            tree = ast.parse(text)
            used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_pz(node.value)}
            assert used <= set(pocketzoo.__all__)


def is_pz(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("pz", "pocketzoo")


def test_the_readme_shows_commands() -> None:
    assert any(command_lines(text) for _, text in blocks(PAGES[0]))


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_the_example_of_each_help_works(name: str) -> None:
    epilog = cli.main.commands[name].epilog or ""
    (line,) = command_lines(epilog)
    assert line[0] == name
    understood(line)
