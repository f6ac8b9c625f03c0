import json
import shutil
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.dqn.policies import QNetwork
from torch import nn

import equicore
import equirl
from equicore import Image, MLPWeight, Trivial, cyclic
from equirl import EquitunePolicy, EquizeroPolicy, LambdaEquitunePolicy, SymmetrizedPolicy, Symmetry
from equirl.heads import log_odds

KINDS = (EquitunePolicy, EquizeroPolicy, LambdaEquitunePolicy)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_normalize = pytest.mark.parametrize("normalize", ["softmax", None])
# every kind, normalization and precision, in most pairs; not the whole grid
SETTINGS = [
    (EquitunePolicy, "softmax", False),
    (EquitunePolicy, None, True),
    (EquizeroPolicy, "softmax", True),
    (EquizeroPolicy, None, False),
    (LambdaEquitunePolicy, "softmax", True),
    (LambdaEquitunePolicy, None, False),
]
each_setting = pytest.mark.parametrize(
    ("kind", "normalize", "double"),
    SETTINGS,
    ids=lambda value: getattr(value, "__name__", str(value)),
)


def random_weight(case, double=False):
    """A weight network that is not constant, as a new one is."""
    weight = MLPWeight(case.shape, hidden=(16,))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in weight.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return weight.double() if double else weight


def make_policy(kind, case, normalize="softmax", double=False, seed=0):
    agent = case.agent(seed=seed, double=double)
    if kind is LambdaEquitunePolicy:
        return kind(agent, case.symmetry(), random_weight(case, double), normalize)
    return kind(agent, case.symmetry(), normalize)


def cartpole_agent(**kwargs):
    return DQN("MlpPolicy", gym.make("CartPole-v1"), **{"buffer_size": 1, "seed": 0} | kwargs)


