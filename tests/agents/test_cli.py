import subprocess
import sys

import pytest

from equirl.agents import cli, compare, demo, evaluate, landscape, plot, study, train, video

COMMANDS = (
    *("train", "evaluate", "compare", "check", "discover", "convert"),
    *("study", "plot", "landscape", "video"),
)


@pytest.fixture
def call(monkeypatch, capsys):
    """The exit status of a command, and what it says."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(action, *words):
        monkeypatch.setattr(sys, "argv", ["equirl", *words])
        with pytest.raises(SystemExit) as end:
            action()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return call


def test_help_lists_the_commands(call):
    status, out, _ = call(cli.main, "--help")
    assert status == 0
    assert all(f" {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_options(call, command):
    status, out, _ = call(cli.main, command, "--help")
    assert status == 0
    assert "Example: equirl" in out and "--output" in out
    words = out.replace("│", " ").replace("(default:", " ").split()
    assert not [word for word in words if word.startswith("/")]  # no path of this machine


@pytest.mark.parametrize("script", [train, evaluate, compare, study, plot, landscape, video, demo])
def test_every_script_is_a_command_of_its_own(call, script):
    arguments = getattr(script, script.__name__.rpartition(".")[2].capitalize())
    status, out, _ = call(lambda: cli.run(script.main, arguments), "--help")
    assert status == 0
    assert "--output" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--env", "CartPole-v1", "--seeds"], "no seeds given"),
        (["compare", "a.zip", "--env", "CartPole-v1"], "no agent at a.zip"),
        (["evaluate", "a.zip", "--env", "CartPole-v7"], "no agent at a.zip"),
        (["plot", "nowhere"], "no nowhere"),
    ],
)
def test_wrong_input_ends_with_a_message(call, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(cli.main, *words)
    assert status == 2
    assert err.startswith(f"error: {message}")


def test_an_environment_that_gymnasium_refuses_ends_with_a_message(call, cartpole_zip):
    """Its errors are none of Python's own."""
    words = ["evaluate", str(cartpole_zip), "--env", "CartPole-v1", "--env-kwargs", "colour=red"]
    status, _, err = call(cli.main, *words)
    assert status == 2 and "colour" in err


def test_a_module_in_the_current_folder_may_define_the_environment(call, tmp_path, monkeypatch):
    (tmp_path / "module_in_a_folder.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('my/Pole-v1', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.chdir(tmp_path)
    status, _, err = call(cli.main, "train", "--env", "module_in_a_folder:my/Pole-v1")
    assert status == 2 and "has no hyperparameters for 'my/Pole-v1'" in err


@pytest.mark.slow
def test_the_command_without_a_traceback():
    """In a process of its own, as it is installed."""
    words = ["train", "--env", "CartPole-v1", "--seeds"]
    command = [sys.executable, "-m", "equirl.agents.cli", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "error: no seeds given: name at least one after --seeds\n"
