"""The layers of the project hold: agents -> envs -> equirl -> equicore."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "equicore": {"equicore"},
    "equirl": {"equicore", "equirl"},
    "envs": {"equicore", "equirl", "equirl.envs"},
    "agents": {"equicore", "equirl", "equirl.envs", "equirl.agents"},
}


def layer(module):
    parts = module.split(".")
    return (
        ".".join(parts[:2]) if parts[:2] in (["equirl", "envs"], ["equirl", "agents"]) else parts[0]
    )


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_arrows_run_one_way(folder):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    ours = {"equicore", "equirl", "equirl.envs", "equirl.agents"}
    for path in files:
        forbidden = {layer(m) for m in imports(path)} & ours - MAY_IMPORT[folder]
        assert not forbidden, f"{path} imports {forbidden}"


def test_equicore_imports_torch_and_numpy_only():
    """For progress bars, plots and searches, functions that need more import it when called."""
    allowed = {"torch", "numpy", "equicore"}
    when_called = {"tqdm", "matplotlib", "optuna", "safetensors"}
    applications = ROOT / "equicore" / "applications"
    for path in (ROOT / "equicore").rglob("*.py"):
        if applications in path.parents:
            continue
        for module in imports(path):
            top = module.split(".")[0]
            known = allowed | when_called | sys.stdlib_module_names
            assert top in known, f"{path} imports {module}"
    third_party = {m.split(".")[0] for m in loaded_after("import equicore")}
    assert not third_party & {"matplotlib", "optuna"}  # torch itself loads tqdm


def loaded_after(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_importing_equicore_loads_no_reinforcement_learning():
    assert not loaded_after("import equicore") & {"gymnasium", "stable_baselines3", "equirl"}


def test_importing_equirl_loads_no_environment_and_no_script():
    loaded = loaded_after("import equirl")
    assert "stable_baselines3" in loaded
    assert not [m for m in loaded if m.startswith(("equirl.envs", "equirl.agents"))]
    more = loaded - loaded_after("import stable_baselines3")
    third_party = {m.split(".")[0] for m in more} - set(sys.stdlib_module_names)
    assert third_party <= {"equirl", "equicore", "safetensors", "gymnasium"}
