"""What the documentation shows is run: docstrings, and the Python blocks of README and docs."""

import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import equicore
import equirl
import equirl.agents
import equirl.envs

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (equicore, equirl, equirl.agents, equirl.envs)
MODULES = sorted(
    {package.__name__ for package in PACKAGES}
    | {
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    }
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module):
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("module", MODULES)
def test_public_methods_are_documented_here_or_in_a_base(module):
    """Ruff demands it of functions and classes; of methods it does not know which override."""
    for name, made in vars(importlib.import_module(module)).items():
        if not inspect.isclass(made) or made.__module__ != module or name.startswith("_"):
            continue
        for method, function in vars(made).items():
            if inspect.isfunction(function) and not method.startswith("_"):
                assert inspect.getdoc(getattr(made, method)), f"{module}.{name}.{method}"


def test_all_folders_are_looked_through():
    assert {"equicore.continuous.canonicalize", "equicore.representations.linear"} <= set(MODULES)
    assert {"equicore.lab.store", "equirl.envs.gridworld", "equirl.agents.train"} <= set(MODULES)


def test_wrappers_and_policies_have_examples():
    finder = doctest.DocTestFinder()
    for module in ("equirl.wrappers", "equirl.policies", "equirl.symmetry", "equicore.groups"):
        found = finder.find(importlib.import_module(module))
        assert any(test.examples for test in found)


def test_examples_of_the_readme(shared_agents, tmp_path, monkeypatch):
    """One after the other, with a real agent as dqn-Acrobot-v1.zip in the folder."""
    (tmp_path / "dqn-Acrobot-v1.zip").write_bytes(
        (shared_agents / "dqn-Acrobot-v1.zip").read_bytes()
    )
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+\.\d*(?:e[+-]?\d+)?")


def same_but_for_rounding(printed, shown):
    """Whether texts agree; numbers with a point may differ by 5 %, or 1e-5 of rounding."""
    ours, theirs = ([float(n) for n in NUMBER.findall(text)] for text in (printed, shown))
    words = NUMBER.sub("#", printed) == NUMBER.sub("#", shown)
    return words and ours == pytest.approx(theirs, rel=0.05, abs=1e-5)


LONG = ("detection", "symmetries")
"""Pages whose examples take long."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if page.stem in LONG else page for page in PAGES],
    ids=lambda page: page.stem,
)
def test_examples_of_the_docs(page, tmp_path, monkeypatch):
    """Top to bottom; a ``text`` block directly after a ``python`` block is what that one prints."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text = page.read_text()
    blocks = list(BLOCK.finditer(text))
    assert text.count("```") == 2 * len(blocks), "a block that is indented, or has no language"
    namespace: dict = {"__name__": page.stem}
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] != "python":
            continue
        line = text.count("\n", 0, block.start(2))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # empty lines before it, so that errors name the line of the page
            exec(compile("\n" * line + block[2], str(page), "exec"), namespace)
        shown = ""
        if (
            following
            and following[1] == "text"
            and not text[block.end() : following.start()].strip()
        ):
            shown = following[2]
        assert same_but_for_rounding(printed.getvalue(), shown), (
            f"{page.name}, line {line} prints\n{printed.getvalue()}"
        )
    assert "python" in {block[1] for block in blocks}


def test_numbers_that_are_shown_cannot_rot():
    assert same_but_for_rounding("1 (r)  3.2e-01  9e-8 0.0e+00", "1 (r)  3.3e-01  9e-8 1.1e-07")
    assert not same_but_for_rounding("3.2e-01", "3.6e-01")
    assert not same_but_for_rounding("tensor([1, 2])", "tensor([1, 3])")
    assert not same_but_for_rounding("0.5 0.5", "0.5")


def anchors(page):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_of_the_documentation_lead_somewhere():
    for page in [ROOT / "README.md", *PAGES, *ROOT.glob("results/**/*.md")]:
        for target in re.findall(r"\]\(([^):]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}"


def test_the_index_of_the_docs_is_whole():
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in PAGES if f"]({page.name})" not in index] == ["README.md"]
