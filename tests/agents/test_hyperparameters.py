import re
import sys

import gymnasium
import pytest
import torch
import yaml
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv

from equirl.agents.hyperparameters import (
    ALGORITHMS,
    algorithm_arguments,
    algorithm_class,
    default_file,
    load_hyperparameters,
    parse_env_kwargs,
    setting_name,
)

SHIPPED = [
    (algo, setting)
    for algo in ALGORITHMS
    for setting in yaml.safe_load(default_file(algo).read_text())
]


def split(setting):
    env_id, *pairs = setting.split()
    return env_id, parse_env_kwargs(tuple(pairs))


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "dqn.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(("algo", "setting"), SHIPPED)
@pytest.mark.filterwarnings("ignore:builtin type [sS]wig")  # of box2d's bindings
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")  # the zoo's own
def test_shipped_hyperparameters_make_an_agent(algo, setting):
    env_id, env_kwargs = split(setting)
    assert setting_name(env_id, env_kwargs) == setting
    hyperparameters = load_hyperparameters(env_id, default_file(algo), env_kwargs, algo)
    env = DummyVecEnv(
        [lambda: gymnasium.make(env_id, **env_kwargs)] * hyperparameters.get("n_envs", 1)
    )
    arguments = algorithm_arguments(hyperparameters, env.action_space)
    if "buffer_size" in hyperparameters:
        arguments["buffer_size"] = env.num_envs
    model = algorithm_class(algo)(env=env, device="cpu", **arguments)
    for name in ("gamma", "n_steps", "batch_size"):
        assert getattr(model, name, None) == hyperparameters.get(name, getattr(model, name, None))
    if layers := hyperparameters.get("policy_kwargs", {}).get("net_arch"):
        assert model.policy.net_arch == layers
    env.close()


HER = "replay_buffer_class: HerReplayBuffer, replay_buffer_kwargs: "


def test_a_module_may_stand_before_ids_and_classes(write):
    path = write(
        "package:E-v0: {n_timesteps: 1, policy: MultiInputPolicy, "
        "replay_buffer_class: stable_baselines3.HerReplayBuffer}"
    )
    found = load_hyperparameters("E-v0", path, algo="sac")
    assert found["replay_buffer_class"] == "HerReplayBuffer"


