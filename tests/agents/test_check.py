"""The commands equirl check and equirl discover, and what compare quotes of them."""

import sys
from pathlib import Path

import gymnasium as gym
import pytest

import equicore
import equirl
from equirl.agents import arguments, check, checked, discover

WRONG = """
from equirl.named import choices, mirror, negate, swap, symmetry

NAMES = ("position", "velocity", "angle", "angular velocity")


def lie(spec):
    seen = [negate("position", "velocity", "angular velocity")]
    return symmetry(NAMES, choices("left", "right"), mirror(seen, [swap("left", "right")]))


def forgets(spec):
    lie(spec)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's own module, beside which the command is called."""
    (tmp_path / "mine.py").write_text(WRONG)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield "mine"
    sys.modules.pop("mine", None)


def test_a_true_symmetry(capsys, tmp_path):
    check.main(arguments.Check("CartPole-v1", output=tmp_path / "cart.png"))
    out = capsys.readouterr().out
    assert "position -> -position" in out and "the symmetry holds" in out
    assert (tmp_path / "cart.png").stat().st_size > 1000


def test_a_lie_ends_with_1_and_names_the_entry(capsys, module):
    with pytest.raises(SystemExit) as end:
        check.main(arguments.Check("CartPole-v1", symmetry=f"{module}:lie"))
    assert end.value.code == 1
    out = capsys.readouterr().out
    assert "the symmetry is FALSE" in out and "another sign of 'angle'" in out


def test_arguments_of_the_environment_count(capsys):
    check.main(arguments.Check("equirl/Gridworld-v0", env_kwargs=("observation=image", "n=4")))
    assert "the symmetry holds" in capsys.readouterr().out
    with pytest.raises(ValueError, match="goals must be one of"):
        check.main(arguments.Check("equirl/Gridworld-v0", env_kwargs=("goals=middle",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"symmetry": "nowhere:lie"}, "cannot import nowhere"),
        ({"symmetry": "mine:truth"}, "write module:name"),
        ({"symmetry": "mine"}, "write module:name"),
        ({"symmetry": "mine:lies"}, "did you mean mine:lie"),
        ({"symmetry": "mine:forgets"}, "neither a Symmetry nor a function"),
        ({"symmetry": "mine:__name__"}, "neither a Symmetry nor a function"),
        ({"output": Path("cart.pdf")}, "PNG and SVG"),
        ({"env": "MountainCar-v0"}, "no symmetry is registered"),
        ({"output": Path("mine.py/cart.png")}, "is a file, not a folder"),
    ],
)
def test_wrong_arguments_are_refused(module, change, message):
    with pytest.raises(ValueError, match=message):
        check.main(arguments.Check(**{"env": "CartPole-v1", **change}))


def test_found_symmetries_are_written_and_can_be_registered(capsys, module, tmp_path, monkeypatch):
    file = tmp_path / "found_pendulum.py"
    discover.main(arguments.Discover("Pendulum-v1", output=file))
    out = capsys.readouterr().out
    assert "entry 1 -> -entry 1" in out and "the symmetry holds" in out
    equirl.register_symmetry("Pendulum-v1", "found_pendulum:found")
    assert len(equirl.symmetry_of("Pendulum-v1").group) == 2
    check.main(arguments.Check("Pendulum-v1"))
    sys.modules.pop("found_pendulum", None)


@pytest.mark.slow
def test_nothing_is_written_where_nothing_is_found(capsys, tmp_path):
    file = tmp_path / "found.py"
    discover.main(arguments.Discover("MountainCar-v0", output=file))
    assert "no symmetry found" in capsys.readouterr().out and not file.exists()


def test_names_are_names(module):
    with pytest.raises(ValueError, match=r"not equirl.Names"):
        discover.main(arguments.Discover("CartPole-v1", names=f"{module}:NAMES"))


def test_verdicts_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    real = equirl.check_symmetry
    monkeypatch.setattr(equirl, "check_symmetry", lambda *args: calls.append(1) or real(*args))
    lines = [checked.checks_of([("CartPole-v1", {}), ("CartPole-v1", {})]) for _ in range(2)]
    assert lines[0] == lines[1] == ["CartPole-v1: the symmetry holds (exact)"]
    assert len(calls) == 1
    checked.checks_of([("CartPole-v1", {"sutton_barto_reward": True})])
    assert len(calls) == 2


def test_verdicts_on_code_that_may_change_are_not_kept(monkeypatch, tmp_path, module):
    """A module that an environment of a user's own imports may change, with nothing to show it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "tables_of_mine.py").write_text("PUSH = 0.0")
    (tmp_path / "cart_of_mine.py").write_text(CART)
    monkeypatch.syspath_prepend(str(tmp_path))
    gym.register("my/Cart-v0", "cart_of_mine:Cart", max_episode_steps=100)
    equirl.register_symmetry("my/Cart-v0", lambda spec: equirl.symmetry_of("CartPole-v1"))
    try:
        (line,) = checked.checks_of([("my/Cart-v0", {})])
        assert line == "my/Cart-v0: the symmetry holds (exact)"
        monkeypatch.setattr("tables_of_mine.PUSH", 0.05)
        (line,) = checked.checks_of([("my/Cart-v0", {})])
        assert line.startswith("WARNING: my/Cart-v0: the symmetry is FALSE")
    finally:
        gym.registry.pop("my/Cart-v0")
    assert not list(tmp_path.rglob("*.csv"))


CART = """
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
import numpy as np, tables_of_mine
class Cart(CartPoleEnv):
    def step(self, action):
        observation, *rest = super().step(action)
        self.state = np.array(self.state) + np.array([0, tables_of_mine.PUSH, 0, 0])
        return np.array(self.state, dtype=np.float32), *rest
"""


def test_a_kept_verdict_is_of_one_registration(monkeypatch, tmp_path):
    """An id that is registered anew, with other arguments, is another environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    places = [4 * (i % 4) + i // 4 for i in range(16)]
    flip = equicore.cyclic(2)
    across = equirl.Symmetry(
        equicore.Permutation.from_generators(flip, [places]),
        equicore.Permutation.from_generators(flip, [[3, 2, 1, 0]]),
    )
    equirl.register_symmetry("my/Lake-v0", lambda spec: across)
    said = []
    for lake in (["SFFF", "FHFF", "FFHF", "FFFG"], ["SFHF", "FFFF", "FFHF", "FFFG"]):
        gym.register(
            "my/Lake-v0",
            "gymnasium.envs.toy_text.frozen_lake:FrozenLakeEnv",
            kwargs={"desc": lake, "is_slippery": False},
            additional_wrappers=(gym.wrappers.FlattenObservation.wrapper_spec(),),
        )
        said += checked.checks_of([("my/Lake-v0", {})])
        gym.registry.pop("my/Lake-v0")
    assert "holds" in said[0] and "FALSE" in said[1]
    assert len(list(tmp_path.rglob("*.csv"))) == 2


def test_a_false_symmetry_is_warned_of(monkeypatch, tmp_path, module):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    equirl.register_symmetry("CartPole-v1", f"{module}:lie")
    (line,) = checked.checks_of([("CartPole-v1", {})])
    assert line.startswith("WARNING: CartPole-v1: the symmetry is FALSE")
    assert "equirl check CartPole-v1" in line


def test_what_cannot_be_checked_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(equirl, "check_symmetry", _refuse)
    (line,) = checked.checks_of([("CartPole-v1", {})])
    assert line == "WARNING: CartPole-v1: the symmetry could not be checked: ValueError: too large"
    assert not list(tmp_path.rglob("*.csv"))


def _refuse(*args):
    raise ValueError("too large")
