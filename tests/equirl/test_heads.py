"""Agents of other algorithms than DQN: what a head says is all that they need."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib as contrib
import torch
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.dqn.policies import QNetwork
from torch import nn

import equicore
import equirl
import equirl.algorithms
from equicore import Matrix, MLPWeight, Permutation, Trivial, cyclic, trivial
from equirl import EquitunePolicy, EquizeroPolicy, LambdaEquitunePolicy, SymmetrizedPolicy, Symmetry
from equirl.algorithms import Logits, head_of
from equirl.choices import Choices
from equirl.compiled import Compiled
from equirl.heads import DiscreteHead, Head

SHORT = {"n_steps": 8, "batch_size": 8, "seed": 0}
KINDS = (EquitunePolicy, EquizeroPolicy, LambdaEquitunePolicy)


def pendulum():
    """The mirror image: the sine of the angle and its velocity change sign, as the torque does."""
    mirror = cyclic(2)
    return Symmetry(
        Matrix.from_generators(mirror, [np.diag([1, -1, -1])]),
        Matrix.from_generators(mirror, [[[-1]]]),
    )


def cartpole():
    return equirl.symmetry_of("CartPole-v1")


class Arms(gym.Env):
    """Two arms of two joints each, and a body; nothing happens. The bounds are not symmetric."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (5,), np.float32)

    def __init__(self, actions=None):
        low, high = np.array([[-1, 0, -1, 0], [1, 3, 1, 3]], np.float32)
        self.action_space = actions or gym.spaces.Box(low, high)


def arms(*permutations, options=None):
    """The arms change places, and with them actions."""
    swap = cyclic(2)
    action = Permutation.from_generators(swap, permutations or [[2, 3, 0, 1]])
    if options:
        action = Choices(swap, action.permutations.numpy(), options)
    return Symmetry(Permutation.from_generators(swap, [[2, 3, 0, 1, 4]]), action)


def made_of(algorithm, env, symmetry, **settings):
    """A row of the table: an agent, made when it is needed, and its symmetry."""
    if "PPO" not in algorithm.__name__ and hasattr(algorithm, "_store_transition"):
        settings = {"buffer_size": 1, **settings}
    return lambda: (algorithm("MlpPolicy", env(), seed=0, **settings), symmetry())


CART, SWING = partial(gym.make, "CartPole-v1"), partial(gym.make, "Pendulum-v1")
THREE, BITS = gym.spaces.MultiDiscrete([3, 3, 2]), gym.spaces.MultiBinary(4)
THREE_ARMS, FOUR_BITS = partial(Arms, THREE), partial(Arms, BITS)
TURNED = partial(arms, [5, 4, 3, 2, 1, 0, 6, 7], options=[3, 3, 2])
MODELS = {
    "dqn": made_of(DQN, CART, cartpole),
    "qr-dqn": made_of(contrib.QRDQN, CART, cartpole),
    "ppo, discrete": made_of(PPO, CART, cartpole),
    "a2c, discrete": made_of(A2C, CART, cartpole),
    "trpo, discrete": made_of(contrib.TRPO, CART, cartpole),
    "ars, discrete": made_of(contrib.ARS, CART, cartpole),
    "ppo with masks, discrete": made_of(contrib.MaskablePPO, CART, cartpole),
    "ppo, multi-discrete": made_of(PPO, THREE_ARMS, partial(arms, [1, 0, 2])),
    "a2c, multi-discrete, options too": made_of(A2C, THREE_ARMS, TURNED),
    "ppo with masks, multi-discrete": made_of(contrib.MaskablePPO, THREE_ARMS, TURNED),
    "ppo, multi-binary": made_of(PPO, FOUR_BITS, arms),
    "ppo with masks, multi-binary": made_of(contrib.MaskablePPO, FOUR_BITS, arms),
    "ppo": made_of(PPO, SWING, pendulum),
    "a2c, gSDE": made_of(A2C, Arms, arms, use_sde=True),
    "trpo": made_of(contrib.TRPO, Arms, arms),
    "sac": made_of(SAC, Arms, arms),
    "sac, gSDE": made_of(SAC, Arms, arms, use_sde=True),
    "td3": made_of(TD3, Arms, arms),
    "ddpg": made_of(DDPG, Arms, arms),
    "tqc": made_of(contrib.TQC, Arms, arms),
    "crossq": made_of(contrib.CrossQ, Arms, arms),
    "ars": made_of(contrib.ARS, Arms, arms),
}
"""Each head, by what algorithm it is of and which actions that has."""
CONTINUOUS = [name for name in MODELS if "discrete" not in name and "binary" not in name]
CONTINUOUS.remove("dqn"), CONTINUOUS.remove("qr-dqn")
VALUED = [name for name in CONTINUOUS if name != "ars"]
each_model = pytest.mark.parametrize("name", MODELS)
each_continuous = pytest.mark.parametrize("name", CONTINUOUS)
each_valued = pytest.mark.parametrize("name", VALUED)


