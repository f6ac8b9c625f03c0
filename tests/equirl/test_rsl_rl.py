"""`Symmetry.augment` as data augmentation of rsl_rl: its contract, and the package's own PPO."""

import numpy as np
import pytest
import torch

import equirl
from equicore import Matrix, Tree, cyclic
from equirl import Symmetry
from equirl.named import mirror, move, power, symmetry, turn

pytest.importorskip("rsl_rl", reason="needs the package rsl-rl-lib, which is not installed")
from rsl_rl.env import VecEnv  # noqa: E402
from rsl_rl.extensions import Symmetry as RslRlSymmetry  # noqa: E402
from rsl_rl.models import MLPModel  # noqa: E402
from rsl_rl.runners import OnPolicyRunner  # noqa: E402
from rsl_rl.storage import RolloutStorage  # noqa: E402
from tensordict import TensorDict  # noqa: E402

POLICY = ("position x", "position y", "velocity x", "velocity y")
CRITIC = ("wind x", "wind y", "time left")
ACTIONS = ("push x", "push y")


def planes(*entries):
    return [turn(f"{entry} x", f"{entry} y") for entry in entries]


def exchanged(*entries):
    return [move({f"{entry} x": f"{entry} y", f"{entry} y": f"{entry} x"}) for entry in entries]


def of_robots(*generators):
    """Each a `mirror`, or a `power`, of what is shown to the policy and to the critic alone."""
    parts = [
        symmetry(names, ACTIONS, *made)
        for names, made in zip((POLICY, CRITIC), zip(*generators, strict=True), strict=True)
    ]
    tree = Tree({"policy": parts[0].observation, "critic": parts[1].observation})
    return Symmetry(tree, parts[0].action)


def quarter_turns(pushed=None):
    """Of robots in the plane; ``pushed`` tells another action of the generator."""
    pushed = pushed or planes("push")
    return of_robots(
        [power(4, planes("position", "velocity"), pushed), power(4, planes("wind"), pushed)]
    )


def with_mirrors():
    """Quarter turns and mirrors, of order 8, which do not commute."""
    pushed = exchanged("push")
    return of_robots(
        [
            power(4, planes("position", "velocity"), planes("push")),
            power(4, planes("wind"), planes("push")),
        ],
        [mirror(exchanged("position", "velocity"), pushed), mirror(exchanged("wind"), pushed)],
    )


class Robots(VecEnv):
    """Points in the plane that are pushed to its middle, in a wind that only the critic sees.

    Turned and mirrored robots do what robots do, turned and mirrored; but they all start at the
    right, so that nothing that is learned from them alone is symmetric.
    """

    num_actions = len(ACTIONS)
    max_episode_length = 20
    device = "cpu"

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.cfg = {}
        self.episode_length_buf = torch.randint(self.max_episode_length, (num_envs,))
        self.state = self._starts()

    def _starts(self):
        state = torch.zeros(self.num_envs, 6)
        state[:, 0] = 1 + torch.rand(self.num_envs)
        state[:, 4:] = 0.2 * torch.randn(self.num_envs, 2)
        return state

    def get_observations(self):
        left = 1 - self.episode_length_buf[:, None] / self.max_episode_length
        groups = {"policy": self.state[:, :4], "critic": torch.cat([self.state[:, 4:], left], 1)}
        return TensorDict(groups, batch_size=[self.num_envs], device=self.device)

    def step(self, actions):
        position, velocity, wind = self.state.split(2, dim=1)
        velocity = 0.8 * velocity + 0.2 * (actions.clamp(-1, 1) + wind)
        position = position + 0.2 * velocity
        self.state = torch.cat([position, velocity, wind], 1)
        self.episode_length_buf = self.episode_length_buf + 1
        rewards = -position.square().sum(1) - 0.1 * actions.square().sum(1)
        late = self.episode_length_buf >= self.max_episode_length
        self.state = torch.where(late[:, None], self._starts(), self.state)
        self.episode_length_buf = torch.where(late, 0, self.episode_length_buf)
        return self.get_observations(), rewards, late, {"time_outs": late}


def groups_of(batch, device="cpu"):
    groups = {"policy": torch.randn(batch, 4), "critic": torch.randn(batch, 3)}
    return TensorDict(groups, batch_size=[batch], device=device)


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    """The package no longer has torch check arguments of distributions, for the whole process."""
    torch.manual_seed(0)
    checks = torch.distributions.Distribution._validate_args
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", checks)


@pytest.mark.parametrize("robot", [quarter_turns(), with_mirrors()], ids=["turns", "mirrors"])
def test_images_are_stacked_with_the_samples_first(robot):
    obs, actions = groups_of(5), torch.randn(5, 2)
    order = len(robot.group)
    images, told = robot.augment(env=None, obs=obs, actions=actions)
    assert isinstance(images, TensorDict)
    assert images.batch_size == (order * 5,) and images.device == obs.device
    assert {name: part.shape for name, part in images.items()} == {
        "policy": (order * 5, 4),
        "critic": (order * 5, 3),
    }
    assert told.shape == (order * 5, 2)
    for name in ("policy", "critic"):
        assert torch.equal(images[name][:5], obs[name])
    assert torch.equal(told[:5], actions)