def test_keys_of_the_zoo_are_checked(write):
    start = "E-v0: {n_timesteps: 1, policy: MlpPolicy, "
    for rest, message in (
        ("n_envs: 0}", "n_envs is at least 1; got 0"),
        ('normalize: "dict(norm_obs=True)"}', "text is not evaluated"),
        ("normalize: {norm_obz: true}}", "unknown key 'norm_obz', did you mean 'norm_obs'"),
        ("noise_type: normal}", "noise_type and noise_std belong together"),
        ("normalize: {clip_obs: ten}}", "normalize, clip_obs must be a number; got 'ten'"),
        ("normalize: {training: false}}", "unknown key 'training'"),
        ("env_wrapper: [{TimeFeatureWrapper: {max_steps: 9}}]}", "no arguments of wrappers"),
        ("env_wrapper: [TimeFeatureWrapper, TimeFeatureWrapper]}", "names a wrapper twice"),
        ("replay_buffer_kwargs: {n_sampled_goal: 2}}", "are of a replay_buffer_class; add that"),
        (HER + "{n_sampled_goal: four}}", "n_sampled_goal"),
        (HER + "{n_sampled_goal: -1}}", "n_sampled_goal is a number from 0; got"),
        (
            HER + "{goal_selection_strategy: futre}}",
            "is one of future, final, episode; got 'futre'",
        ),
        ("noise_type: pink, noise_std: 0.1}", "noise_type is one of normal, ornstein-uhlenbeck"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            load_hyperparameters("E-v0", write(start + rest), algo="sac")
    with pytest.raises(ValueError, match="unknown key 'noise_type'"):
        path = write(start + "noise_type: normal, noise_std: 0.1}")
        load_hyperparameters("E-v0", path, algo="ppo")


def test_noise_has_the_shape_of_actions(write):
    path = write("E-v0: {n_timesteps: 1, policy: MlpPolicy, noise_type: normal, noise_std: 0.25}")
    hyperparameters = load_hyperparameters("E-v0", path, algo="td3")
    noise = algorithm_arguments(hyperparameters, gymnasium.spaces.Box(-1, 1, (3,)))["action_noise"]
    assert noise._sigma.tolist() == [0.25] * 3
    with pytest.raises(ValueError, match="noise is added to actions in a Box"):
        algorithm_arguments(hyperparameters, gymnasium.spaces.Discrete(2))


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ImportError, match=r"tqc is of sb3-contrib.*'equirl\[contrib\]'"):
        algorithm_class("tqc")


def test_entry_of_a_setting_goes_before_that_of_the_environment(write):
    path = write(
        "E-v0: {n_timesteps: 1, policy: MlpPolicy}\n"
        "E-v0 n=3 goals=corner: {n_timesteps: 2, policy: MlpPolicy}\n"
    )
    for env_kwargs, steps in ({"n": 3, "goals": "corner"}, 2), ({"n": 3}, 1), (None, 1):
        found = load_hyperparameters("E-v0", path, env_kwargs)
        assert found["n_timesteps"] == steps


def test_unknown_key_suggests_the_near_miss(write):
    path = write("CartPole-v1: {n_timesteps: 10, policy: MlpPolicy, learning_rte: 0.1}")
    with pytest.raises(ValueError, match="unknown key 'learning_rte', did you mean 'learning_rate"):
        load_hyperparameters("CartPole-v1", path)


def test_unknown_policy_kwarg_suggests_the_near_miss(write):
    path = write("CartPole-v1: {n_timesteps: 10, policy: MlpPolicy, policy_kwargs: {net_arc: [8]}}")
    with pytest.raises(ValueError, match="policy_kwargs: unknown key 'net_arc', did you mean"):
        load_hyperparameters("CartPole-v1", path)


def test_classes_are_written_by_name(write):
    path = write(
        "E-v0: {n_timesteps: 10, policy: MlpPolicy, "
        "policy_kwargs: {optimizer_class: AdamW, activation_fn: Tanh}}"
    )
    policy_kwargs = algorithm_arguments(load_hyperparameters("E-v0", path))["policy_kwargs"]
    assert policy_kwargs == {"optimizer_class": torch.optim.AdamW, "activation_fn": torch.nn.Tanh}


def test_unknown_class_suggests_the_near_miss(write):
    path = write(
        "E-v0: {n_timesteps: 10, policy: MlpPolicy, policy_kwargs: {optimizer_class: AdamX}}"
    )
    with pytest.raises(ValueError, match=r"torch\.optim has no 'AdamX', did you mean 'Adam"):
        load_hyperparameters("E-v0", path)


def test_text_is_not_evaluated(write):
    path = write('E-v0: {n_timesteps: 10, policy: MlpPolicy, policy_kwargs: "dict(net_arch=[1])"}')
    with pytest.raises(ValueError, match="must be a mapping"):
        load_hyperparameters("E-v0", path)


@pytest.mark.parametrize("missing", ["n_timesteps", "policy"])
def test_missing_key_is_named(write, missing):
    values = {"n_timesteps": 10, "policy": "MlpPolicy"}
    del values[missing]
    with pytest.raises(ValueError, match=f"{missing} is missing"):
        load_hyperparameters("E-v0", write(yaml.safe_dump({"E-v0": values})))


def test_unknown_environment_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'CartPole-v2', did you mean 'CartPole-v1'\?; it has"):
        load_hyperparameters("CartPole-v2", default_file("dqn"))


@pytest.mark.parametrize("text", ["- a list", "CartPole-v1: 3", "CartPole-v1: {a: [}"])
def test_broken_yaml_is_refused(write, text):
    with pytest.raises(ValueError, match=r"dqn\.yaml"):
        load_hyperparameters("CartPole-v1", write(text))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no hyperparameters"):
        load_hyperparameters("CartPole-v1", tmp_path / "none.yaml")


def test_linear_learning_rate_falls_to_zero():
    schedule = algorithm_arguments({"n_timesteps": 1, "learning_rate": "lin_0.01"})["learning_rate"]
    assert (schedule(1.0), schedule(0.0)) == pytest.approx((0.01, 0.0))


def test_a_pair_of_a_frequency_is_a_tuple():
    arguments = algorithm_arguments({"n_timesteps": 1, "train_freq": [1, "episode"]})
    assert arguments == {"train_freq": (1, "episode"), "policy_kwargs": {}}


def entry(write, text):
    path = write(f"E-v0: {{n_timesteps: 10, policy: MlpPolicy, {text}}}")
    return load_hyperparameters("E-v0", path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate: 1e-3", 0.001),
        ("learning_rate: '1e-3'", 0.001),
        ("learning_rate: 1", 1),
        ("learning_rate: !!float 5e-4", 0.0005),
        ("gamma: .99", 0.99),
        ("max_grad_norm: 0.5", 0.5),
        ("buffer_size: 0x10", 16),
        ("batch_size: 1e2", 100),
        ("batch_size: '64'", 64),
        ("buffer_size: 1.0e+5", 100_000),
        ("buffer_size: !!float 5e2", 500),
        ("buffer_size: 50_000", 50_000),
        ("learning_starts: 010", 10),
        ("train_freq: [1e1, step]", [10, "step"]),
        ("policy_kwargs: {net_arch: [1e2, 64.0]}", {"net_arch": [100, 64]}),
    ],
)
def test_every_number_means_the_number(write, text, expected):
    found = entry(write, text)[text.partition(":")[0]]
    assert found == expected and type(found) is type(expected)
    model = DQN(env="CartPole-v1", **algorithm_arguments({**entry(write, text), "buffer_size": 1}))
    rate = model.policy.optimizer.param_groups[0]["lr"]
    assert rate == (expected if "learning_rate" in text else 1e-4)
    assert model.lr_schedule(0.5) == rate


