import dataclasses

import gymnasium as gym
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from stable_baselines3 import DQN, PPO

import equirl
from equirl.agents import landscape
from equirl.agents.landscape import (
    RESOLUTION,
    Landscape,
    Row,
    draw,
    grid,
    identity_weights,
    margins,
    value_rows,
    values,
)


@pytest.fixture(scope="module")
def model():
    return DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu", buffer_size=1)


@pytest.fixture(scope="module")
def visited():
    """States on one side only, as of a lopsided agent."""
    return np.random.default_rng(0).uniform(0, [1, 2, 0.1, 3], (500, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def states(visited):
    return grid(visited, (0, 2), equirl.symmetry_of("CartPole-v1"))


@pytest.fixture(scope="module")
def weighted(model, visited):
    policy = equirl.LambdaEquitunePolicy(model, "CartPole-v1")
    equirl.fit_familiarity(policy, visited, steps=100)
    return policy


@pytest.fixture
def cartpole(new_agent, fits, tmp_path):
    return Landscape(
        new_agent, env="CartPole-v1", device="cpu", transitions=80, output=tmp_path / "out"
    )


def test_grid_is_as_wide_as_the_visited_states_and_their_mirror_image(states, visited):
    assert states.shape == (RESOLUTION**2, 4)
    assert (states[:, [1, 3]] == 0).all()
    square = states.reshape(RESOLUTION, RESOLUTION, 4)
    assert (np.diff(square[0, :, 0]) > 0).all() and (np.diff(square[:, 0, 2]) > 0).all()
    assert states[:, 0].max() == pytest.approx(np.percentile(visited[:, 0], 99), abs=1e-6)
    np.testing.assert_allclose(states[::-1], -states, atol=1e-6)


def test_entries_that_the_group_leaves_are_at_their_mean():
    angles = np.random.default_rng(0).uniform(-1, 1, (2, 500))
    cosines, sines = np.cos(angles), np.sin(angles)
    parts = [cosines[0], sines[0], cosines[1], sines[1], *angles]
    visited = np.stack(parts, axis=1).astype(np.float32)
    states = grid(visited, (0, 3), equirl.symmetry_of("Acrobot-v1"))
    assert (states[:, [1, 4, 5]] == 0).all()
    np.testing.assert_allclose(states[:, 2], visited[:, 2].mean(), rtol=1e-6)
    across, up = states[:, 0], states[:, 3]
    assert (across.min() + across.max()) / 2 == pytest.approx(visited[:, 0].mean(), rel=1e-6)
    assert up.min() == -up.max()


@pytest.mark.parametrize("kind", [equirl.EquitunePolicy, equirl.EquizeroPolicy, None])
def test_symmetrised_landscape_is_equivariant(kind, model, states, weighted):
    policy = weighted if kind is None else kind(model, "CartPole-v1")
    margin = margins(values(policy, states, "softmax"))
    # the mirror image of the i-th state is the i-th from the end
    np.testing.assert_allclose(margin[::-1], -margin, atol=1e-5)
    best = values(policy, states).max(1)
    np.testing.assert_allclose(best[::-1], best, atol=1e-5)
    plain = margins(values(model, states, "softmax"))
    assert np.abs(plain[::-1] + plain).max() > 1e-2


def test_landscape_is_that_of_the_policy(model, states, weighted):
    for policy in (equirl.EquitunePolicy(model, "CartPole-v1"), weighted):
        shown = values(policy, states, "softmax")
        np.testing.assert_allclose(shown, policy.action_values(states), atol=1e-6)
    actions, _ = model.predict(states, deterministic=True)
    np.testing.assert_array_equal(values(model, states).argmax(1), actions)


def test_equitune_and_equizero_act_alike_with_two_actions(model, states):
    tune, zero = (
        margins(values(kind(model, "CartPole-v1"), states, "softmax"))
        for kind in (equirl.EquitunePolicy, equirl.EquizeroPolicy)
    )
    clear = np.abs(tune) > 1e-5
    assert clear.any()
    np.testing.assert_array_equal(tune[clear] > 0, zero[clear] > 0)


def test_margins():
    np.testing.assert_allclose(margins(np.array([[0.9, 0.1], [0.2, 0.8]])), [-0.8, 0.6])
    np.testing.assert_allclose(margins(np.array([[0.2, 0.7, 0.1], [0.5, 0.5, 0.0]])), [0.5, 0])


def test_lambda_trusts_the_agent_where_it_has_been(weighted, visited):
    here, there = (identity_weights(weighted, states) for states in (visited, -visited))
    assert here.shape == (len(visited),)
    assert 0 <= there.min() and here.max() <= 1
    assert np.median(here) > 0.9 and np.median(there) < 0.1
    np.testing.assert_allclose(here + there, 1, atol=1e-5)


def test_panels_of_a_row_share_one_scale(model, states, visited):
    policies = {"plain": model, "equitune": equirl.EquitunePolicy(model, "CartPole-v1")}
    rows = value_rows(policies, states)
    figure = draw(rows, states, visited, {0: "cart position", 2: "pole angle"})
    panels = [axis for axis in figure.axes if axis.get_images()]
    assert [panel.get_title() for panel in panels] == ["plain", "equitune"] * 2
    limits = [panel.get_images()[0].get_clim() for panel in panels]
    assert limits[0] == limits[1] and limits[2] == limits[3]
    assert limits[2][0] == -limits[2][1]  # of two actions, centred at 0
    assert panels[2].get_xlabel() == "cart position" and panels[2].get_ylabel() == "pole angle"
    assert panels[0].get_xlim() == pytest.approx((states[0, 0], states[-1, 0]))
    plt.close(figure)


def test_panels_show_the_right_states(states, visited):
    up = Row("up", {"": states[:, 2]}, -1, 1)
    figure = draw([up], states, visited, {0: "x", 2: "y"})
    image = figure.axes[0].get_images()[0]
    shown = image.get_array()
    assert image.origin == "lower" and (shown[0] < shown[-1]).all()
    assert (shown[:, 0] == shown[:, -1]).all()
    plt.close(figure)


def test_landscape_of_cartpole(cartpole, capsys):
    landscape.main(cartpole)
    files = {file.name: file for file in cartpole.output.iterdir()}
    assert {"lambda.png", "q_landscape.png"} <= set(files)  # SVGs too, where they are small
    assert set(capsys.readouterr().out.split()) == {str(file) for file in files.values()}
    for file in files.values():
        assert file.stat().st_size < 250_000
    for name in ("lambda.png", "q_landscape.png"):
        assert matplotlib.image.imread(files[name])[..., :3].std() > 0.05


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn, and the figures' titles; a figure is not."""
    calls = []

    def recorded(*arguments):
        figure = plt.figure()
        calls.append((*arguments, figure))
        return figure

    monkeypatch.setattr(landscape, "draw", recorded)
    return calls


def test_equal_policies_are_drawn_once(cartpole, drawn):
    """With two actions and two elements equizero is equitune."""
    landscape.main(cartpole)
    (above, below), _, _, names, figure = drawn[0]
    expected = ["plain", "equitune (equizero acts alike)", "λ-equitune"]
    assert list(above.panels) == list(below.panels) == expected
    assert names == {0: "cart position", 2: "pole angle"}
    assert figure.get_suptitle().startswith("CartPole-v1\nmine\nother entries")


def test_landscape_of_a_run_folder(tiny_runs, fits, drawn, tmp_path):
    landscape.main(Landscape(tiny_runs[0], axes=(0, 1), transitions=80, output=tmp_path))
    (_, margins_below), states, visited, names, _ = drawn[0]
    assert list(margins_below.panels) == ["plain", "equitune", "equizero", "λ-equitune"]
    assert margins_below.low == 0 and margins_below.label == "p(best action) − p(second best)"
    assert names == {0: "entry 0", 1: "entry 1"}
    assert states.shape == (RESOLUTION**2, 4) and visited.shape == (80, 4)
    (weights,), *_ = drawn[1]
    assert (weights.low, weights.high) == (0, 1)
    assert list(weights.panels) == ["λ-equitune"]


def test_equal_calls_draw_the_same(cartpole, drawn):
    for _ in range(2):
        landscape.main(cartpole)
    for first, second in zip(drawn[:2], drawn[2:], strict=True):
        for ours, theirs in zip(first[0], second[0], strict=True):
            for title, panel in ours.panels.items():
                assert np.array_equal(panel, theirs.panels[title])
        assert np.array_equal(first[1], second[1]) and np.array_equal(first[2], second[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": (1, 1)}, r"--axes must be two different entries of 0..3; got \(1, 1\)"),
        ({"axes": (0, 4)}, "two different entries of 0..3"),
        ({"axes": (-1, 2)}, "two different entries of 0..3"),
        ({"transitions": 9}, "--transitions must be at least 10; got 9"),
        ({"device": "cudaa"}, "there is no device cudaa here"),
        ({"env": None}, "--env CartPole-v1"),
    ],
)
def test_wrong_arguments(cartpole, change, message):
    with pytest.raises(ValueError, match=message):
        landscape.main(dataclasses.replace(cartpole, **change))


def test_a_file_is_no_output_folder(cartpole):
    cartpole.output.touch()
    with pytest.raises(ValueError, match="is a file, not a folder"):
        landscape.main(cartpole)


def test_entry_that_never_changes_is_refused(visited):
    still = visited * np.array([1, 1, 0, 1], dtype=np.float32)
    with pytest.raises(ValueError, match="entry 2 is always the same; name another"):
        grid(still, (0, 2), equirl.symmetry_of("CartPole-v1"))


def test_images_have_no_landscape(tmp_path):
    env = gym.make("equirl/Gridworld-v0", observation="image", n=4)
    DQN("MlpPolicy", env, device="cpu", buffer_size=1).save(tmp_path / "images.zip")
    arguments = Landscape(
        tmp_path / "images.zip",
        env="equirl/Gridworld-v0",
        env_kwargs=("observation=image", "n=4"),
        output=tmp_path,
    )
    with pytest.raises(ValueError, match=r"needs observations that are vectors; got .*\(2, 4, 4\)"):
        landscape.main(arguments)


def test_values_of_an_actor_critic_are_its_probabilities(states):
    model = PPO("MlpPolicy", "CartPole-v1", seed=0, n_steps=8, batch_size=8, device="cpu")
    chances = values(model, states, "softmax")
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)
    actions, _ = model.predict(states, deterministic=True)
    np.testing.assert_array_equal(chances.argmax(1), actions)


def test_continuous_actions_are_drawn_themselves(tmp_path, short_fits, capsys):
    path = tmp_path / "pendulum.zip"
    PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8, device="cpu").save(path)
    arguments = Landscape(
        path, env="Pendulum-v1", device="cpu", axes=(1, 2), transitions=64, output=tmp_path
    )
    landscape.main(arguments)
    assert "actions.png" in capsys.readouterr().out
    assert (tmp_path / "actions.png").exists() and (tmp_path / "lambda.png").exists()


def test_rows_of_actions_are_those_that_policies_take():
    agent = PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8, seed=0, device="cpu")
    policy = equirl.EquizeroPolicy(agent, "Pendulum-v1")
    states = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    (row,) = landscape.action_rows({"one": policy, "other": agent}, states, ("torque",))
    wanted, _ = policy.predict(states, deterministic=True)
    assert np.array_equal(row.panels["one"], wanted[:, 0])
    assert row.label == "torque" and row.high == -row.low >= abs(wanted).max()


def test_axes_can_be_named(cartpole, drawn):
    landscape.main(dataclasses.replace(cartpole, axes=(1, 3), labels=("speed", "spin")))
    assert list(drawn[0][3].items()) == [(1, "speed"), (3, "spin")]