class Plane(gym.Env):
    """Three actions in the plane; nothing happens."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(3)


def softmax(values):
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def aligned_values(case, agent, observations, normalize):
    """V(g s)[g a] of every element, sample and action, by plain loops."""
    stack = np.zeros((case.order, len(observations), len(case.permutations[0])))
    for g, permutation in enumerate(case.permutations):
        values = case.q_values(agent, case.act(g, observations)).astype(float)
        values = softmax(values) if normalize else values
        for a, moved in enumerate(permutation):
            stack[g, :, a] = values[:, moved]
    return stack


def moved_actions(case, g, values):
    """Values whose entry a has gone to place g a."""
    moved = np.empty_like(values)
    moved[..., list(case.permutations[g])] = values
    return moved


@each_setting
def test_action_values_are_equivariant(case, kind, normalize, double):
    policy = make_policy(kind, case, normalize, double)
    observations = case.observations(50, double=double)
    values = policy.action_values(observations)
    assert values.dtype == (np.float64 if double else np.float32)
    tolerance = (1e-12 if double else 1e-5) * np.abs(values).max()
    for g in range(case.order):
        expected = moved_actions(case, g, values)
        moved = case.act(g, observations)
        np.testing.assert_allclose(policy.action_values(moved), expected, 0, tolerance)
        np.testing.assert_allclose(policy.action_values(moved[:1]), expected[:1], 0, tolerance)
        np.testing.assert_allclose(policy.action_values(moved[7]), expected[7], 0, tolerance)


def test_turns_by_a_third_are_equivariant_in_float64():
    # unlike those of the environments, their matrices have entries that are rounded
    cos, sin = -0.5, 0.75**0.5
    turn = np.array([[cos, -sin], [sin, cos]])
    symmetry = Symmetry(
        equicore.Matrix.from_generators(cyclic(3), [turn]),
        equicore.Permutation.from_generators(cyclic(3), [[1, 2, 0]]),
    )
    agent = DQN("MlpPolicy", Plane(), buffer_size=1, seed=0)
    agent.policy.double()
    policy = EquitunePolicy(agent, symmetry)
    observations = np.random.default_rng(0).normal(size=(20, 2))
    values = policy.action_values(observations)
    moved = policy.action_values(observations @ turn.T)
    np.testing.assert_allclose(moved, values[:, [2, 0, 1]], rtol=1e-12)


@each_kind
def test_greedy_actions_are_equivariant(case, kind):
    policy = make_policy(kind, case, double=True)
    observations = case.observations(200, double=True)
    actions, _ = policy.predict(observations, deterministic=True)
    for g in range(case.order):
        moved, _ = policy.predict(case.act(g, observations), deterministic=True)
        assert (moved == np.array(case.permutations[g])[actions]).all()


def test_a_plain_agent_is_not_equivariant(case):
    agent, observations = case.agent(), case.observations(200)
    actions, _ = agent.predict(observations, deterministic=True)
    moved, _ = agent.predict(case.act(1, observations), deterministic=True)
    assert (moved != np.array(case.permutations[1])[actions]).mean() > 0.1
    values = case.q_values(agent, observations)
    moved = case.q_values(agent, case.act(1, observations))
    assert np.abs(moved - moved_actions(case, 1, values)).max() > 0.01


@each_normalize
def test_equitune_is_the_mean(case, normalize):
    policy = make_policy(EquitunePolicy, case, normalize, double=True)
    observations = case.observations(40, double=True)
    expected = aligned_values(case, policy.model, observations, normalize).mean(0)
    np.testing.assert_allclose(policy.action_values(observations), expected, 1e-12, 1e-13)


@each_normalize
def test_equizero_chooses_the_arg_max_of_the_maximum(case, normalize):
    policy = make_policy(EquizeroPolicy, case, normalize, double=True)
    observations = case.observations(200, double=True)
    expected = aligned_values(case, policy.model, observations, normalize).max(0)
    actions, _ = policy.predict(observations, deterministic=True)
    assert (actions == expected.argmax(1)).all()
    if normalize:
        expected = np.log(expected / (1 - expected))
    np.testing.assert_allclose(policy.action_values(observations), expected, 1e-10, 1e-10)


def scaled(agent, factor):
    """The agent with all its Q-values multiplied."""
    with torch.no_grad():
        for parameter in agent.q_net.q_net[-1].parameters():
            parameter.mul_(factor)
    return agent


def test_equizero_does_not_saturate(case):
    """Where the softmax of several views is 1 in float32, the larger margin decides."""
    agent = scaled(case.agent(), 1000)
    policy, observations = EquizeroPolicy(agent, case.symmetry()), case.observations(300)
    stack = aligned_values(case, agent, observations, normalize=None)
    ordered = np.sort(stack, axis=-1)
    margins = ordered[..., -1] - ordered[..., -2]
    saturated = (np.sort(margins, axis=0)[-2:] > 20).all(0)
    assert saturated.sum() > 50
    best = margins.argmax(0)
    expected = stack[best, np.arange(300)].argmax(-1)
    actions, _ = policy.predict(observations, deterministic=True)
    assert (actions == expected)[saturated].all()
    for g in range(case.order):
        moved, _ = policy.predict(case.act(g, observations), deterministic=True)
        assert (moved == np.array(case.permutations[g])[actions])[saturated].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_odds_are_those_of_the_softmax(dtype):
    values = torch.randn(50, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(log_odds(values), values.softmax(-1).logit(), rtol=1e-4, atol=1e-5)
    far = torch.tensor([[100.0, 0.0, 60.0], [300.0, -300.0, 0.0]], dtype=dtype)
    expected = torch.tensor([[40.0, -100.0, -40.0], [300.0, -600.0, -300.0]], dtype=dtype)
    torch.testing.assert_close(log_odds(far), expected)


def test_one_action_that_is_not_masked_has_infinite_log_odds():
    values = torch.tensor([[-torch.inf, 3.0, -torch.inf], [1.0, 2.0, -torch.inf]])
    first, second = log_odds(values)
    assert first.tolist() == [-torch.inf, torch.inf, -torch.inf]
    assert second.tolist() == pytest.approx([-1, 1, -np.inf])
    assert log_odds(torch.tensor([[3.0]])).tolist() == [[torch.inf]]


@each_normalize
def test_lambda_is_the_weighted_mean(case, normalize):
    policy = make_policy(LambdaEquitunePolicy, case, normalize, double=True)
    observations = case.observations(40, double=True)
    stack = aligned_values(case, policy.model, observations, normalize)
    with torch.no_grad():
        log_weights = np.stack(
            [
                policy.weight(torch.from_numpy(case.act(g, observations).copy())).numpy()
                for g in range(case.order)
            ],
            axis=1,
        )
    sureness = stack.max(-1) - stack.mean(-1)
    weights = softmax(log_weights + policy.sharpness * np.log(sureness).T).T
    assert weights.max() > 0.9  # far from equal
    expected = (weights[:, :, None] * stack).sum(0)
    np.testing.assert_allclose(policy.action_values(observations), expected, 1e-12, 1e-13)


def test_a_new_lambda_of_no_sharpness_is_equitune(case):
    agent, observations = case.agent(), case.observations(20)
    np.testing.assert_allclose(
        LambdaEquitunePolicy(agent, case.symmetry(), sharpness=0).action_values(observations),
        EquitunePolicy(agent, case.symmetry()).action_values(observations),
        rtol=1e-6,
    )


def test_equizero_chooses_as_that_of_equicore_with_the_most_probable_element(case):
    policy = make_policy(EquizeroPolicy, case, double=True)
    symmetry, observations = case.symmetry(), case.observations(300, double=True)
    best = equicore.equizero(
        lambda x: policy.model.q_net.q_net(x.flatten(1)),
        symmetry.observation,
        symmetry.action,
        score=equicore.confidence,
    )
    with torch.no_grad():
        expected = best(torch.from_numpy(observations)).argmax(1).numpy()
    assert (policy.predict(observations, deterministic=True)[0] == expected).all()


def two_action_choices(q_here, q_mirrored, normalize):
    """Choices of equizero and equitune, from Q(s, .) and Q(mirrored s, .)."""
    here, mirrored = (softmax(q) if normalize else q for q in (q_here, q_mirrored))
    stack = np.stack([here, mirrored[..., ::-1]])
    return stack.max(0).argmax(-1), stack.mean(0).argmax(-1)


def test_with_two_actions_and_a_mirror_equizero_is_equitune():
    """For two actions that two elements swap, equizero with softmax and equitune are one policy.

    Let e be the identity and r the mirror, p_g(a) = softmax(Q(g s, .))[g a] the aligned
    probabilities, and d_g the difference of the aligned Q-values of action 0 and action 1.
    The softmax of two numbers is the sigmoid of their difference: p_g(0) = sigmoid(d_g) and
    p_g(1) = 1 - p_g(0) = sigmoid(-d_g).

    Equitune takes action 0 iff p_e(0) + p_r(0) > 1. As sigmoid increases and
    1 - sigmoid(y) = sigmoid(-y), sigmoid(x) + sigmoid(y) > 1 iff sigmoid(x) > sigmoid(-y) iff
    x > -y iff x + y > 0. So it takes action 0 iff d_e + d_r > 0.

    Equizero takes action 0 iff max(p_e(0), p_r(0)) > max(p_e(1), p_r(1)), that is, as sigmoid
    increases, iff max(d_e, d_r) > max(-d_e, -d_r) = -min(d_e, d_r), iff the sum of the larger
    and the smaller is positive. So it too takes action 0 iff d_e + d_r > 0.

    The proof needs both: with three actions p(a) is no function of one difference, and without
    softmax the maximum compares values whose sum over the actions differs between the states.
    """
    rng = np.random.default_rng(0)
    # differences from 0.1 to 10: not so large that probabilities round to 1
    for scale in (0.1, 1, 3):
        q_here, q_mirrored = rng.normal(scale=scale, size=(2, 20_000, 2))
        equizero, equitune = two_action_choices(q_here, q_mirrored, normalize=True)
        assert (equizero == equitune).all()
        assert 0.4 < equizero.mean() < 0.6


@pytest.mark.parametrize("seed", range(2))
def test_on_cartpole_equizero_is_equitune(cases, seed):
    case = cases["cartpole"]
    equizero, equitune = (
        make_policy(kind, case, double=True, seed=seed) for kind in (EquizeroPolicy, EquitunePolicy)
    )
    observations = 3 * case.observations(5000, seed, double=True)
    chosen, _ = equizero.predict(observations, deterministic=True)
    assert (chosen == equitune.predict(observations, deterministic=True)[0]).all()
    assert 0.2 < chosen.mean() < 0.8


def test_without_softmax_equizero_is_not_equitune():
    # here 0 is better by 3; in the mirror 1 is better by 1, at a level where all is worth more
    q_here, q_mirrored = np.array([[3.0, 0.0]]), np.array([[11.0, 10.0]])
    equizero, equitune = two_action_choices(q_here, q_mirrored, normalize=False)
    assert (equizero.item(), equitune.item()) == (1, 0)


def test_without_softmax_policies_differ_on_cartpole(cases):
    case = cases["cartpole"]
    observations = 3 * case.observations(5000, double=True)
    chosen = [
        make_policy(kind, case, None, double=True).predict(observations, deterministic=True)[0]
        for kind in (EquizeroPolicy, EquitunePolicy)
    ]
    assert (chosen[0] != chosen[1]).any()


def test_with_three_actions_equizero_and_equitune_differ(cases):
    case = cases["acrobot"]
    observations = 3 * case.observations(5000, double=True)
    chosen = [
        make_policy(kind, case, double=True).predict(observations, deterministic=True)[0]
        for kind in (EquizeroPolicy, EquitunePolicy)
    ]
    assert (chosen[0] != chosen[1]).any()


def trivial_symmetry(case):
    """One element, which does nothing: the symmetrised agent is the agent."""
    size = len(case.permutations[0])
    group = cyclic(1)
    return Symmetry(Trivial(group), equicore.Permutation(group, [range(size)]))


@each_normalize
def test_under_the_trivial_group_every_policy_is_the_agent(case, normalize):
    agent, observations = case.agent(), case.observations(100)
    expected, _ = agent.predict(observations, deterministic=True)
    for kind in KINDS:
        policy = kind(agent, trivial_symmetry(case), normalize=normalize)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the weights of this policy are not fitted")
            actions, _ = policy.predict(observations, deterministic=True)
        assert (actions == expected).all()


def test_weights_that_are_not_fitted_are_warned_of_once(cases):
    case = cases["cartpole"]
    agent, observations = case.agent(), case.observations(100)
    policy = LambdaEquitunePolicy(agent, case.symmetry())
    assert not policy.fitted and "not fitted" in repr(policy)
    with pytest.warns(UserWarning, match=r"not fitted: .*see equirl\.fit_familiarity") as record:
        policy.predict(observations, deterministic=True)
    assert record[0].filename == __file__  # the caller's line
    policy.predict(observations, deterministic=True)
    equirl.fit_familiarity(policy, observations, steps=1)
    assert policy.fitted and "not fitted" not in repr(policy)
    again = LambdaEquitunePolicy(agent, case.symmetry(), policy.weight)
    again.predict(observations, deterministic=True)


def test_a_policy_says_what_it_is(case):
    for kind in KINDS:
        policy = kind(case.agent(), case.symmetry())
        space = policy.model.observation_space
        actions = policy.model.action_space
        group = policy.symmetry.group.name
        expected = f"{kind.__name__}(DQNPolicy, Box{space.shape} to {actions}, {group}"
        assert repr(policy).startswith(expected)
        assert policy.observation_space == space and policy.action_space == actions
        assert policy.device == torch.device("cpu")


def test_an_empty_batch_gives_no_actions(case):
    for kind in KINDS:
        policy = kind(case.agent(), case.symmetry())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the weights of this policy are not fitted")
            actions, _ = policy.predict(case.observations(0), deterministic=True)
        assert actions.shape == (0,)
        assert policy.action_values(case.observations(0)).shape == (0, policy.action_space.n)


@pytest.mark.parametrize("how", ["id", "env", "vector", "sb3"])
def test_an_environment_stands_for_its_symmetry(how):
    agent = cartpole_agent()
    env = {
        "id": lambda: "CartPole-v1",
        "env": lambda: gym.make("CartPole-v1"),
        "vector": lambda: gym.make_vec("CartPole-v1", 2),
        "sb3": lambda: agent.get_env(),
    }[how]()
    assert EquizeroPolicy(agent, env).symmetry.group == equirl.symmetry_of("CartPole-v1").group
    with pytest.raises(TypeError, match="expected a Symmetry, an environment or its id; got 3"):
        EquizeroPolicy(agent, 3)


@pytest.mark.parametrize(("deterministic", "rate"), [(True, 1.0), (False, 0.0), (False, 1.0)])
def test_predict_returns_what_an_agent_returns(case, deterministic, rate):
    agent = case.agent()
    agent.exploration_rate = rate
    policy = EquizeroPolicy(agent, case.symmetry())
    observations = case.observations(3)
    for observation in (observations, observations[:1], observations[0]):
        state = (np.arange(3),)
        start = np.ones(1, bool)
        found, found_state = policy.predict(observation, state, start, deterministic)
        expected, expected_state = agent.predict(observation, state, start, deterministic)
        assert type(found) is type(expected) is np.ndarray
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype == np.int64
        assert found_state is expected_state is state


def test_predict_is_not_deterministic_by_default_as_an_agents():
    agent = cartpole_agent()
    agent.exploration_rate = 1.0
    policy = EquizeroPolicy(agent, "CartPole-v1")
    observation = np.array([0.1, 0.2, 0.03, 0.4], np.float32)
    assert len({int(policy.predict(observation)[0]) for _ in range(40)}) == 2
    assert len({int(policy.predict(observation, deterministic=True)[0]) for _ in range(40)}) == 1


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_random_actions_are_those_that_the_agent_would_draw(cases, batch):
    case = cases["acrobot"]
    agent = case.agent()
    policy = EquizeroPolicy(agent, case.symmetry())
    observation = case.observations(1)[0] if batch is None else case.observations(batch)
    draws = []
    for drawer in (agent, policy):
        agent.exploration_rate = 1.0
        agent.action_space.seed(1)
        np.random.seed(1)
        draws.append([drawer.predict(observation)[0] for _ in range(30)])
    np.testing.assert_array_equal(*draws)
    assert len(np.unique(draws[0])) == 3


def test_exploration_happens_when_the_agents_would(cases):
    case = cases["acrobot"]
    agent = case.agent()
    # the symmetry that does nothing, so that greedy actions are the agent's too
    policy = EquizeroPolicy(agent, trivial_symmetry(case))
    observation = case.observations(1)[0]
    draws = []
    for drawer in (agent, policy):
        agent.exploration_rate = 0.5
        agent.action_space.seed(1)
        np.random.seed(1)
        draws.append([int(drawer.predict(observation)[0]) for _ in range(100)])
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 3


def test_without_exploration_predict_is_greedy(case):
    agent = case.agent()
    agent.exploration_rate = 0.0
    policy = EquizeroPolicy(agent, case.symmetry())
    observations = case.observations(50)
    greedy = policy.predict(observations, deterministic=True)[0]
    assert (policy.predict(observations, deterministic=False)[0] == greedy).all()


def test_the_policy_of_an_agent_is_always_greedy(case):
    agent = case.agent()
    agent.exploration_rate = 1.0
    with pytest.warns(UserWarning, match="does not tell whether its observations were normalised"):
        policy = EquizeroPolicy(agent.policy, case.symmetry())
    observations = case.observations(50)
    greedy = policy.predict(observations, deterministic=True)[0]
    assert (policy.predict(observations)[0] == greedy).all()


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_tuple_of_reset_is_refused(deterministic):
    env = gym.make("CartPole-v1")
    agent = cartpole_agent()
    agent.exploration_rate = 1.0
    with pytest.raises(ValueError, match="passed a tuple"):
        EquizeroPolicy(agent, "CartPole-v1").predict(env.reset(seed=0), deterministic=deterministic)


@pytest.mark.parametrize("shape", [(3,), (5,), (2, 3), (2, 2, 4), (), (1, 1, 4)])
def test_wrong_shapes_are_refused(shape):
    policy = EquizeroPolicy(cartpole_agent(), "CartPole-v1")
    with pytest.raises(ValueError, match="shape"):
        policy.predict(np.zeros(shape, np.float32), deterministic=True)


def awkward_arrays(observations):
    read_only = observations.copy()
    read_only.flags.writeable = False
    wide = np.zeros((len(observations) * 2, observations.shape[1]), observations.dtype)
    wide[::2] = observations
    return {
        "read-only": read_only,
        "every other row": wide[::2],
        "column order": np.asfortranarray(observations),
        "negative strides": observations[::-1].copy()[::-1],
        "float64": observations.astype(np.float64),
        "list": observations.tolist(),
    }


@pytest.mark.parametrize("name", awkward_arrays(np.zeros((2, 4), np.float32)))
def test_awkward_arrays_are_accepted(name):
    policy = EquizeroPolicy(cartpole_agent(), "CartPole-v1")
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    expected, _ = policy.predict(observations, deterministic=True)
    actions, _ = policy.predict(awkward_arrays(observations)[name], deterministic=True)
    assert (actions == expected).all()


def test_whole_numbers_are_observations_as_they_are_for_an_agent():
    agent = cartpole_agent()
    agent.predict([0, 1, 0, 2], deterministic=True)
    policy = EquizeroPolicy(agent, "CartPole-v1")
    for dtype in (int, np.int32):
        whole = np.array([[0, 1, 0, 2], [3, -1, 0, 0]], dtype)
        np.testing.assert_allclose(
            policy.action_values(whole), policy.action_values(whole.astype(np.float32))
        )


def test_observations_are_not_changed(case):
    policy = make_policy(LambdaEquitunePolicy, case)
    observations = case.observations(5)
    before = observations.copy()
    policy.predict(observations, deterministic=True)
    assert (observations == before).all()


@each_kind
def test_evaluate_policy_accepts_it(cases, kind):
    case = cases["cartpole"]
    policy = make_policy(kind, case)
    plain, _ = evaluate_policy(policy, gym.make("CartPole-v1"), n_eval_episodes=2)
    vector, _ = evaluate_policy(
        policy, DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2), n_eval_episodes=2
    )
    assert plain >= 5
    assert vector >= 5


def test_returns_do_not_depend_on_the_element_through_which_it_sees():
    policy = EquizeroPolicy(cartpole_agent(), "CartPole-v1")
    returns = []
    for element in (0, 1):
        env = equirl.SymmetryWrapper(gym.make("CartPole-v1"), element=element)
        env.reset(seed=3)
        returns.append(evaluate_policy(policy, env, 3, return_episode_rewards=True)[0])
    assert returns[0] == returns[1]


@each_kind
def test_what_the_agent_learns_later_is_seen(case, kind):
    policy = make_policy(kind, case)
    observations = case.observations(5)
    before = policy.action_values(observations)
    with torch.no_grad():
        for parameter in policy.model.policy.q_net.parameters():
            parameter.mul_(2)
    after = policy.action_values(observations)
    assert np.abs(after - before).max() > 1e-3


def test_learning_goes_on_with_a_policy_around():
    agent = cartpole_agent(buffer_size=200, learning_starts=20, learning_rate=0.01)
    policy = EquizeroPolicy(agent, "CartPole-v1")
    observations = np.ones((3, 4), np.float32)
    before = policy.action_values(observations)
    agent.learn(60)
    assert np.abs(policy.action_values(observations) - before).max() > 1e-4
    agent.learn(60, reset_num_timesteps=False)


def test_predicting_switches_to_evaluation_mode():
    class Dropping(FlattenExtractor):
        def forward(self, observations):
            return nn.functional.dropout(super().forward(observations), 0.5, self.training)

    agent = cartpole_agent(policy_kwargs={"features_extractor_class": Dropping})
    policy = EquizeroPolicy(agent, "CartPole-v1")
    agent.policy.set_training_mode(True)
    observations = np.ones((3, 4), np.float32)
    first = policy.action_values(observations)
    assert not agent.policy.training
    assert not agent.policy.q_net.training
    assert (policy.action_values(observations) == first).all()


def test_predicting_leaves_no_gradients(cases):
    policy = make_policy(LambdaEquitunePolicy, cases["cartpole"])
    policy.action_values(np.ones((3, 4), np.float32))
    assert all(p.requires_grad and p.grad is None for p in policy.model.q_net.parameters())


def half_turn(channels=3):
    """A symmetry of images that are no larger than need be for a convolutional network."""
    return Symmetry(
        Image(cyclic(2), [0, 2], [False, False]),
        equicore.Permutation.from_generators(cyclic(2), [[1, 0, 3, 2]]),
    )


def pixels_agent(**kwargs):
    env = FakeImageEnv(action_dim=4, screen_height=36, screen_width=40, n_channels=3)
    return DQN("CnnPolicy", env, buffer_size=1, seed=0, **kwargs)


def test_pixels_are_scaled_and_their_channels_moved_as_for_the_agent():
    agent = pixels_agent()
    policy = EquizeroPolicy(agent, half_turn())
    images = np.random.default_rng(0).integers(256, size=(3, 36, 40, 3), dtype=np.uint8)
    with torch.no_grad():
        raw = [
            agent.q_net(agent.policy.obs_to_tensor(turned)[0]).softmax(-1).logit().numpy()
            for turned in (images, images[:, ::-1, ::-1].copy())
        ]
    expected = np.maximum(raw[0], raw[1][:, [1, 0, 3, 2]])
    channels_first = images.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(policy.action_values(images), expected, rtol=1e-3)
    np.testing.assert_allclose(policy.action_values(channels_first), expected, rtol=1e-3)
    np.testing.assert_allclose(policy.action_values(images[0]), expected[0], rtol=1e-3)


def test_an_agent_without_a_head_is_refused_by_name():
    class Mine(BasePolicy):
        def _predict(self, observation, deterministic=False):
            return torch.zeros(len(observation))

    env = gym.make("CartPole-v1")
    with pytest.raises(TypeError, match=r"kinds DQNPolicy, QRDQNPolicy, .*; got .*Mine$"):
        EquizeroPolicy(Mine(env.observation_space, env.action_space), "CartPole-v1")


@each_kind
@pytest.mark.parametrize("thing", ["agent.zip", None, nn.Linear(4, 2), DQN])
def test_what_is_no_agent_is_refused_by_name(thing, kind):
    with pytest.raises(TypeError, match=rf"kinds DQNPolicy, .*; got .*{type(thing).__name__}$"):
        kind(thing, "CartPole-v1")


def test_a_q_network_of_its_own_is_refused():
    class Dueling(QNetwork):
        def forward(self, obs):
            return super().forward(obs) ** 2

    agent = cartpole_agent()
    agent.policy.q_net.__class__ = Dueling
    with pytest.raises(TypeError, match="Dueling overrides forward"):
        EquizeroPolicy(agent, "CartPole-v1")


@each_kind
def test_symmetry_of_another_environment_is_refused(kind):
    with pytest.raises(ValueError, match="does not fit the observation space"):
        kind(cartpole_agent(), "Acrobot-v1")


@each_kind
def test_unknown_id_is_refused(kind):
    with pytest.raises(ValueError, match="did you mean 'CartPole-v1'"):
        kind(cartpole_agent(), "CartPole-v0")


@each_kind
@pytest.mark.parametrize("normalize", ["max", "", False])
def test_unknown_normalization_is_refused(kind, normalize):
    with pytest.raises(ValueError, match='normalize must be "softmax" or None; got'):
        kind(cartpole_agent(), "CartPole-v1", normalize=normalize)


@each_kind
def test_nan_in_the_observation_is_refused_with_its_place(cases, kind):
    policy = make_policy(kind, cases["cartpole"])
    observations = np.zeros((5, 4), np.float32)
    observations[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"NaN in the observation, at index \(3, 2\)"):
        policy.predict(observations, deterministic=True)
    with pytest.raises(ValueError, match=r"NaN in the observation, at index \(2,\)"):
        policy.action_values(observations[3])


@each_setting
def test_nan_in_the_network_is_refused_with_the_parameter(cases, kind, normalize, double):
    policy = make_policy(kind, cases["cartpole"], normalize)
    name = "q_net.2.bias" if double else "q_net.0.weight"
    with torch.no_grad():
        dict(policy.model.q_net.named_parameters())[name].view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=f"diverged, q_net.{name} is not finite"):
        policy.predict(np.ones((2, 4), np.float32), deterministic=True)


def test_nan_in_the_weight_network_is_refused(cases):
    policy = make_policy(LambdaEquitunePolicy, cases["cartpole"])
    with torch.no_grad():
        next(policy.weight.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        policy.predict(np.ones((2, 4), np.float32), deterministic=True)


def test_an_agent_of_normalised_rewards_is_accepted():
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), norm_obs=False)
    agent = DQN("MlpPolicy", env, buffer_size=1)
    EquizeroPolicy(agent, "CartPole-v1").predict(np.zeros(4, np.float32), deterministic=True)


@each_setting
def test_save_and_load_give_identical_values(case, kind, normalize, double, tmp_path):
    policy = make_policy(kind, case, normalize, double)
    policy.model.exploration_rate = 0.25
    policy.save(tmp_path / "policy.safetensors")
    loaded = SymmetrizedPolicy.load(tmp_path / "policy.safetensors")
    assert type(loaded) is kind
    assert loaded.normalize == normalize
    assert loaded.model.exploration_rate == 0.25
    assert loaded.model.observation_space == policy.model.observation_space
    assert loaded.model.action_space == policy.model.action_space
    observations = case.observations(30, double=double)
    values = loaded.action_values(observations)
    assert values.dtype == (np.float64 if double else np.float32)
    np.testing.assert_array_equal(values, policy.action_values(observations))
    assert [path.name for path in tmp_path.iterdir()] == ["policy.safetensors"]


@each_kind
def test_load_of_the_class_itself(cases, kind, tmp_path):
    make_policy(kind, cases["cartpole"]).save(tmp_path / "policy.safetensors")
    assert type(kind.load(str(tmp_path / "policy.safetensors"))) is kind


def test_a_policy_of_a_bare_network_is_saved_too(tmp_path):
    agent = cartpole_agent(policy_kwargs={"net_arch": [], "activation_fn": nn.Tanh})
    with pytest.warns(UserWarning, match="give the whole agent") as record:
        policy = EquizeroPolicy(agent.policy, "CartPole-v1")
    assert record[0].filename == __file__  # the caller's line
    policy.save(tmp_path / "policy")
    observations = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    np.testing.assert_array_equal(
        SymmetrizedPolicy.load(tmp_path / "policy").action_values(observations),
        policy.action_values(observations),
    )


def test_convolutional_agents_are_saved_and_loaded(tmp_path):
    policy = EquizeroPolicy(pixels_agent(), half_turn())
    policy.save(tmp_path / "policy")
    images = np.random.default_rng(0).integers(256, size=(3, 36, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        SymmetrizedPolicy.load(tmp_path / "policy").action_values(images),
        policy.action_values(images),
    )


def test_load_as_another_class_is_refused(cases, tmp_path):
    make_policy(EquizeroPolicy, cases["cartpole"]).save(tmp_path / "policy")
    with pytest.raises(ValueError, match="holds EquizeroPolicy, not LambdaEquitunePolicy"):
        LambdaEquitunePolicy.load(tmp_path / "policy")


def test_load_of_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SymmetrizedPolicy.load(tmp_path / "nowhere")


@pytest.mark.parametrize("part", [0, 0.01, 0.3, 0.99])
def test_load_of_a_truncated_file(cases, part, tmp_path):
    path = tmp_path / "policy"
    make_policy(EquizeroPolicy, cases["cartpole"]).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        SymmetrizedPolicy.load(path)


def test_load_of_an_archive_of_stable_baselines(tmp_path):
    cartpole_agent().save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="safetensors"):
        SymmetrizedPolicy.load(tmp_path / "agent.zip")


def test_load_of_tensors_without_our_header(tmp_path):
    safetensors.torch.save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="not written by equirl"):
        SymmetrizedPolicy.load(tmp_path / "x.safetensors")


def rewritten(path, change):
    """The file with its header changed."""
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["equirl"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    safetensors.torch.save_file(tensors, path, {"equirl": json.dumps(header)})


def argument(header, name):
    """One of those that the agent's policy is made with."""
    return header["agent"]["arguments"][name]


