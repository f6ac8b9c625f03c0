import gymnasium as gym
import numpy as np
import pytest

import equirl

pytest.importorskip("Box2D")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of swig


class Mirrored:
    """A generator whose draws are the mirror image of those of another."""

    def __init__(self, seed, mirrored):
        self.generator = np.random.default_rng(seed)
        self.mirrored = mirrored
        self.pushed = False
        self.scattered = 0

    def uniform(self, low, high, size=None):
        drawn = self.generator.uniform(low, high, size)
        if size is not None:  # the heights of the ground
            return drawn[::-1] if self.mirrored else drawn
        if low < -1:  # the first push, to the right and upwards
            sideways, self.pushed = not self.pushed, True
        else:  # the scatter of the engines, along the lander and across
            sideways = self.scattered % 2 == 1
            self.scattered += 1
        return -drawn if sideways and self.mirrored else drawn

    def integers(self, *arguments):
        return self.generator.integers(*arguments)


@pytest.mark.parametrize("continuous", [False, True])
def test_the_mirror_image_of_an_episode_is_one(continuous):
    """Terrain, first push and scatter mirrored, mirrored actions give the mirrored episode."""
    envs = [gym.make("LunarLander-v3", continuous=continuous).unwrapped for _ in range(2)]
    symmetry = equirl.symmetry_of(gym.make("LunarLander-v3", continuous=continuous))
    assert len(symmetry.group) == 2
    for seed in range(3):
        rng = np.random.default_rng(seed)
        seen = []
        for env, mirrored in zip(envs, (False, True), strict=True):
            env._np_random = Mirrored(seed, mirrored)
            seen.append(env.reset()[0])
        steps = 0
        while not (seen[0][6:].any() or seen[1][6:].any()):  # on the ground, rounding decides
            moved = symmetry.act_on_observations(1, seen[0][None])[0]
            np.testing.assert_allclose(moved, seen[1], atol=2e-3)
            draw = rng.uniform(-1, 1, 2).astype(np.float32) if continuous else rng.integers(4)
            action = np.array(draw)
            mirrored = symmetry.act_on_actions(1, action[None])[0]
            (one, reward, over, _, _), (other, alike, too, _, _) = (
                env.step(a) for env, a in zip(envs, (action, mirrored), strict=True)
            )
            seen, steps = [one, other], steps + 1
            if over or too:
                break
            if not (one[6:].any() or other[6:].any()):
                assert reward == pytest.approx(alike, abs=0.05)
        assert steps > 40


def test_the_continuous_id_has_continuous_actions():
    discrete = equirl.symmetry_of("LunarLander-v3")
    continuous = equirl.symmetry_of("LunarLanderContinuous-v3")
    assert discrete.act_on_actions(1, np.arange(4)).tolist() == [0, 3, 2, 1]
    assert continuous.act_on_actions(1, np.array([[0.5, 0.25]])).tolist() == [[0.5, -0.25]]
    state = np.array([[1, 2, 3, 4, 5, 6, 0, 1]], np.float32)
    for symmetry in (discrete, continuous):
        moved = symmetry.act_on_observations(1, state)
        assert moved.tolist() == [[-1, 2, -3, 4, -5, -6, 1, 0]]
