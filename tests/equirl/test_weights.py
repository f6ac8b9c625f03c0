import dataclasses

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO

import equicore
from equirl import (
    EquizeroPolicy,
    Experience,
    LambdaEquitunePolicy,
    fit_familiarity,
    fit_temporal_difference,
)


def lambda_policy(case, agent=None):
    """With weights of the network alone, which are all alike before it is fitted."""
    weight = equicore.MLPWeight(case.shape)
    return LambdaEquitunePolicy(agent or case.agent(), case.symmetry(), weight, sharpness=0)


def lopsided(count=600):
    """Visited states of CartPole in which the cart always stands right of the centre."""
    observations = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    observations[:, 0] = np.abs(observations[:, 0]) + 0.5
    return observations


def test_fitting_gives_the_weight_to_what_was_visited(cases):
    case = cases["cartpole"]
    policy = lambda_policy(case)
    loss = fit_familiarity(policy, lopsided(), steps=100)
    assert loss < 0.1
    # at visited states the policy now acts as the agent does; at mirrored ones by mirroring
    observations = lopsided(50)
    expected, _ = policy.model.predict(observations, deterministic=True)
    values = np.sort(
        np.exp(case.q_values(policy.model, observations)), axis=1
    )  # leave out states where the agent itself hardly prefers an action
    clear = values[:, 1] / values[:, 0] > 1.02
    assert clear.sum() > 20
    actions, _ = policy.predict(observations, deterministic=True)
    assert (actions == expected)[clear].all()
    mirrored, _ = policy.predict(-observations, deterministic=True)
    assert (mirrored == 1 - expected)[clear].all()


def test_what_was_visited_alike_cannot_be_told_apart(cases):
    policy = lambda_policy(cases["cartpole"])
    observations = np.concatenate([lopsided(), -lopsided()])
    assert fit_familiarity(policy, observations, steps=100) == pytest.approx(np.log(2), abs=0.1)


@pytest.mark.parametrize(
    "option",
    [{"steps": 9}, {"batch_size": 7}, {"learning_rate": 1e-2}, {"held_out": 0.2}, {"seed": 1}],
    ids=str,
)
def test_each_option_of_familiarity_matters(cases, option):
    losses = [
        fit_familiarity(lambda_policy(cases["cartpole"]), lopsided(100), **{"steps": 3, **options})
        for options in ({}, {}, option)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_the_agent_is_not_trained(cases):
    policy = lambda_policy(cases["cartpole"])
    before = [p.clone() for p in policy.model.q_net.parameters()]
    fit_familiarity(policy, lopsided(), steps=5)
    after = list(policy.model.q_net.parameters())
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("fit", [fit_familiarity, fit_temporal_difference])
@pytest.mark.parametrize("make", [EquizeroPolicy, lambda agent, symmetry: agent])
def test_what_has_no_weights_is_refused_by_name(cases, make, fit):
    case = cases["cartpole"]
    thing = make(case.agent(), case.symmetry())
    with pytest.raises(TypeError, match=f"weights to fit; got {type(thing).__name__}"):
        fit(thing, lopsided())


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        (np.zeros((9, 4)), "at least 10"),
        (np.zeros((20, 3)), "shape"),
        (np.full((20, 4), np.nan), "NaN"),
    ],
)
def test_unfit_observations_are_refused(cases, observations, message):
    policy = lambda_policy(cases["cartpole"])
    with pytest.raises(ValueError, match=message):
        fit_familiarity(policy, observations)


def one_sided_agent(case):
    """Q(s, 0) = 1 and Q(s, 1) = 0 where the first coordinate is positive, garbage elsewhere.

    Two hidden units, relu(x) and relu(-x) of the first coordinate x, and relu(1) for the constant:
    Q(s, 0) = 1 + 3 relu(-x), Q(s, 1) = -5 relu(-x).
    """
    agent = DQN(
        "MlpPolicy",
        case.make(),
        gamma=0.5,
        buffer_size=1,
        device="cpu",
        policy_kwargs={"net_arch": [2]},
    )
    hidden, _, output = agent.q_net.q_net
    with torch.no_grad():
        hidden.weight.zero_()
        hidden.bias.zero_()
        hidden.weight[0, 0], hidden.bias[1] = -1.0, 1.0
        output.weight.copy_(torch.tensor([[3.0, 1.0], [-5.0, 0.0]]))
        output.bias.zero_()
    return agent


