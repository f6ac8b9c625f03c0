from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_agents():
    """Folder of real pretrained agents, beside the checkout on the project's own machines."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "agents"
    if not folder.is_dir():
        pytest.skip("needs the real agents of ../shared/agents, which are not here")
    return folder