@pytest.mark.parametrize(
    "change",
    [
        lambda header, tensors: header.update(policy="os.system"),
        lambda header, tensors: header.pop("policy"),
        lambda header, tensors: header.pop("agent"),
        lambda header, tensors: header.pop("symmetry"),
        lambda header, tensors: header.update(normalize="max"),
        lambda header, tensors: header["symmetry"]["action"].update(kind="cyclic"),
        lambda header, tensors: header["agent"].update({"class": "os.system"}),
        lambda header, tensors: argument(header, "activation_fn").update({"class": "os.system"}),
        lambda header, tensors: argument(header, "activation_fn").update(
            {"class": "torch.nn.init"}
        ),
        lambda header, tensors: tensors.pop("agent.q_net.q_net.0.weight"),
        lambda header, tensors: tensors.update({"agent.extra": torch.zeros(1)}),
        lambda header, tensors: tensors.clear(),
        lambda header, tensors: argument(header, "action_space").update(n=3),
    ],
    ids=[
        "policy",
        "no-policy",
        "no-agent",
        "no-symmetry",
        "normalize",
        "representation",
        "class-of-the-policy",
        "activation",
        "not-an-activation",
        "missing-tensor",
        "extra-tensor",
        "no-tensors",
        "space",
    ],
)
def test_load_of_a_header_that_does_not_fit(cases, change, tmp_path):
    path = tmp_path / "policy"
    make_policy(EquizeroPolicy, cases["cartpole"]).save(path)
    rewritten(path, change)
    with pytest.raises(ValueError):
        SymmetrizedPolicy.load(path)