def test_steps_are_a_whole_number(write):
    path = write("E-v0: {n_timesteps: !!float 1e3, policy: MlpPolicy}")
    steps = load_hyperparameters("E-v0", path)["n_timesteps"]
    assert steps == 1000 and isinstance(steps, int)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: fast", "learning_rate must be a number or lin_<number>; got 'fast'"),
        ("learning_rate: lin_", "learning_rate must be a number or lin_<number>; got 'lin_'"),
        ("learning_rate: lin_fast", "number or lin_<number>; got 'lin_fast'"),
        ("learning_rate: true", "number or lin_<number>; got True"),
        ("learning_rate: linear_1e-3", "got 'linear_1e-3'"),
        ("gamma: lin_0.9", "gamma must be a number; got 'lin_0.9'"),
        ("batch_size: 6.5", "batch_size must be a whole number; got 6.5"),
        ("buffer_size: many", "buffer_size must be a whole number; got 'many'"),
        ("n_timesteps: 1:30", "n_timesteps must be a whole number; got '1:30'"),
        ("train_freq: [x, step]", "train_freq's frequency must be a whole number; got 'x'"),
        ("policy_kwargs: {net_arch: [a]}", "each entry of net_arch must be a whole number"),
        ("optimize_memory_usage: 1e0", "optimize_memory_usage must be true or false; got 1"),
    ],
)
def test_what_is_no_number_is_refused(write, text, message):
    path = write(f"E-v0:\n  n_timesteps: 10\n  policy: MlpPolicy\n  {text}\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_hyperparameters("E-v0", path)


@pytest.mark.parametrize(
    ("pair", "value"), [("n=6e0", 6), ("n=010", 10), ("step_cost=1e-2", 0.01), ("x=1.5e3", 1500.0)]
)
def test_numbers_of_env_kwargs(pair, value):
    (found,) = parse_env_kwargs((pair,)).values()
    assert found == value and type(found) is type(value)


def test_env_kwargs_have_yaml_types():
    assert parse_env_kwargs(("n=6", "goals=corner", "step_cost=0.5")) == {
        "n": 6,
        "goals": "corner",
        "step_cost": 0.5,
    }


@pytest.mark.parametrize("pair", ["n", "=3", "a b=3"])
def test_env_kwargs_of_another_form_are_refused(pair):
    with pytest.raises(ValueError, match="name=value"):
        parse_env_kwargs((pair,))