def consistent(signs=(1,), count=800, seed=0):
    """Transitions for which Q(s, 0) = 1, Q(s, 1) = 0 is exact at a discount of a half.

    Action 0 is worth 1: it pays 1 and ends the episode, or 0.5 and goes on (0.5 + 0.5 * 1).
    Action 1 is worth 0: it pays -0.5 and goes on, or nothing and ends. The states are right of the
    centre; at sign -1 they and their actions are mirrored.
    """
    rng = np.random.default_rng(seed)
    before, after = (rng.normal(size=(count, 4)).astype(np.float32) for _ in range(2))
    for observations in (before, after):
        observations[:, 0] = np.abs(observations[:, 0]) + 0.5
    actions, ends = rng.integers(2, size=count), rng.random(count) < 0.3
    rewards = np.select([(actions == 0) & ends, (actions == 0), ~ends], [1, 0.5, -0.5], 0)
    sign = rng.choice(signs, size=count)
    mirrored = np.where(sign == 1, actions, 1 - actions)
    return Experience(
        before * sign[:, None].astype(np.float32),
        mirrored,
        rewards.astype(np.float32),
        after * sign[:, None].astype(np.float32),
        ends,
        np.ones(count, bool),
    )


def weights_of(policy, observations):
    """The weight of each element at each observation, (|G|, B)."""
    orbit = policy.symmetry.observation.orbit(torch.from_numpy(observations))
    with torch.no_grad():
        scores = policy.weight(orbit.flatten(0, 1)).view(orbit.shape[:2])
    return scores.softmax(0).numpy()


def huber(error):
    size = np.abs(error)
    return np.where(size < 1, size**2 / 2, size - 0.5).mean()


def loss_by_hand(policy, case, experience, gamma):
    """That of the temporal difference, in numpy and with the symmetry written down by hand."""

    def q_values(observations):
        total = 0
        for g, weight in enumerate(weights_of(policy, observations)):
            raw = case.q_values(policy.model, case.act(g, observations))
            total += weight[:, None] * raw[:, list(case.permutations[g])]
        return total

    target = experience.rewards + gamma * np.where(
        experience.terminated, 0, q_values(experience.next_observations).max(1)
    )
    chosen = q_values(experience.observations)[np.arange(len(experience)), experience.actions]
    return huber(chosen - target)


def random_experience(case, count=300, seed=0):
    rng = np.random.default_rng(seed)
    return Experience(
        case.observations(count, seed),
        rng.integers(len(case.permutations[0]), size=count),
        rng.normal(size=count).astype(np.float32),
        case.observations(count, seed + 1),
        rng.random(count) < 0.2,
        np.ones(count, bool),
    )


def test_the_loss_is_that_of_bellmans_equation(case):
    """Before a step, and after some; the weights move in between."""
    experience = random_experience(case, 100)
    for steps in (1, 6):
        policy = lambda_policy(case)
        loss = fit_temporal_difference(policy, experience, steps=steps, gamma=0.9)
        assert loss == pytest.approx(loss_by_hand(policy, case, experience, 0.9), rel=1e-4)


@pytest.mark.parametrize("name", ["acrobot", "gridworld-image"])
def test_the_loss_is_lowered(cases, name):
    """Rewards that weights can explain: the Q-value in the view with the largest first entry."""
    case = cases[name]
    drawn = random_experience(case)
    flat = [case.act(g, drawn.observations).reshape(len(drawn), -1) for g in range(case.order)]
    teacher = np.argmax([observations[:, 0] for observations in flat], axis=0)
    policy = lambda_policy(case)
    rewards = np.stack(
        [
            case.q_values(policy.model, observations)[
                np.arange(len(drawn)), np.array(permutation)[drawn.actions]
            ]
            for observations, permutation in zip(flat, case.permutations, strict=True)
        ]
    )[teacher, np.arange(len(drawn))]
    experience = dataclasses.replace(drawn, rewards=rewards, terminated=np.ones(len(drawn), bool))
    before = loss_by_hand(policy, case, experience, 0.9)
    after = fit_temporal_difference(policy, experience, steps=60, learning_rate=1e-2)
    assert 0 < after < 0.5 * before


def test_the_weight_goes_to_the_view_whose_values_satisfy_bellmans_equation(cases):
    """Also where all transitions are of states whose own values are wrong."""
    case = cases["cartpole"]
    policy = lambda_policy(case, one_sided_agent(case))
    experience = consistent(signs=(-1,))
    assert loss_by_hand(policy, case, experience, 0.5) > 0.5
    assert fit_temporal_difference(policy, experience, steps=150) < 0.02
    known = consistent(seed=5).observations  # to the right, where the agent's values are right
    assert np.median(weights_of(policy, known)[0]) > 0.9
    assert np.median(weights_of(policy, -known)[1]) > 0.9
    # familiarity would choose the other view
    policy = lambda_policy(case, one_sided_agent(case))
    fit_familiarity(policy, experience.observations, steps=100)
    assert np.median(weights_of(policy, known)[0]) < 0.1