def test_load_of_a_newer_format_says_upgrade(cases, tmp_path):
    path = tmp_path / "policy"
    make_policy(EquizeroPolicy, cases["cartpole"]).save(path)
    rewritten(path, lambda header, tensors: header.update(format=99))
    with pytest.raises(ValueError, match="format 99.*upgrade"):
        SymmetrizedPolicy.load(path)


def test_load_of_an_older_format_says_save_again(cases, tmp_path):
    path = tmp_path / "policy"
    make_policy(EquizeroPolicy, cases["cartpole"]).save(path)
    rewritten(path, lambda header, tensors: header.pop("policy_format"))  # as before it was written
    with pytest.raises(ValueError, match="policy of format 1.*save it again"):
        SymmetrizedPolicy.load(path)


def test_a_save_that_fails_leaves_the_old_file(cases, tmp_path, monkeypatch):
    path = tmp_path / "policy.safetensors"
    policy = make_policy(EquizeroPolicy, cases["cartpole"])
    policy.save(path)
    old = path.read_bytes()

    def half_written(tensors, filename, metadata=None):
        with open(filename, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", half_written)
    with pytest.raises(OSError, match="disk full"):
        policy.save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["policy.safetensors"]


def test_save_makes_folders(cases, tmp_path):
    make_policy(EquizeroPolicy, cases["cartpole"]).save(tmp_path / "a" / "b" / "policy")
    EquizeroPolicy.load(tmp_path / "a" / "b" / "policy")


class Doubling(FlattenExtractor):
    def forward(self, observations):
        return 2 * super().forward(observations)


class Swish(nn.Module):
    def forward(self, x):
        return x * x.sigmoid()


@pytest.mark.parametrize(
    "policy_kwargs",
    [{"features_extractor_class": Doubling}, {"activation_fn": Swish}],
    ids=["extractor", "activation"],
)
def test_save_refuses_what_plain_data_cannot_describe(policy_kwargs, tmp_path):
    policy = EquizeroPolicy(cartpole_agent(policy_kwargs=policy_kwargs), "CartPole-v1")
    policy.predict(np.zeros(4, np.float32), deterministic=True)  # works all the same
    with pytest.raises(TypeError, match="Doubling|Swish"):
        policy.save(tmp_path / "policy")
    assert not list(tmp_path.iterdir())


def test_save_does_not_write_what_load_cannot_read(tmp_path):
    agent = pixels_agent(policy_kwargs={"features_extractor_kwargs": {"features_dim": 64}})
    policy = EquizeroPolicy(agent, half_turn())
    try:
        policy.save(tmp_path / "policy")
    except TypeError:
        return
    images = np.random.default_rng(0).integers(256, size=(3, 36, 40, 3), dtype=np.uint8)
    loaded = SymmetrizedPolicy.load(tmp_path / "policy")
    np.testing.assert_array_equal(loaded.action_values(images), policy.action_values(images))


@pytest.mark.slow
def test_loads_in_a_fresh_process(cases, tmp_path):
    path = tmp_path / "policy.safetensors"
    policy = make_policy(EquizeroPolicy, cases["gridworld"])
    policy.save(path)
    shutil.copy(path, tmp_path / "copy.safetensors")
    code = (
        "import sys, numpy, equirl\n"
        "policy = equirl.SymmetrizedPolicy.load(sys.argv[1])\n"
        "print(policy.predict(numpy.ones(4, 'float32'), deterministic=True)[0])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "copy.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    expected, _ = policy.predict(np.ones(4, np.float32), deterministic=True)
    assert result.stdout.strip() == str(expected)


def test_an_infinite_observation_is_named(cases):
    case = cases["acrobot"]
    policy = EquitunePolicy(case.agent(), case.symmetry())
    observations = case.observations(5)
    observations[3, 2] = np.inf
    with pytest.raises(ValueError, match=r"infinity in the observation, at index \(3, 2\)"):
        policy.predict(observations, deterministic=True)