def random_weight(shape):
    weight = MLPWeight(shape, hidden=(16,), seed=3)
    nn.init.normal_(weight.network[-1].weight)
    return weight


@pytest.fixture
def made(name):
    """An agent, its symmetry, and observations."""
    agent, symmetry = MODELS[name]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # new networks have no biases, with which tanh makes them odd functions
        for parameter in agent.policy.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    shape = agent.observation_space.shape
    observations = np.random.default_rng(0).normal(size=(40, *shape)).astype(np.float32)
    return agent, symmetry, observations


def policies(agent, symmetry):
    weight = random_weight(agent.observation_space.shape)
    if any(isinstance(m, nn.Linear) and m.weight.dtype == torch.float64
           for m in agent.policy.modules()):  # fmt: skip
        weight = weight.double()
    found = [quiet_equitune(agent, symmetry), LambdaEquitunePolicy(agent, symmetry, weight)]
    if isinstance(agent, contrib.ARS):
        with pytest.raises(TypeError, match="neither critic nor value"):
            EquizeroPolicy(agent, symmetry)
        return found
    return [*found, EquizeroPolicy(agent, symmetry)]


def quiet_equitune(agent, symmetry):
    """Without the warning that continuous actions have no useful mean."""
    if not isinstance(agent.action_space, gym.spaces.Box):
        return EquitunePolicy(agent, symmetry)
    with pytest.warns(UserWarning, match="averages actions"):
        return EquitunePolicy(agent, symmetry)


@each_model
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_are_equivariant(made, dtype):
    agent, symmetry, observations = made
    observations = observations.astype(dtype)
    if dtype is np.float64:
        agent.policy.double()
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype is np.float32 else {"rtol": 1e-12, "atol": 1e-13}
    moved = symmetry.act_on_observations(1, observations)
    for policy in policies(agent, symmetry):
        actions, _ = policy.predict(observations, deterministic=True)
        assert actions.shape == (40, *agent.action_space.shape)
        expected = symmetry.act_on_actions(1, actions)
        found, _ = policy.predict(moved, deterministic=True)
        np.testing.assert_allclose(found, expected, **close)
        one, _ = policy.predict(observations[7], deterministic=True)
        np.testing.assert_allclose(one, actions[7], **close)
        assert one.shape == agent.action_space.shape
    if dtype is np.float32:
        plain, _ = agent.predict(observations, deterministic=True)
        mirrored, _ = agent.predict(moved, deterministic=True)
        assert np.abs(mirrored - symmetry.act_on_actions(1, plain)).max() > 1e-3


@each_model
def test_under_the_trivial_group_every_policy_is_the_agent(made):
    agent, symmetry, observations = made
    group, space = cyclic(1), agent.action_space
    size = space.n if isinstance(space, gym.spaces.Discrete) else space.shape[0]
    nothing = Symmetry(equicore.Trivial(group), Permutation(group, [range(size)]))
    expected, _ = agent.predict(observations, deterministic=True)
    for policy in policies(agent, nothing):
        actions, _ = policy.predict(observations, deterministic=True)
        assert actions.dtype == expected.dtype
        np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-6)


