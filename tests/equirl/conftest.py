"""Fixtures of the tests of equirl: random agents, and what their symmetries are, by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN

import equirl


def _turn_coordinates(g, observations):
    turned = observations.copy()
    for _ in range(g):
        x, y = turned[..., 0::2].copy(), turned[..., 1::2].copy()
        turned[..., 0::2], turned[..., 1::2] = -y, x
    return turned


def _mirror_acrobot(g, observations):
    return observations * np.array([1, -1, 1, -1, -1, -1], observations.dtype) ** g


@dataclass(frozen=True)
class Case:
    """An environment and its symmetry, written down independently of the package."""

    env_id: str
    env_kwargs: dict
    shape: tuple[int, ...]
    permutations: tuple[tuple[int, ...], ...]
    act: Callable

    @property
    def order(self):
        return len(self.permutations)

    def make(self):
        return gym.make(self.env_id, **self.env_kwargs)

    def symmetry(self):
        return equirl.symmetry_of(self.make())

    def agent(self, seed=0, double=False, net_arch=(32,)):
        """A DQN with random weights."""
        agent = DQN(
            "MlpPolicy",
            self.make(),
            seed=seed,
            buffer_size=1,
            device="cpu",
            policy_kwargs={"net_arch": list(net_arch)},
        )
        if double:
            agent.policy.double()
        return agent

    def observations(self, count, seed=0, double=False):
        """Random ones: images have real numbers at all places, which is harder than one 1.

        All are float32 values, also in float64, as those of the environments are.
        """
        drawn = np.random.default_rng(seed).normal(size=(count, *self.shape)).astype(np.float32)
        return drawn.astype(np.float64) if double else drawn

    def q_values(self, agent, observations):
        """Those of the plain agent, from its own network."""
        dtype = next(agent.policy.parameters()).dtype
        with torch.no_grad():
            flat = torch.from_numpy(np.ascontiguousarray(observations)).to(dtype).flatten(1)
            return agent.q_net.q_net(flat).numpy()


_TURNS = ((0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2))

CASES = {
    "cartpole": Case("CartPole-v1", {}, (4,), ((0, 1), (1, 0)), lambda g, o: -o if g else o),
    "acrobot": Case("Acrobot-v1", {}, (6,), ((0, 1, 2), (2, 1, 0)), _mirror_acrobot),
    "gridworld": Case("equirl/Gridworld-v0", {}, (4,), _TURNS, _turn_coordinates),
    "gridworld-image": Case(
        "equirl/Gridworld-v0",
        {"observation": "image", "n": 5},
        (2, 5, 5),
        _TURNS,
        lambda g, o: np.rot90(o, g, axes=(-2, -1)),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def cases():
    return CASES


@pytest.fixture(scope="session")
def shared_agents():
    """The folder of real pretrained agents, which stands beside the checkout."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "agents"
    if not folder.is_dir():
        pytest.skip("no folder shared/agents with pretrained agents beside the checkout")
    return folder
