"""Train agents, one per seed; a training that was interrupted goes on where it was.

A training runs in legs. Each leg starts from what the last one wrote, with the random generators
seeded from (seed, leg) and the environment reset, so that a training that was killed and
continued gives the same agent, bit for bit, as one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from filelock import FileLock, Timeout
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, make_output_format
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

import equirl
from equicore.lab.command import check_least, check_several
from equicore.lab.devices import check_device
from equicore.lab.jobs import Workers
from equicore.lab.store import check_claim, claim, replacing
from equirl.agents.arguments import Train
from equirl.agents.cli import run
from equirl.agents.hyperparameters import (
    algorithm_arguments,
    algorithm_class,
    default_file,
    load_hyperparameters,
    parse_env_kwargs,
)
from equirl.agents.layers import layered, shows_vectors
from equirl.agents.resume import Evaluations, restore, write_resume
from equirl.agents.runs import RunFolder
from equirl.experience import replay_experience, takes_masks
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
        trial = _new_agent(trainings[0], **smallest)
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


def train_all(trainings: list[Training], jobs: int) -> None:
    """Train agents side by side; those that are finished are skipped."""
    unfinished = [t for t in trainings if not t.folder.final_agent.exists()]
    for training in trainings:
        if training not in unfinished:
            print(f"already trained: {training.folder.final_agent}")
    Workers(jobs).map(
        [functools.partial(train_agent, training) for training in unfinished],
        "training, checkpoints",
        done=lambda: sum(t.folder.checkpoint(b).exists() for t in unfinished for b in t.budgets),
        total=sum(len(t.budgets) for t in unfinished),
    )


def train_agent(training: Training) -> None:
    """Train one agent, from the start or from where an earlier call was interrupted."""
    folder = training.folder
    claim(folder.path, training.description)
    try:
        # a moment, in which workers of a killed training end
        with FileLock(folder.path / ".lock", timeout=3):
            folder.clear_leftovers()
            _train_legs(training)
    except Timeout as error:
        raise ValueError(f"another process is training in {folder.path}") from error


def _train_legs(training: Training) -> None:
    folder = training.folder
    model = _new_agent(training)
    leg, evaluations = 0, Evaluations.empty(training.arguments.eval_episodes)
    if folder.resume_file.exists():
        leg, evaluations = restore(model, folder.resume_file)
    model.set_logger(_logger(folder.path, suffix=f"-leg{leg}" if leg else ""))
    ends = training.budgets
    try:
        for number in range(leg, len(ends)):
            _train_leg(model, training, number, ends[number])
            evaluations = _evaluate(model, training, evaluations)
            _write_leg(model, training, number, ends[number], evaluations)
    finally:
        model.logger.close()
    _save(model, folder.final_agent, folder.final_statistics)
    folder.resume_file.unlink(missing_ok=True)


class _Whole(BaseCallback):
    """Lets a leg's schedules be those of the whole training."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total

    def _on_training_start(self) -> None:
        def update(steps: int, _: int) -> None:
            self.model._current_progress_remaining = 1 - steps / self.total

        vars(self.model)["_update_current_progress_remaining"] = update

    def _on_training_end(self) -> None:
        del vars(self.model)["_update_current_progress_remaining"]

    def _on_step(self) -> bool:
        return True