@each_valued
def test_equizero_takes_the_view_that_the_agent_values_most(made):
    """By plain loops over the agent's own networks."""
    agent, symmetry, observations = made
    candidates, values = [], []
    for g in (0, 1):
        seen = symmetry.act_on_observations(g, observations)
        actions, _ = agent.predict(seen, deterministic=True)
        tensor = torch.from_numpy(seen)
        with torch.no_grad():
            if hasattr(agent, "critic"):
                scaled = torch.from_numpy(agent.policy.scale_action(actions))
                each = agent.critic(tensor, scaled)
                if isinstance(agent, contrib.TQC):
                    each = each.mean(2, keepdim=True).unbind(1)
                values.append(torch.stack(tuple(each)).amin(0).squeeze(1).numpy())
            else:
                values.append(agent.policy.predict_values(tensor).squeeze(1).numpy())
        candidates.append(symmetry.act_on_actions(g, actions))  # a mirror undoes itself
    mirrored_is_better = values[1] > values[0]
    assert 0 < mirrored_is_better.mean() < 1
    expected = np.where(mirrored_is_better[:, None], candidates[1], candidates[0])
    found, _ = EquizeroPolicy(agent, symmetry).predict(observations, deterministic=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@each_continuous
def test_lambda_takes_the_most_familiar_view_and_never_a_mean(made):
    agent, symmetry, observations = made
    policy = LambdaEquitunePolicy(agent, symmetry, random_weight(agent.observation_space.shape))
    with torch.no_grad():
        weights = [
            policy.weight(torch.from_numpy(symmetry.act_on_observations(g, observations))).numpy()
            for g in (0, 1)
        ]
    views = [
        symmetry.act_on_actions(
            g, agent.predict(symmetry.act_on_observations(g, observations), deterministic=True)[0]
        )
        for g in (0, 1)
    ]
    expected = np.where((weights[1] > weights[0])[:, None], views[1], views[0])
    found, _ = policy.predict(observations, deterministic=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ppo, discrete"])
@pytest.mark.parametrize("normalize", ["softmax", None])
def test_probabilities_of_an_actor_critic_are_those_of_its_distribution(made, normalize):
    agent, symmetry, observations = made
    with torch.no_grad():
        logits = [
            agent.policy.get_distribution(torch.from_numpy(sign * observations)).distribution.logits
            for sign in (1, -1)
        ]
    stack = torch.stack([logits[0], logits[1].flip(1)])
    if normalize == "softmax":
        stack = stack.softmax(-1)
    equitune = EquitunePolicy(agent, symmetry, normalize).action_values(observations)
    np.testing.assert_allclose(equitune, stack.mean(0), rtol=1e-5)
    best = stack.amax(-1).argmax(0)
    equizero = EquizeroPolicy(agent, symmetry, normalize).action_values(observations)
    chosen = stack[best, torch.arange(40)]
    expected = chosen.logit() if normalize == "softmax" else chosen
    np.testing.assert_allclose(equizero, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["a2c, discrete"])
@pytest.mark.parametrize("normalize", ["softmax", None])
@pytest.mark.parametrize("kind", [EquitunePolicy, EquizeroPolicy])
def test_an_actor_critic_draws_from_the_reduced_distribution(made, normalize, kind):
    agent, symmetry, observations = made
    policy = kind(agent, symmetry, normalize)
    values = policy.action_values(observations[:1])[0]
    powers = np.exp(values - values.max())
    chances = values if normalize == "softmax" else powers / powers.sum()
    if kind is EquizeroPolicy and normalize == "softmax":
        chances = 1 / (1 + np.exp(-values))
    torch.manual_seed(0)
    drawn, _ = policy.predict(np.repeat(observations[:1], 4000, axis=0))
    assert drawn.mean() == pytest.approx(chances[1], abs=0.04)
    assert 0 < drawn.mean() < 1


@pytest.mark.parametrize("name", ["ppo, discrete", "ppo, multi-binary", "sac"])
@pytest.mark.filterwarnings("ignore:the weights of this policy are not fitted")
@pytest.mark.filterwarnings("ignore:equitune averages actions")
def test_an_empty_batch_gives_no_actions(made):
    agent, symmetry, observations = made
    for kind in KINDS:
        actions, _ = kind(agent, symmetry).predict(observations[:0], deterministic=True)
        assert actions.shape == (0, *agent.action_space.shape)
        assert actions.dtype == agent.action_space.dtype


@pytest.mark.parametrize("name", ["ppo, discrete", "sac"])
def test_what_is_not_finite_in_an_observation_is_named(made):
    agent, symmetry, observations = made
    for number, what in ((np.inf, "infinity"), (np.nan, "NaN")):
        wrong = observations.copy()
        wrong[3, 1] = number
        with pytest.raises(ValueError, match=rf"{what} in the observation, at index \(3, 1\)"):
            EquizeroPolicy(agent, symmetry).predict(wrong, deterministic=True)


@each_continuous
def test_actions_are_drawn_from_the_distribution_of_one_view(made):
    """Their law is that of the view that is chosen, carried back; of equitune any of the views."""
    agent, symmetry, observations = made
    one, count = observations[:1], 3000
    both = [one, symmetry.act_on_observations(1, one)]
    law = []
    torch.manual_seed(0)
    for g, seen in enumerate(both):
        drawn, _ = agent.predict(np.repeat(seen, count, 0))
        law.append(symmetry.act_on_actions(g, drawn))
    for policy in policies(agent, symmetry):
        mean, _ = policy.predict(one, deterministic=True)
        found, _ = policy.predict(np.repeat(one, count, 0))
        if isinstance(policy, EquitunePolicy):
            expected = np.concatenate(law)
        else:
            sure = [symmetry.act_on_actions(g, agent.predict(s, deterministic=True)[0])
                    for g, s in enumerate(both)]  # fmt: skip
            expected = law[int(np.abs(sure[1] - mean).max() < np.abs(sure[0] - mean).max())]
        spread = expected.std(0) + 1e-6
        assert (np.abs(found.mean(0) - expected.mean(0)) < 0.12 * spread).all()
        np.testing.assert_allclose(found.std(0), expected.std(0), rtol=0.12, atol=1e-5)


def test_masks_forbid_actions_and_move_with_them():
    agent, symmetry = MODELS["ppo with masks, multi-discrete"]()
    observations = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    masks = np.random.default_rng(1).random((60, 8)) < 0.5
    masks[:, [1, 4, 6]] = True  # each choice has an option that is allowed
    entries = symmetry.action.entries
    moved = entries.act(1, torch.from_numpy(masks)).numpy()
    for policy in policies(agent, symmetry):
        for deterministic in (True, False):
            actions, _ = policy.predict(
                observations, deterministic=deterministic, action_masks=masks
            )
            allowed = [masks[i, [a[0], 3 + a[1], 6 + a[2]]].all() for i, a in enumerate(actions)]
            assert all(allowed)
        actions, _ = policy.predict(observations, deterministic=True, action_masks=masks)
        mirrored, _ = policy.predict(
            symmetry.act_on_observations(1, observations), deterministic=True, action_masks=moved
        )
        np.testing.assert_array_equal(mirrored, symmetry.act_on_actions(1, actions))
    with pytest.raises(ValueError, match="do not fit 60 observations and 8 options"):
        policy.predict(observations, action_masks=masks[:, :5])
    plain, cart = MODELS["ppo, discrete"]()
    with pytest.raises(TypeError, match="takes no action_masks"):
        EquizeroPolicy(plain, cart).predict(np.zeros((1, 4), np.float32), action_masks=[[1, 1]])


def test_familiarity_is_fitted_with_masks_too():
    agent, symmetry = MODELS["ppo with masks, discrete"]()
    policy = LambdaEquitunePolicy(agent, symmetry)
    seen = np.abs(np.random.default_rng(0).normal(size=(400, 4))).astype(np.float32)
    assert equirl.fit_familiarity(policy, seen, steps=50) < np.log(2) and policy.fitted


@each_continuous
def test_continuous_actions_stay_in_their_bounds(made):
    agent, symmetry, observations = made
    space = agent.action_space
    for policy in policies(agent, symmetry):
        actions, _ = policy.predict(100 * observations, deterministic=True)
        assert (actions >= space.low).all() and (actions <= space.high).all()


@each_valued
def test_action_values_are_for_discrete_actions(made):
    agent, symmetry, observations = made
    with pytest.raises(TypeError, match="only discrete actions have values"):
        EquizeroPolicy(agent, symmetry).action_values(observations)


@each_model
def test_saved_and_loaded_policies_act_alike(made, tmp_path):
    agent, symmetry, observations = made
    for policy in policies(agent, symmetry):
        policy.save(tmp_path / "policy")
        loaded = SymmetrizedPolicy.load(tmp_path / "policy")
        assert type(loaded) is type(policy)
        np.testing.assert_array_equal(
            loaded.predict(observations, deterministic=True)[0],
            policy.predict(observations, deterministic=True)[0],
        )


def test_a_head_of_ones_own_is_all_that_an_algorithm_needs(monkeypatch):
    """A policy class that nobody knows, with a row in the table."""

    class Sign(DiscreteHead):
        def values(self, observations):
            return torch.stack([-observations[:, 2], observations[:, 2]], 1)

    agent = DQN("MlpPolicy", gym.make("CartPole-v1"), buffer_size=1)
    name = "stable_baselines3.dqn.policies:DQNPolicy"
    monkeypatch.setitem(equirl.algorithms.HEADS, name, {gym.spaces.Discrete: Sign})
    policy = EquizeroPolicy(agent, "CartPole-v1")
    assert isinstance(policy.head, Sign)
    observation = np.array([0, 0, 0.1, 0], np.float32)
    assert policy.predict(observation, deterministic=True)[0] == 1
    assert policy.predict(-observation, deterministic=True)[0] == 0


def test_squashed_actions_have_the_bounds_of_the_space():
    kwargs = {"squash_output": True}
    agent = PPO("MlpPolicy", "Pendulum-v1", use_sde=True, policy_kwargs=kwargs, **SHORT)
    one = trivial()
    still = Symmetry(Matrix(one, [np.eye(3)]), Matrix(one, [np.eye(1)]))
    policy = EquizeroPolicy(agent, still)
    observations = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    actions, _ = policy.predict(observations, deterministic=True)
    expected, _ = agent.predict(observations, deterministic=True)
    np.testing.assert_allclose(actions, expected, rtol=1e-5)
    assert np.abs(actions).max() > 1e-4  # and twice those of -1..1


def test_the_head_of_a_policy_is_that_of_its_agent():
    agent = PPO("MlpPolicy", gym.make("CartPole-v1"))
    for model in (agent, agent.policy):
        head = head_of(model)
        assert isinstance(head, Logits) and isinstance(head, Head)
        assert head.policy is agent.policy


@pytest.mark.parametrize("layers", [[64, 64], []])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_q_values_are_those_of_the_network_whatever_its_layers(layers, activation):
    kwargs = {"net_arch": layers, "activation_fn": activation}
    agent = DQN("MlpPolicy", gym.make("CartPole-v1"), buffer_size=1, policy_kwargs=kwargs)
    x = torch.randn(7, 4)
    before = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(head_of(agent, None)(x), agent.q_net(x))
    assert torch.equal(x, before)


def test_networks_that_compute_otherwise_than_their_layers_say():
    """Their own halves are called; their own distributions and features are refused."""

    class Doubled(MlpExtractor):
        def forward_actor(self, features):
            return 2 * super().forward_actor(features)

    agent = PPO("MlpPolicy", gym.make("CartPole-v1"))
    agent.policy.mlp_extractor.__class__ = Doubled
    x = torch.randn(7, 4)
    with torch.no_grad():
        expected = agent.policy.get_distribution(x).distribution.logits
        torch.testing.assert_close(head_of(agent, None)(x), expected)

    class Shifted(type(SAC("MlpPolicy", Arms(), buffer_size=1).actor)):
        def get_action_dist_params(self, obs):
            mean, *rest = super().get_action_dist_params(obs)
            return mean + 1, *rest

    class Halved(QNetwork):
        def extract_features(self, obs, extractor):
            return super().extract_features(obs, extractor) / 2

    sac = SAC("MlpPolicy", Arms(), buffer_size=1)
    sac.actor.__class__ = Shifted
    dqn = DQN("MlpPolicy", gym.make("CartPole-v1"), buffer_size=1)
    dqn.q_net.__class__ = Halved
    for model, method in ((sac, "get_action_dist_params"), (dqn, "extract_features")):
        with pytest.raises(TypeError, match=f"overrides {method}"):
            head_of(model)


def test_an_agent_with_a_memory_is_refused():
    agent = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8)
    agent.policy.lstm_actor = nn.LSTM(4, 4)  # as those of sb3_contrib's RecurrentPPO
    with pytest.raises(TypeError, match="remembers"):
        equirl.EquizeroPolicy(agent, "CartPole-v1")


def test_hooks_on_layers_are_called():
    agent = DQN("MlpPolicy", gym.make("CartPole-v1"), buffer_size=1)
    seen = []
    agent.q_net.q_net[0].register_forward_hook(lambda module, x, y: seen.append(y.shape))
    agent.q_net.q_net[2].register_forward_pre_hook(lambda module, x: seen.append(x[0].shape))
    policy = EquizeroPolicy(agent, "CartPole-v1")
    policy.predict(np.zeros((3, 4), np.float32), deterministic=True)
    assert seen == [(6, 64), (6, 64)]
    agent.q_net.q_net.register_forward_hook(lambda module, x, y: seen.append(y.shape))
    policy.predict(np.zeros((3, 4), np.float32), deterministic=True)
    assert seen[2:] == [(6, 64), (6, 64), (6, 2)]


def test_a_network_with_a_forward_of_its_own_is_called():
    class Scaled(nn.Sequential):
        def forward(self, x):
            return 3 * super().forward(x)

    agent = DQN("MlpPolicy", gym.make("CartPole-v1"), buffer_size=1)
    agent.q_net.q_net = Scaled(*agent.q_net.q_net)
    x = torch.randn(7, 4)
    with torch.no_grad():
        torch.testing.assert_close(head_of(agent, None)(x), agent.q_net(x))


def test_what_hooks_have_seen_is_not_changed():
    kwargs = {"net_arch": [16, 16]}
    agent = DQN("MlpPolicy", gym.make("CartPole-v1"), buffer_size=1, policy_kwargs=kwargs)
    seen = []
    agent.q_net.q_net[2].register_forward_hook(lambda module, x, y: seen.append(y))
    x = torch.randn(20, 4)
    with torch.no_grad():
        head_of(agent)(x)
        agent.q_net(x)
    assert (seen[0] < 0).any() and torch.equal(*seen)


def test_gradients_flow_through_the_layers():
    agent = DQN("MlpPolicy", gym.make("CartPole-v1"), buffer_size=1)
    x = torch.randn(5, 4)
    head_of(agent)(x).square().sum().backward()
    found = [p.grad.clone() for p in agent.q_net.parameters()]
    agent.q_net.zero_grad()
    agent.q_net(x).softmax(-1).square().sum().backward()
    for grad, parameter in zip(found, agent.q_net.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad)


def test_extractors_that_are_not_shared_are_saved_so(tmp_path):
    kwargs = {"share_features_extractor": False}
    image = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=True)
    agent = PPO("CnnPolicy", image, policy_kwargs=kwargs, **SHORT)
    space = agent.observation_space
    one = trivial()
    still = Symmetry(Trivial(one), Permutation(one, [range(agent.action_space.n)]))
    policy = EquizeroPolicy(agent, still)
    policy.save(tmp_path / "policy.safetensors")
    loaded = EquizeroPolicy.load(tmp_path / "policy.safetensors", device="cpu")
    space.seed(0)
    observations = np.stack([space.sample() for _ in range(4)])
    np.testing.assert_array_equal(
        loaded.action_values(observations), policy.action_values(observations)
    )