@pytest.mark.parametrize("robot", [quarter_turns(), with_mirrors()], ids=["turns", "mirrors"])
def test_image_k_of_all_that_is_given_is_of_one_element(robot):
    """All that an action leads to is moved as what is seen: at once, and by the same element."""
    order, robots = len(robot.group), Robots(5)
    robots.episode_length_buf = torch.zeros(5, dtype=torch.long)
    robots.state = torch.randn(5, 6)
    twins = Robots(order * 5)
    twins.episode_length_buf = torch.zeros(order * 5, dtype=torch.long)

    actions = torch.rand(5, 2) - 0.5
    images, told = robot.augment(robots, robots.get_observations(), actions)
    twins.state = torch.cat([images["policy"], images["critic"][:, :2]], 1)
    after, rewards, _, _ = robots.step(actions)
    twins_after, twins_rewards, _, _ = twins.step(told)

    expected, _ = robot.augment(robots, after, None)
    for name in ("policy", "critic"):
        assert torch.allclose(twins_after[name], expected[name], atol=1e-6)
    assert torch.allclose(twins_rewards, rewards.repeat(order), atol=1e-6)


def test_the_turn_of_each_slice():
    robot = quarter_turns()
    obs = TensorDict({"policy": torch.tensor([[1.0, 2.0, 3.0, 4.0]])}, batch_size=[1])
    images, told = robot.augment(None, obs, torch.tensor([[5.0, 6.0]]))
    turned = torch.tensor([[1, 2, 3, 4], [-2, 1, -4, 3], [-1, -2, -3, -4], [2, -1, 4, -3]]).float()
    assert torch.equal(images["policy"], turned)
    assert torch.equal(told, torch.tensor([[5, 6], [-6, 5], [-5, -6], [6, -5]]).float())


def test_what_is_not_given_is_not_made():
    robot = quarter_turns()
    images, told = robot.augment(env=None, obs=groups_of(3), actions=None)
    assert images.batch_size == (12,) and told is None
    images, told = robot.augment(env=None, obs=None, actions=torch.randn(3, 2))
    assert images is None and told.shape == (12, 2)


def test_plain_tensors_and_dicts():
    robot, obs = quarter_turns(), groups_of(3)
    alone = Symmetry(robot.observation.parts[0], robot.action)
    images, _ = robot.augment(None, obs, None)
    assert torch.equal(alone.augment(None, obs["policy"], None)[0], images["policy"])
    as_dict, _ = robot.augment(None, dict(obs), None)
    assert type(as_dict) is dict and torch.equal(as_dict["critic"], images["critic"])


def test_groups_of_observations_without_a_representation_are_refused():
    robot, obs = quarter_turns(), groups_of(3)
    obs["height scan"] = torch.zeros(3, 9)
    with pytest.raises(ValueError, match="no representation for the observations height scan; it"):
        robot.augment(None, obs, None)
    alone = Symmetry(robot.observation.parts[0], robot.action)
    with pytest.raises(ValueError, match=r"observations policy, critic; it has .*equicore.Tree"):
        alone.augment(None, groups_of(3), None)


class OfOneDevice(Matrix):
    """Refuses tensors of other devices on the CPU, too, as matrices on a GPU do."""

    def orbit(self, x, elements=None):
        assert self.matrices.device == x.device
        return super().orbit(x, elements)


def test_images_are_made_where_the_batch_is():
    group = cyclic(2)
    flips = OfOneDevice.from_generators(group, [-np.eye(2)])
    robot = Symmetry(Tree({"policy": flips}), flips)
    obs = TensorDict({"policy": torch.ones(3, 2, device="meta")}, batch_size=[3], device="meta")
    images, told = robot.augment(None, obs, torch.ones(3, 2, device="meta"))
    assert images.device == images["policy"].device == told.device == torch.device("meta")
    assert robot.augment(None, None, torch.ones(3, 2))[1].device == torch.device("cpu")


def test_a_symmetry_that_was_used_in_inference_mode_passes_gradients_on():
    robot, actions = quarter_turns(), torch.randn(3, 2, requires_grad=True)
    with torch.inference_mode():
        robot.augment(None, groups_of(3), actions)
    _, told = robot.augment(None, None, actions)
    told[:3].sum().backward()
    assert torch.equal(actions.grad, torch.ones(3, 2))


def linear_actor(obs, **options):
    """Pushes to the middle and against the velocity, which turns with what it sees."""
    groups = {"actor": ["policy"]}
    actor = MLPModel(obs, groups, "actor", 2, hidden_dims=[4], activation="identity", **options)
    first, _, last = actor.mlp
    with torch.no_grad():
        first.weight.copy_(torch.eye(4))
        last.weight.copy_(torch.tensor([[-1, 0.3, -0.5, 0], [-0.3, -1, 0, -0.5]]))
        first.bias.zero_()
        last.bias.zero_()
    return actor


