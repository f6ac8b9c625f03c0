import numpy as np
import pytest

import equirl
from equirl.agents.definition import POLICIES as STUDIED
from equirl.agents.evaluation import episode_returns
from equirl.agents.policies import CANDIDATES, MAKERS, POLICIES, ROLLOUT_SEED, Subject
from equirl.agents.saved import find_agents


@pytest.fixture
def subject(tiny_runs):
    (agent,) = find_agents(tiny_runs[0])
    return Subject(agent, 60, "cpu")


@pytest.mark.parametrize("name", MAKERS)
def test_every_policy_is_made_and_plays(subject, fits, name):
    policy = subject.policy(name)
    assert episode_returns(policy, subject.agent, "transformed", 3).shape == (3,)


def test_known_policies():
    assert set(POLICIES) < set(CANDIDATES) <= set(MAKERS)
    assert set(POLICIES) < set(STUDIED) < set(MAKERS)
    assert CANDIDATES[0] == POLICIES[0] == STUDIED[0] == "plain"


LAMBDAS = [name for name in MAKERS if "lambda" in name and name != "lambda_blend"]


def test_names_stand_for_different_ways(subject, fits):
    policies = {name: subject.policy(name) for name in MAKERS}
    assert policies["plain"] is subject.model
    assert policies["equizero"].normalize == "softmax"
    assert policies["equizero_raw"].normalize is None
    sharp = {name: policies[name].sharpness for name in LAMBDAS}
    assert sharp.pop("lambda") > 0 and set(sharp.values()) == {0}
    assert policies["lambda_td"].normalize is None


def test_weights_are_fitted_once_for_each_source(subject, fits):
    first, second = ([subject.policy(name) for name in LAMBDAS] for _ in "12")
    assert [a.weight is b.weight for a, b in zip(first, second, strict=True)] == [True] * 4
    assert sorted(fits) == ["fit_familiarity", "fit_familiarity", "fit_temporal_difference"]
    weights = [policy.weight for policy in first]  # lambda, _rollouts, _replay, _td
    assert weights[0] is weights[2]
    assert len(set(map(id, weights))) == 3


def test_weights_that_are_given_are_not_fitted(subject, fits):
    subject.familiarity("replay")
    fits.clear()
    again = Subject(subject.agent, 60, "cpu", weights=subject.weights)
    assert again.policy("lambda").weight is subject.weights["replay"]
    assert not fits


def test_without_a_replay_buffer_lambda_learns_from_rollouts(subject):
    assert subject.replay is subject.rollouts
    expected = equirl.rollout_experience(
        subject.model,
        subject.agent.env_id,
        60,
        seed=ROLLOUT_SEED,
        env_kwargs=subject.agent.env_kwargs,
    )
    assert np.array_equal(subject.rollouts.observations, expected.observations)


def test_lambda_learns_from_the_newest_of_the_replay_buffer(subject, tmp_path):
    """That of the checkpoint, which lies beside it."""
    for steps in (80, 120):
        file = tmp_path / f"rl_model_{steps}_steps.safetensors"
        subject.rollouts.newest(steps // 4).save(file)
    replays = []
    for name in ("rl_model_80_steps", "equirl-Gridworld-v0"):
        path = tmp_path / f"{name}.zip"
        path.write_bytes(subject.agent.path.read_bytes())
        (agent,) = find_agents(path, subject.agent.env_id, subject.agent.env_kwargs)
        replays.append(Subject(agent, 25, "cpu").replay)
    assert [len(replay) for replay in replays] == [20, 25]
    assert np.array_equal(replays[1].observations, subject.rollouts.newest(25).observations)