def test_a_view_that_is_right_everywhere_is_found_in_both_halves(cases):
    case = cases["cartpole"]
    policy = lambda_policy(case, one_sided_agent(case))
    assert fit_temporal_difference(policy, consistent(signs=(1, -1)), steps=150) < 0.02
    known = consistent(seed=5).observations
    assert (policy.predict(known, deterministic=True)[0] == 0).mean() > 0.95
    assert (policy.predict(-known, deterministic=True)[0] == 1).mean() > 0.95


def test_the_discount_is_the_agents_unless_another_is_given(cases):
    case = cases["cartpole"]
    losses = [
        fit_temporal_difference(
            lambda_policy(case, one_sided_agent(case)), consistent(), steps=2, **options
        )
        for options in ({}, {"gamma": 0.5}, {"gamma": 0.99}, {"gamma": 0.0})
    ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_temporal_differences_do_not_train_the_agent(cases):
    policy = lambda_policy(cases["cartpole"])
    names = ("q_net", "q_net_target")
    before = [p.clone() for n in names for p in getattr(policy.model, n).parameters()]
    fit_temporal_difference(policy, consistent(), steps=5)
    after = [p for n in names for p in getattr(policy.model, n).parameters()]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))
    assert all(p.grad is None and p.requires_grad for p in policy.model.q_net.parameters())


def test_temporal_differences_leave_the_random_state_alone(cases):
    policy = lambda_policy(cases["cartpole"])
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    fit_temporal_difference(policy, consistent(), steps=5)
    assert (torch.get_rng_state() == torch_state).all()
    assert (np.random.get_state()[1] == numpy_state).all()


def test_temporal_differences_are_reproducible(cases):
    case = cases["cartpole"]

    def fitted(global_seed, **options):
        torch.manual_seed(global_seed)
        policy = lambda_policy(case)
        loss = fit_temporal_difference(policy, consistent(), steps=5, **options)
        return loss, torch.cat([p.detach().flatten() for p in policy.weight.parameters()])

    with torch.random.fork_rng():
        (first, ours), (again, theirs), (other, _) = fitted(0), fitted(1), fitted(0, seed=1)
    assert first == again != other
    assert (ours == theirs).all()


@pytest.mark.parametrize(
    "option", [{"steps": 3}, {"batch_size": 7}, {"learning_rate": 1e-2}], ids=str
)
def test_each_option_of_temporal_differences_matters(cases, option):
    default = {"steps": 5}
    losses = [
        fit_temporal_difference(lambda_policy(cases["cartpole"]), consistent(), **options)
        for options in (default, default | option)
    ]
    assert losses[0] != losses[1]


def test_a_bare_dqn_policy_does_not_know_its_discount(cases):
    case = cases["cartpole"]
    with pytest.warns(UserWarning, match="give the whole agent"):
        policy = lambda_policy(case, case.agent().policy)
    with pytest.raises(ValueError, match="does not know its discount; give gamma="):
        fit_temporal_difference(policy, consistent())
    assert fit_temporal_difference(policy, consistent(), gamma=0.5, steps=1) > 0


def test_an_agent_without_q_values_is_refused(cases):
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu")
    policy = LambdaEquitunePolicy(model, "CartPole-v1")
    with pytest.raises(TypeError, match="one of Q-values, which .* has not: ActorCriticPolicy"):
        fit_temporal_difference(policy, consistent())


def test_an_empty_experience_is_refused(cases):
    policy = lambda_policy(cases["cartpole"])
    with pytest.raises(ValueError, match="the experience is empty"):
        fit_temporal_difference(policy, consistent().newest(0))


@pytest.mark.parametrize(
    ("name", "double"), [("acrobot", True), ("gridworld", False), ("gridworld-image", True)]
)
def test_the_policy_stays_exactly_equivariant(cases, name, double):
    """To the rounding of the weights, which are float32."""
    case = cases[name]
    policy = lambda_policy(case, case.agent(double=double))
    fit_temporal_difference(policy, random_experience(case), steps=10)
    observations = case.observations(40, seed=9, double=double)
    values = policy.action_values(observations)
    for g, permutation in enumerate(case.permutations):
        turned = policy.action_values(np.ascontiguousarray(case.act(g, observations)))
        tolerance = {"rtol": 0, "atol": 1e-6}
        np.testing.assert_allclose(turned[:, list(permutation)], values, **tolerance)
    assert np.ptp(weights_of(policy, case.observations(40, seed=9))) > 1e-3  # not equitune


def test_a_fitted_policy_is_saved_with_its_weights(cases, tmp_path):
    case = cases["cartpole"]
    policy = lambda_policy(case)
    fit_temporal_difference(policy, consistent(), steps=3)
    policy.save(tmp_path / "policy")
    again = LambdaEquitunePolicy.load(tmp_path / "policy", device="cpu")
    observations = case.observations(20)
    assert (again.action_values(observations) == policy.action_values(observations)).all()
