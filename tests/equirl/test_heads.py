"""Agents of other algorithms than DQN: what a head says is all that they need."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
from torch import nn

import equicore
import equirl
from equicore import Matrix, MLPWeight, Permutation, Trivial, cyclic, trivial
from equirl import EquitunePolicy, EquizeroPolicy, LambdaEquitunePolicy, SymmetrizedPolicy, Symmetry
from equirl.heads import Head, Logits, head_of

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
    action_space = gym.spaces.Box(
        np.array([-1, 0, -1, 0], np.float32), np.array([1, 3, 1, 3], np.float32)
    )


def arms():
    """The arms change places."""
    swap = cyclic(2)
    return Symmetry(
        Permutation.from_generators(swap, [[2, 3, 0, 1, 4]]),
        Permutation.from_generators(swap, [[2, 3, 0, 1]]),
    )


MODELS = {
    "ppo, discrete": lambda: (PPO("MlpPolicy", gym.make("CartPole-v1"), seed=0), cartpole()),
    "a2c, discrete": lambda: (A2C("MlpPolicy", gym.make("CartPole-v1"), seed=0), cartpole()),
    "ppo, continuous": lambda: (PPO("MlpPolicy", gym.make("Pendulum-v1"), seed=0), pendulum()),
    "a2c, gSDE": lambda: (A2C("MlpPolicy", Arms(), use_sde=True, seed=0), arms()),
    "sac": lambda: (SAC("MlpPolicy", Arms(), buffer_size=1, seed=0), arms()),
    "sac, gSDE": lambda: (SAC("MlpPolicy", Arms(), buffer_size=1, use_sde=True), arms()),
}
CONTINUOUS = [name for name in MODELS if "discrete" not in name]
each_model = pytest.mark.parametrize("name", MODELS)
each_continuous = pytest.mark.parametrize("name", CONTINUOUS)


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
    return [
        quiet_equitune(agent, symmetry),
        EquizeroPolicy(agent, symmetry),
        LambdaEquitunePolicy(agent, symmetry, weight),
    ]


def quiet_equitune(agent, symmetry):
    """Without the warning that continuous actions have no useful mean."""
    if isinstance(agent.action_space, gym.spaces.Discrete):
        return EquitunePolicy(agent, symmetry)
    with pytest.warns(UserWarning, match="averages actions"):
        return EquitunePolicy(agent, symmetry)


@each_model
def test_actions_are_equivariant(made):
    agent, symmetry, observations = made
    moved = symmetry.act_on_observations(1, observations)
    for policy in policies(agent, symmetry):
        actions, _ = policy.predict(observations, deterministic=True)
        assert actions.shape == (40, *agent.action_space.shape)
        expected = symmetry.act_on_actions(1, actions)
        found, _ = policy.predict(moved, deterministic=True)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        one, _ = policy.predict(observations[7], deterministic=True)
        np.testing.assert_allclose(one, actions[7], rtol=1e-4, atol=1e-5)
        assert one.shape == agent.action_space.shape
    plain, _ = agent.predict(observations, deterministic=True)
    mirrored, _ = agent.predict(moved, deterministic=True)
    assert np.abs(mirrored - symmetry.act_on_actions(1, plain)).max() > 1e-3


@each_model
def test_under_the_trivial_group_every_policy_is_the_agent(made):
    agent, symmetry, observations = made
    group = cyclic(1)
    size = int(getattr(agent.action_space, "n", 0)) or agent.action_space.shape[0]
    nothing = Symmetry(equicore.Trivial(group), Permutation(group, [range(size)]))
    expected, _ = agent.predict(observations, deterministic=True)
    for policy in policies(agent, nothing):
        actions, _ = policy.predict(observations, deterministic=True)
        np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-6)


@each_continuous
def test_equizero_takes_the_view_that_the_agent_values_most(made):
    """By plain loops over the agent's own networks."""
    agent, symmetry, observations = made
    candidates, values = [], []
    for g in (0, 1):
        seen = symmetry.act_on_observations(g, observations)
        actions, _ = agent.predict(seen, deterministic=True)
        tensor = torch.from_numpy(seen)
        with torch.no_grad():
            if isinstance(agent, SAC):
                scaled = torch.from_numpy(agent.policy.scale_action(actions))
                both = agent.critic(tensor, scaled)
                values.append(torch.minimum(*both).squeeze(1).numpy())
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


@pytest.mark.parametrize("name", ["ppo, discrete", "a2c, discrete", "sac"])
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
def test_continuous_actions_are_not_drawn_but_refused(made):
    agent, symmetry, observations = made
    with pytest.raises(ValueError, match="deterministic=True"):
        EquizeroPolicy(agent, symmetry).predict(observations)


@each_continuous
def test_continuous_actions_stay_in_their_bounds(made):
    agent, symmetry, observations = made
    space = agent.action_space
    for policy in policies(agent, symmetry):
        actions, _ = policy.predict(100 * observations, deterministic=True)
        assert (actions >= space.low).all() and (actions <= space.high).all()


@each_continuous
def test_action_values_are_for_discrete_actions(made):
    agent, symmetry, observations = made
    with pytest.raises(TypeError, match="only discrete actions have values"):
        EquizeroPolicy(agent, symmetry).action_values(observations)


@each_model
def test_saved_and_loaded_policies_act_alike(made, tmp_path):
    agent, symmetry, observations = made
    for policy in policies(agent, symmetry)[1:]:
        policy.save(tmp_path / "policy")
        loaded = SymmetrizedPolicy.load(tmp_path / "policy")
        assert type(loaded) is type(policy)
        np.testing.assert_array_equal(
            loaded.predict(observations, deterministic=True)[0],
            policy.predict(observations, deterministic=True)[0],
        )


def test_a_head_of_ones_own_is_all_that_an_algorithm_needs(monkeypatch):
    """A policy class that nobody knows, with a row in the table."""

    class Sign(equirl.heads.DiscreteHead):
        def values(self, observations):
            return torch.stack([-observations[:, 2], observations[:, 2]], 1)

    agent = DQN("MlpPolicy", gym.make("CartPole-v1"), buffer_size=1)
    row = (type(agent.policy), gym.spaces.Discrete, Sign)
    monkeypatch.setattr(equirl.heads, "HEADS", (row,))
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
