import signal
from pathlib import Path

import gymnasium
import pytest

import equirl.registry
from equicore.lab.jobs import one_thread


@pytest.fixture(scope="session")
def shared_agents():
    """Folder of real pretrained agents, beside the checkout on the project's own machines."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "agents"
    if not folder.is_dir():
        pytest.skip("needs the real agents of ../shared/agents, which are not here")
    return folder


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_counts():
    """A shell's background jobs ignore Ctrl-C; what the tests start and interrupt must not."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def on_one_core():
    """The networks are tiny: threads only wait for each other, the more so on a busy machine."""
    with one_thread():
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Verdicts of symmetries are kept for this run of the tests, and not in the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp().parent / "cache"))
        yield


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """What a test registers is forgotten after it."""
    before = dict(gymnasium.registry)
    monkeypatch.setattr(equirl.registry, "_registry", dict(equirl.registry._registry))
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)