def test_real_ppo_agent_on_cartpole(shared_agents):
    """It holds the pole for all 500 steps, as published, and mirrored too."""
    agent = equirl.load_agent(shared_agents / "ppo-CartPole-v1.zip")
    assert isinstance(agent, PPO)
    for kind in (EquitunePolicy, EquizeroPolicy):
        policy = kind(agent, "CartPole-v1")
        mean, _ = evaluate_policy(policy, gym.make("CartPole-v1"), n_eval_episodes=2)
        assert mean == 500


def test_real_sac_agent_on_pendulum(shared_agents):
    """Equizero swings it up as well as the agent itself: published -157."""
    agent = equirl.load_agent(shared_agents / "sac-Pendulum-v1.zip")
    assert isinstance(agent, SAC)
    env = gym.make("Pendulum-v1")
    returns = {}
    for name, policy in {"plain": agent, "equizero": EquizeroPolicy(agent, pendulum())}.items():
        env.reset(seed=0)
        returns[name], _ = evaluate_policy(policy, env, n_eval_episodes=5)
    assert all(-250 < mean < -60 for mean in returns.values()), returns


def check_few_steps(policy, observations, **tolerance):
    """Of actions and their values only the actions count."""
    inputs = policy.inputs(policy.obs_to_tensor(observations)[0])
    with torch.inference_mode():
        found, expected = Compiled(policy.symmetrized)(inputs), policy.symmetrized(inputs)
    if isinstance(found, dict):
        expected = {name: expected[name] for name in found}
        assert "action" in found
    torch.testing.assert_close(found, expected, equal_nan=True, **tolerance)


