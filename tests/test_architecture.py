"""The layers of the project hold: agents -> envs -> equirl -> equicore, and the lab beside them."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# each folder, and which of the project's layers it may import; the longest name counts
MAY_IMPORT = {
    "equicore": {"equicore"},
    "equicore/lab": {"equicore.lab"},
    "equicore/applications": {"equicore", "equicore.lab", "equicore.applications"},
    "equirl": {"equicore", "equicore.lab", "equirl"},
    "envs": {"equicore", "equirl", "equirl.envs"},
    "agents": {"equicore", "equicore.lab", "equirl", "equirl.envs", "equirl.agents"},
    "benchmarks": {
        *("equicore", "equicore.lab", "equicore.applications", "common"),
        *("equirl", "equirl.envs", "equirl.agents"),
    },
}
LAYERS = {layer for layers in MAY_IMPORT.values() for layer in layers} - {"common"}
CORE_NEEDS = {"torch", "numpy", "equicore"}
WHEN_CALLED = {"tqdm", "matplotlib", "optuna", "scipy", "ensemble_boxes"}
"""For progress bars, plots, searches and boxes, functions of the core import these when called."""


def files_of(folder):
    """The Python files of a folder, without those of folders that have rules of their own."""
    inner = [ROOT / other for other in MAY_IMPORT if other.startswith(f"{folder}/")]
    files = [
        path
        for path in (ROOT / folder).rglob("*.py")
        if not any(other in path.parents for other in inner)
    ]
    assert files
    return files


def imports(path):
    """All modules that a file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # the names may be modules: from equicore import lab
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            assert not ast.unparse(node).count("equi"), f"{path} imports one of ours by its name"


def layer(module):
    """Of the project's layers the one that a module belongs to; None if it is not ours."""
    fitting = [one for one in LAYERS if module == one or module.startswith(f"{one}.")]
    return max(fitting, key=len, default=None)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_arrows_run_one_way(folder):
    for path in files_of(folder):
        forbidden = {m for m in imports(path) if layer(m) not in MAY_IMPORT[folder] | {None}}
        assert not forbidden, f"{path} imports {forbidden}"


def test_a_wrong_arrow_is_found(tmp_path):
    """What the test above relies on."""
    file = tmp_path / "wrong.py"
    for line, found in {
        "import equicore.lab.store": "equicore.lab",
        "from equicore import lab": "equicore.lab",
        "from equicore.lab import store": "equicore.lab",
        "def f():\n    from equicore.applications.scan import data": "equicore.applications",
        "import equirl.agents.train as t": "equirl.agents",
        "from equicore.representations.base import Action": "equicore",
        "import equicore_extra": None,
    }.items():
        file.write_text(line)
        assert [layer(module) for module in imports(file)] == [found]


def test_the_core_imports_torch_and_numpy_only():
    allowed = CORE_NEEDS | WHEN_CALLED | sys.stdlib_module_names
    for path in files_of("equicore"):
        for module in imports(path):
            assert module.split(".")[0] in allowed, f"{path} imports {module}"
        for node in ast.parse(path.read_text()).body:  # of the file itself, not in a function
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {getattr(node, "module", None) or node.names[0].name}
                assert not {name.split(".")[0] for name in names} & WHEN_CALLED, path


def loaded_by(*statements):
    """What each of some statements loads that those before it did not, in a process of its own."""
    lines = [f"{statement}; print(*sys.modules)" for statement in statements]
    code = "\n".join(["import sys; print(*sys.modules)", *lines])
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    before, *after = (set(line.split()) for line in result.stdout.splitlines())
    return [now - earlier for earlier, now in zip([before, *after], after, strict=False)]


def top_level(modules):
    return {module.split(".")[0] for module in modules}


def test_what_importing_loads():
    core, sb3, project = loaded_by(
        "import equicore, equicore._face, equicore.continuous, equicore.finetuning, "
        "equicore.decoding",
        "import stable_baselines3",
        "import equirl, equirl._face",
    )
    assert not top_level(core) & {"matplotlib", "optuna", "gymnasium", "stable_baselines3"}
    assert not top_level(core) & {"equirl", "pandas", "scipy", "joblib", "tyro", "yaml"}
    assert not [m for m in core if m.startswith(("equicore.lab", "equicore.applications"))]
    assert {"gymnasium", "stable_baselines3"} <= top_level(sb3)
    # no environment, no script, and of other packages only what reads files
    assert not [m for m in project if m.startswith(("equirl.envs", "equirl.agents"))]
    others = {m for m in top_level(project) if not m.startswith("_")} - sys.stdlib_module_names
    assert others <= {"equirl", "equicore", "safetensors", "yaml", *top_level(sb3)}


def test_help_imports_nothing_that_takes_long():
    (loaded,) = loaded_by("from equirl.agents import arguments, cli")
    assert {"tyro", "gymnasium", "equirl.agents.arguments"} <= loaded
    assert not top_level(loaded) & {"torch", "stable_baselines3", "pandas", "matplotlib", "scipy"}
    assert not {"torch", "stable_baselines3"} & top_level(loaded_by("import equicore, equirl")[0])


@pytest.mark.parametrize("name, most", [("equicore", 45), ("equirl", 22)])
def test_the_public_face_is_small_and_whole(name, most):
    package = importlib.import_module(name)
    assert len(package.__all__) == len(set(package.__all__)) <= most
    for exported in package.__all__:
        assert hasattr(package, exported)
        assert not exported.startswith("_") or exported == "__version__"
    assert list(package.__all__) == sorted(package.__all__)
