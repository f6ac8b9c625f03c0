import subprocess
import sys

import pytest


def call(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False
    )


def test_help_lists_the_commands():
    result = call("equirl.agents.cli", "--help")
    assert result.returncode == 0
    for command in ("train", "evaluate", "compare", "plot"):
        assert command in result.stdout


@pytest.mark.parametrize("script", ["train", "evaluate", "compare", "plot", "demo"])
def test_every_script_explains_its_options(script):
    result = call(f"equirl.agents.{script}", "--help")
    assert result.returncode == 0
    assert "--output" in result.stdout
    assert "results" in result.stdout or "agent" in result.stdout


def test_wrong_input_ends_with_a_message_and_without_a_traceback():
    result = call("equirl.agents.train", "--env", "CartPole-v1", "--seeds")
    assert result.returncode == 2
    assert "no seeds given" in result.stderr
    assert "Traceback" not in result.stderr