@each_model
def test_few_steps_compute_what_the_symmetrized_head_does(made):
    """Both are of one head and one reducer; one takes the representations, one where entries go."""
    agent, symmetry, observations = made
    agent.policy.set_training_mode(False)
    for policy in policies(agent, symmetry):
        for count in (1, 40):
            check_few_steps(policy, observations[:count], rtol=1e-5, atol=1e-5)


class Plane(gym.Env):
    """A place and a velocity; actions are a force, or one of the four directions."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def __init__(self, discrete):
        box = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(4) if discrete else box


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(
    "algorithm, discrete", [(DQN, True), (PPO, True), (contrib.MaskablePPO, True), (SAC, False)]
)
def test_few_steps_do_what_a_group_of_eight_elements_does(algorithm, discrete, double):
    """Turns and mirror images of the plane, not all of which commute."""
    turn, mirror = np.array([[0, -1], [1, 0]]), np.diag([1, -1])
    square = equicore.Group.from_matrices([turn, mirror])
    force = Matrix.from_generators(square, [turn, mirror])
    symmetry = Symmetry(
        Matrix.from_generators(square, [np.kron(np.eye(2), m) for m in (turn, mirror)]),
        Permutation.from_generators(square, [[1, 2, 3, 0], [0, 3, 2, 1]]) if discrete else force,
    )
    agent, _ = made_of(algorithm, partial(Plane, discrete), lambda: None)()
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    for policy in policies(agent, symmetry):
        if double:  # what moves the policy moves its agent
            policy.double()
        actions, _ = policy.predict(observations, deterministic=True)
        check_few_steps(policy, observations, rtol=1e-5, atol=1e-6)
        if double:
            policy.float()
        for g in range(8):
            moved = symmetry.act_on_observations(g, observations)
            np.testing.assert_allclose(
                policy.predict(moved, deterministic=True)[0],
                symmetry.act_on_actions(g, actions),
                rtol=1e-4,
                atol=1e-5,
            )


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_few_steps_take_the_mean_of_views_that_are_valued_alike(algorithm):
    """All views of the origin are one; beside it stands a state whose views differ."""
    flip = cyclic(2)
    symmetry = Symmetry(
        Matrix.from_generators(flip, [-np.eye(4)]), Matrix.from_generators(flip, [-np.eye(2)])
    )
    agent, _ = made_of(algorithm, partial(Plane, False), lambda: None)()
    policy = EquizeroPolicy(agent, symmetry)
    observations = np.float32([[0, 0, 0, 0], [1, -2, 3, 0.5]])
    for seen in (observations, observations[:1], observations[1:]):
        check_few_steps(policy, seen)
    assert not policy.predict(observations[0], deterministic=True)[0].any()
    with torch.no_grad():  # the values of all views are infinite, or none is a number
        last = agent.policy.value_net if algorithm is PPO else agent.critic.q_networks[0][-1]
        for value in (torch.inf, torch.nan):
            last.bias.fill_(value)
            check_few_steps(policy, observations)