def mirror_loss(robot, actor, obs):
    """As the package computes it."""
    extension = RslRlSymmetry(None, robot.augment, use_mirror_loss=True, mirror_loss_coeff=1.0)
    batch = RolloutStorage.Batch(observations=obs)
    return extension.compute_loss(actor, batch, obs.batch_size[0]).item()


def test_the_mirror_loss_of_an_equivariant_actor_is_0_under_the_true_symmetry_alone():
    obs = groups_of(64)
    actor = linear_actor(obs)
    assert mirror_loss(quarter_turns(), actor, obs) < 1e-12
    backwards = [turn("push y", "push x")]
    assert mirror_loss(quarter_turns(pushed=backwards), actor, obs) > 0.1


def test_a_normalizer_with_unsymmetric_statistics_breaks_an_equivariant_actor():
    obs = groups_of(64)
    actor = linear_actor(obs, obs_normalization=True)
    assert mirror_loss(quarter_turns(), actor, obs) < 1e-12
    actor.train()
    actor.update_normalization(Robots(64).get_observations())  # which are all at the right
    assert mirror_loss(quarter_turns(), actor, obs) > 0.1


def trained(iterations=12, **symmetry_cfg):
    """A runner of the package that has learned, and the losses of each iteration."""
    torch.manual_seed(0)
    network = {"class_name": "MLPModel", "hidden_dims": [32, 32], "activation": "elu"}
    noise = {"class_name": "GaussianDistribution", "init_std": 0.5}
    config = {
        "num_steps_per_env": 16,
        "save_interval": 100,
        "obs_groups": {"actor": ["policy"], "critic": ["policy", "critic"]},
        "actor": {**network, "distribution_cfg": noise},
        "critic": {**network},
        "algorithm": {
            "class_name": "PPO",
            "learning_rate": 3e-3,
            "schedule": "fixed",
            "num_learning_epochs": 4,
            "num_mini_batches": 2,
            "symmetry_cfg": {"data_augmentation_func": quarter_turns().augment, **symmetry_cfg},
        },
    }
    runner = OnPolicyRunner(Robots(64), config, device="cpu")
    update, losses = runner.alg.update, []

    def recorded():
        losses.append(update())
        return losses[-1]

    runner.alg.update = recorded
    runner.learn(iterations)
    assert all(np.isfinite(list(loss.values())).all() for loss in losses)
    return runner, losses


def error(runner):
    """Relative error of the actor's equivariance, on states all around the middle."""
    obs, robot = groups_of(256), quarter_turns()
    policy = runner.get_inference_policy()
    with torch.no_grad():
        images, _ = robot.augment(None, obs, None)
        _, expected = robot.augment(None, None, policy(obs))
        return float((policy(images) - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def plain():
    """Trained with neither; the package then only computes the mirror loss, to log it."""
    return trained()


@pytest.mark.parametrize(
    "use",
    [{"use_data_augmentation": True}, {"use_mirror_loss": True, "mirror_loss_coeff": 10.0}],
    ids=["augmentation", "mirror loss"],
)
def test_training_by_the_package_comes_closer_to_equivariance(plain, use):
    """The same seeds, robots that all start at the right, and one of the two uses or none."""
    (runner, losses), (without, logged) = trained(**use), plain
    assert losses[-1]["symmetry"] < losses[0]["symmetry"] / 2 < logged[-1]["symmetry"] / 2
    assert error(runner) < error(without) / 2


def test_ids_of_actions_are_permuted():
    cart = equirl.symmetry_of("CartPole-v1")
    seen, ids = torch.ones(3, 4), torch.tensor([0, 1, 1])
    for actions in (ids, ids[:, None]):
        images, moved = cart.augment(None, seen, actions)
        assert torch.equal(images, torch.cat([seen, -seen]))
        assert torch.equal(moved, torch.cat([actions, 1 - actions]))


@pytest.mark.parametrize(
    ("obs", "actions", "error", "message"),
    [
        (np.zeros((5, 3)), torch.zeros(5, 1), TypeError, "as rsl_rl passes them; got a ndarray"),
        (torch.zeros(5, 3), np.zeros((5, 1)), TypeError, "actions is a ndarray"),
        (torch.zeros(5, 3), torch.zeros(4, 1), ValueError, "got 5 of obs, 4 of actions"),
        ({"policy": torch.zeros(5, 3)}, None, ValueError, "no representation .* policy"),
        (torch.tensor(1.0), None, ValueError, r"obs must be a batch \(B, ...\)"),
    ],
)
def test_what_is_no_batch_of_samples_is_refused(obs, actions, error, message):
    with pytest.raises(error, match=message):
        equirl.symmetry_of("Pendulum-v1").augment(None, obs, actions)
