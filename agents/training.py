"""What a training is, and the checks before one starts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

import equirl
from equicore.lab.command import check_least, check_several
from equicore.lab.devices import check_device
from equicore.lab.store import check_claim, claim
from equirl.agents.arguments import Train
from equirl.agents.hyperparameters import (
    algorithm_arguments,
    algorithm_class,
    default_file,
    load_hyperparameters,
    parse_env_kwargs,
)
from equirl.agents.layers import layered, shows_vectors
from equirl.agents.runs import RunFolder
from equirl.experience import takes_masks
from equirl.seeds import TRAINING_EVALUATION_SEED


@dataclasses.dataclass(frozen=True)
class Training:
    """One training: what `train_agent` needs, all of it checked."""

    arguments: Train
    env_kwargs: dict[str, Any]
    seed: int
    steps: int
    hyperparameters: dict[str, Any]
    folder: RunFolder

    @property
    def budgets(self) -> list[int]:
        """Environment steps at each checkpoint."""
        number = self.arguments.checkpoints
        return [round(self.steps * i / number) for i in range(1, number + 1)]

    @property
    def description(self) -> dict[str, dict[str, Any]]:
        """Arguments and hyperparameters, as they stand in the run folder."""
        given = self.arguments
        arguments: dict[str, Any] = {
            "algo": given.algo,
            "env": given.env,
            "env_kwargs": self.env_kwargs,
            "seed": self.seed,
            "n_timesteps": self.steps,
            "checkpoints": given.checkpoints,
            "eval_episodes": given.eval_episodes,
        }
        if given.experience:
            arguments["experience"] = given.experience
        return self.folder.description(arguments, self.hyperparameters)

    def make_env(self) -> gym.Env:
        """The environment, in the wrappers that the hyperparameters name."""
        env = gym.make(self.arguments.env, **self.env_kwargs)
        return layered(env, self.hyperparameters.get("env_wrapper", ()))

    def make_envs(self, leg: int | None = None) -> VecEnv:
        """The environments of the training, side by side, as the agent sees them.

        Args:
            leg: Names the files of their episodes; none are written when omitted.
        """

        def make(i: int) -> gym.Env:
            name = f"{leg}_{i}" if number > 1 else str(leg)
            file = None if leg is None else str(self.folder.path / name)  # .monitor.csv
            return Monitor(self.make_env(), file)

        number = self.hyperparameters.get("n_envs", 1)
        return self.seen(DummyVecEnv([functools.partial(make, i) for i in range(number)]))

    def seen(self, envs: VecEnv, **changes: Any) -> VecEnv:
        """Environments whose observations are stacked, and then normalised, if they are to be."""
        if (frames := self.hyperparameters.get("frame_stack", 1)) > 1:
            envs = VecFrameStack(envs, frames)
        given = self.hyperparameters.get("normalize", False)
        if not given:
            return envs
        own = given if isinstance(given, dict) else {}
        gamma = {k: self.hyperparameters[k] for k in ("gamma",) if k in self.hyperparameters}
        return VecNormalize(envs, **{**gamma, **own, **changes})

    def new_agent(self, **changes: Any) -> Any:
        """An agent that has not learned yet, in environments of its own."""
        given, envs = self.arguments, self.make_envs()
        arguments = algorithm_arguments(self.hyperparameters, envs.action_space) | changes
        kind: Any = algorithm_class(given.algo)
        return kind(env=envs, seed=self.seed, device=given.device, **arguments)


def plan(arguments: Train) -> list[Training]:
    """Check everything that can be checked before work starts, and list the trainings.

    Raises:
        ValueError: If an argument makes no sense.
        FileExistsError: If a run folder holds another run.
    """
    check_several(arguments, "seeds")
    kind = algorithm_class(arguments.algo)
    if arguments.experience and not issubclass(kind, OffPolicyAlgorithm):
        raise ValueError(
            f"--experience keeps transitions of a replay buffer, and {arguments.algo} has none"
        )
    if not all(0 <= seed < TRAINING_EVALUATION_SEED for seed in arguments.seeds):
        raise ValueError(f"seeds must be 0..{TRAINING_EVALUATION_SEED - 1}; got {arguments.seeds}")
    check_least(arguments, checkpoints=1, eval_episodes=1, jobs=1, experience=0, eval_freq=1)
    check_device(arguments.device)
    env_kwargs = parse_env_kwargs(arguments.env_kwargs)
    try:
        gym.make(arguments.env, **env_kwargs).close()
    except Exception as error:  # whatever an environment raises for wrong arguments
        known = ", ".join(equirl.registered_symmetries())
        raise ValueError(
            f"cannot make {arguments.env}: {str(error).rstrip('.')}. One of a package is named "
            "with its module, as in gymnasium_robotics:PointMaze_UMaze-v3. Environments whose "
            f"symmetry is known: {known}"
        ) from error
    bare_id = arguments.env.rpartition(":")[2]
    file = arguments.hyperparameters or default_file(arguments.algo)
    hyperparameters = load_hyperparameters(bare_id, file, env_kwargs, arguments.algo)
    steps = hyperparameters["n_timesteps"] if arguments.steps is None else arguments.steps
    if (every := arguments.eval_freq) is not None:
        if steps % every:
            raise ValueError(f"--eval-freq {every} does not divide the {steps} steps")
        arguments = dataclasses.replace(arguments, checkpoints=steps // every, eval_freq=None)
    if steps < arguments.checkpoints:
        raise ValueError(f"{steps} steps are too few for {arguments.checkpoints} checkpoints")
    trainings = []
    for seed in arguments.seeds:
        folder = RunFolder.of(arguments.output, arguments.algo, arguments.env, seed)
        trainings.append(Training(arguments, env_kwargs, seed, steps, hyperparameters, folder))
    smallest = {"buffer_size": 1} if issubclass(kind, OffPolicyAlgorithm) else {}
    try:
        _check_fits(trainings[0])
        trial = trainings[0].new_agent(**smallest)
        if takes_masks(trial) and not trial.get_env().has_attr("action_masks"):
            raise ValueError("the environment has no action_masks(), by which it learns")
    except Exception as error:  # whatever SB3 and torch raise for what they cannot use
        raise ValueError(
            f"no {arguments.algo} can be made of {file.name}, {bare_id}, on "
            f"{arguments.device}: {error}"
        ) from error
    rollout = getattr(trial, "n_steps", 0) * trial.n_envs
    if isinstance(trial, OnPolicyAlgorithm) and rollout > min(np.diff([0, *trainings[0].budgets])):
        raise ValueError(
            f"{arguments.algo} learns from {rollout:,} steps at once (n_steps x n_envs), and there "
            f"are to be {arguments.checkpoints} checkpoints in {steps:,} steps: some would hold "
            "more than their name says. Give fewer --checkpoints, more --steps, or a smaller "
            f"n_steps in {file.name}"
        )
    for training in trainings:
        check_claim(training.folder.path, training.description)
    for training in trainings:
        claim(training.folder.path, training.description)
    return trainings


def _check_fits(training: Training) -> None:
    """Raise ValueError where the hyperparameters do not go with the environment."""
    given = training.hyperparameters
    with contextlib.closing(training.make_env()) as env:
        space, spec = env.observation_space, env.spec
    stacks = given.get("frame_stack", 1) > 1
    if stacks and not shows_vectors(space):
        raise ValueError(f"frame_stack is for vectors; got {space}")
    dicts = isinstance(space, gym.spaces.Dict)
    if dicts != (given["policy"] == "MultiInputPolicy"):
        raise ValueError(f"MultiInputPolicy is for dicts, and others are not; got {space}")
    number, episodic = given.get("n_envs", 1), given.get("train_freq")
    if isinstance(episodic, list) and episodic[1:] == ["episode"] and number > 1:
        raise ValueError("to learn after each episode (train_freq), n_envs must be 1")
    if given.get("replay_buffer_class") != "HerReplayBuffer":
        return
    if not isinstance(space, gym.spaces.Dict) or "desired_goal" not in space.spaces:
        raise ValueError(f"HerReplayBuffer is for environments with goals; got {space}")
    longest = number * (spec.max_episode_steps or 0) if spec else 0
    if (starts := given.get("learning_starts", 100)) < longest:
        raise ValueError(
            "HerReplayBuffer learns from finished episodes, the first of which may take "
            f"{longest:,} steps (n_envs x max_episode_steps); learning_starts is {starts}, give at "
            "least that"
        )