def derived_seed(*numbers: int) -> int:
    """A seed below 2**31 that follows from the given numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] % 2**31)


def _train_leg(model: BaseAlgorithm, training: Training, number: int, end: int) -> None:
    envs = training.make_envs(number)
    _share_statistics(model, envs)
    model.set_env(envs, force_reset=True)
    if (noise := getattr(model, "action_noise", None)) is not None:
        noise.reset()
    # Everything random in this leg follows from (seed, leg), whatever came before it.
    model.set_random_seed(derived_seed(training.seed, number))
    buffer = getattr(model, "replay_buffer", None)
    if isinstance(buffer, HerReplayBuffer):
        buffer.env = model.get_env()  # by whose reward it values other goals
    if end > model.num_timesteps:  # a long rollout may have passed it
        model.learn(end - model.num_timesteps, _Whole(training.steps), reset_num_timesteps=False)
    if isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings():  # that episodes which go on no more are cut off
            warnings.simplefilter("ignore")
            buffer.truncate_last_trajectory()
    envs.close()
    later = training.budgets[number + 1 :]
    if later and model.num_timesteps >= later[0]:  # as of ARS, whose iterations are of any length
        warnings.warn(
            f"{training.folder.path.name}: the checkpoint of {end:,} steps holds an agent of "
            f"{model.num_timesteps:,}, as one iteration took that long; give fewer --checkpoints",
            stacklevel=2,
        )


def _share_statistics(model: BaseAlgorithm, envs: VecEnv) -> None:
    """Let environments be normalised by the statistics of those that the agent has had so far."""
    before = model.get_vec_normalize_env()
    if before is None or not isinstance(envs, VecNormalize):
        return
    envs.ret_rms = before.ret_rms
    if before.norm_obs:
        envs.obs_rms = before.obs_rms


def _evaluate(model: BaseAlgorithm, training: Training, before: Evaluations) -> Evaluations:
    env = Monitor(training.make_env())
    env.reset(seed=TRAINING_EVALUATION_SEED + training.seed)
    envs = training.seen(DummyVecEnv([lambda: env]), training=False, norm_reward=False)
    _share_statistics(model, envs)
    evaluations = before.after(model, envs)
    envs.close()
    return evaluations


def _write_leg(
    model: BaseAlgorithm, training: Training, number: int, end: int, evaluations: Evaluations
) -> None:
    folder = training.folder
    _save(model, folder.checkpoint(end), folder.statistics(end))
    if kept := training.arguments.experience:
        assert isinstance(model, OffPolicyAlgorithm)  # see `plan`
        replay_experience(model, kept).save(folder.experience(end))
    means = evaluations.results.mean(axis=1)
    if means[-1] > means[:-1].max(initial=-np.inf):
        _save(model, folder.path / "best_model.zip", folder.path / "best_model_vecnormalize.pkl")
    with replacing(folder.path / "evaluations.npz") as temporary:
        np.savez(temporary, **dataclasses.asdict(evaluations))
    write_resume(model, folder.resume_file, number + 1, evaluations)
    if not sys.stderr.isatty():  # where no bar is shown
        print(f"{folder.path.name}: {end:,} steps, mean return {means[-1]:.1f}", flush=True)


def _save(model: BaseAlgorithm, file: Path, statistics: Path) -> None:
    """Write an agent, and before it what normalises its observations, if something does."""
    if (normalize := model.get_vec_normalize_env()) is not None:
        with replacing(statistics) as temporary:
            normalize.save(str(temporary))
    with replacing(file) as temporary:
        model.save(temporary)


def _new_agent(training: Training, **changes: Any) -> Any:
    given, envs = training.arguments, training.make_envs()
    arguments = algorithm_arguments(training.hyperparameters, envs.action_space) | changes
    kind: Any = algorithm_class(given.algo)
    return kind(env=envs, seed=training.seed, device=given.device, **arguments)


def _logger(folder: Path, suffix: str) -> Logger:
    formats = ["csv"]
    if importlib.util.find_spec("tensorboard"):
        formats.append("tensorboard")
    return Logger(str(folder), [make_output_format(f, str(folder), suffix) for f in formats])


def main(arguments: Train) -> None:
    """Train the agents and say where they are."""
    trainings = plan(arguments)
    try:
        train_all(trainings, arguments.jobs)
    except KeyboardInterrupt:
        options = sys.argv[2:] if sys.argv[1:2] == ["train"] else sys.argv[1:]
        command = shlex.join(["equirl", "train", *options])
        print(f"\ninterrupted; finished legs are saved. To go on: {command}", file=sys.stderr)
        raise
    for training in trainings:
        with np.load(training.folder.path / "evaluations.npz") as file:
            last = file["results"][-1]
        print(
            f"{training.folder.final_agent}: return {last.mean():.1f} +- {last.std():.1f} "
            f"over {len(last)} episodes"
        )


if __name__ == "__main__":
    run(main, Train)
