"""Train agents, one per seed; a training that was interrupted goes on where it was.

A training runs in legs. Each leg starts from what the last one wrote, with the random generators
seeded from (seed, leg) and the environment reset, so that a training that was killed and
continued gives the same agent, bit for bit, as one that was not.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, make_output_format
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from equicore.lab.jobs import Workers
from equicore.lab.store import claim, replacing
from equirl.agents.arguments import Train
from equirl.agents.cli import run
from equirl.agents.resume import Evaluations, restore, write_resume
from equirl.agents.training import Training, plan
from equirl.experience import replay_experience
from equirl.seeds import TRAINING_EVALUATION_SEED


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
    model = training.new_agent()
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
