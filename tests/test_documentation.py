"""What the documentation shows is run: docstrings, and the Python blocks of the README."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import equicore
import equirl
import equirl.agents
import equirl.envs

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    {"equicore", "equirl", "equirl.envs", "equirl.agents"}
    | {
        module.name
        for package in (equicore, equirl, equirl.envs, equirl.agents)
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
    }
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module):
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_wrappers_and_policies_have_examples():
    for module in ("equirl.wrappers", "equirl.policies", "equirl.symmetry", "equicore.groups"):
        assert doctest.testmod(importlib.import_module(module)).attempted > 0


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


def test_links_of_the_documentation_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("results/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
