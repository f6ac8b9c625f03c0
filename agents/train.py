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
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from filelock import FileLock, Timeout
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, make_output_format
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import equirl
from equicore.lab.command import check_least, check_several
from equicore.lab.devices import check_device
from equicore.lab.jobs import Workers
from equicore.lab.store import check_claim, claim, replacing
from equirl.agents.arguments import Train
from equirl.agents.cli import run
from equirl.agents.hyperparameters import (
    ALGORITHMS,
    algorithm_arguments,
    default_file,
    load_hyperparameters,
    parse_env_kwargs,
)
from equirl.agents.resume import Evaluations, restore, write_resume
from equirl.agents.runs import RunFolder
from equirl.agents.seeds import TRAINING_EVALUATION_SEED
from equirl.experience import replay_experience


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
        """The environment."""
        return gym.make(self.arguments.env, **self.env_kwargs)


def plan(arguments: Train) -> list[Training]:
    """Check everything that can be checked before work starts, and list the trainings.

    Raises:
        ValueError: If an argument makes no sense.
        FileExistsError: If a run folder holds another run.
    """
    check_several(arguments, "seeds")
    if arguments.algo not in ALGORITHMS:
        raise ValueError(f"--algo is one of {', '.join(ALGORITHMS)}; got {arguments.algo!r}")
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
            f"cannot make {arguments.env}: {error}. Environments whose symmetry is known: {known}"
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
    try:
        _new_agent(trainings[0], buffer_size=1)
    except Exception as error:  # whatever SB3 and torch raise for what they cannot use
        raise ValueError(
            f"no {arguments.algo} can be made of {file.name}, {bare_id}, on "
            f"{arguments.device}: {error}"
        ) from error
    for training in trainings:
        check_claim(training.folder.path, training.description)
    for training in trainings:
        claim(training.folder.path, training.description)
    return trainings


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
    with replacing(folder.final_agent) as temporary:
        model.save(temporary)
    folder.resume_file.unlink(missing_ok=True)


class _Leg(BaseCallback):
    """Keeps the schedules those of the whole training."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total

    def _on_training_start(self) -> None:
        self.model._total_timesteps = self.total

    def _on_step(self) -> bool:
        return True


def derived_seed(*numbers: int) -> int:
    """A seed below 2**31 that follows from the given numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] % 2**31)


def _train_leg(model: OffPolicyAlgorithm, training: Training, number: int, end: int) -> None:
    env = Monitor(training.make_env(), str(training.folder.path / str(number)))  # .monitor.csv
    model.set_env(env, force_reset=True)
    # Everything random in this leg follows from (seed, leg), whatever came before it.
    model.set_random_seed(derived_seed(training.seed, number))
    if end > model.num_timesteps:  # a long rollout may have passed it
        model.learn(end - model.num_timesteps, _Leg(training.steps), reset_num_timesteps=False)
    env.close()


def _evaluate(model: OffPolicyAlgorithm, training: Training, before: Evaluations) -> Evaluations:
    env = Monitor(training.make_env())
    env.reset(seed=TRAINING_EVALUATION_SEED + training.seed)
    evaluations = before.after(model, env)
    env.close()
    return evaluations


def _write_leg(
    model: OffPolicyAlgorithm, training: Training, number: int, end: int, evaluations: Evaluations
) -> None:
    folder = training.folder
    with replacing(folder.checkpoint(end)) as temporary:
        model.save(temporary)
    if kept := training.arguments.experience:
        replay_experience(model, kept).save(folder.experience(end))
    means = evaluations.results.mean(axis=1)
    if means[-1] > means[:-1].max(initial=-np.inf):
        with replacing(folder.path / "best_model.zip") as temporary:
            model.save(temporary)
    with replacing(folder.path / "evaluations.npz") as temporary:
        np.savez(temporary, **dataclasses.asdict(evaluations))
    write_resume(model, folder.resume_file, number + 1, evaluations)
    if not sys.stderr.isatty():  # where no bar is shown
        print(f"{folder.path.name}: {end:,} steps, mean return {means[-1]:.1f}", flush=True)


def _new_agent(training: Training, **changes: Any) -> OffPolicyAlgorithm:
    given = training.arguments
    arguments = algorithm_arguments(training.hyperparameters) | changes
    return ALGORITHMS[given.algo](
        env=training.make_env(), seed=training.seed, device=given.device, **arguments
    )


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
