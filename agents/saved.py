"""Saved agents: where they are, which environment they are for, and how they are opened."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import (
    is_image_space,
    is_image_space_channels_first,
)
from stable_baselines3.common.vec_env import VecTransposeImage

import equirl
from equicore.lab.devices import check_device
from equicore.lab.store import digest
from equirl.agents.arguments import OneAgent
from equirl.agents.hyperparameters import parse_env_kwargs, setting_name
from equirl.agents.layers import LAYERS, layered, names_of, shows_vectors, stacked
from equirl.agents.runs import RunFolder
from equirl.arrays import shape_of
from equirl.loading import archive_at
from equirl.normalization import statistics_of
from equirl.preprocessing import normalizer_of, statistics_beside
from equirl.symmetry import Symmetry


@dataclasses.dataclass(frozen=True)
class SavedAgent:
    """A saved agent and the environment it is for.

    Attributes:
        name: What tables call it: its run folder's or file's name.
        path: The zip file.
        seed: Training seed, if known.
        budget: Environment steps it was trained for, if its run folder or name tells.
        layers: What its environment is wrapped in, of `equirl.agents.layers`, the innermost first.
        frames: How many observations it sees at once.
    """

    name: str
    path: Path
    env_id: str
    env_kwargs: dict[str, Any]
    seed: int | None = None
    budget: int | None = None
    layers: tuple[str, ...] = ()
    frames: int = 1

    @property
    def location(self) -> Path:
        """Its run folder, or its file without the suffix."""
        folder = self.path.absolute().parent
        return folder if folder.name == self.name else folder / self.path.stem

    @property
    def setting(self) -> str:
        """The environment and its arguments, as tables show them."""
        return setting_name(self.env_id.rpartition(":")[2], self.env_kwargs)

    def experience(self, steps: int) -> Path:
        """Where its run folder keeps the replay buffer's newest transitions after so many steps."""
        return RunFolder(self.path.parent, self.env_id).experience(steps)

    def make(self, **more: Any) -> gym.Env:
        """Its environment.

        Raises:
            ValueError: If it cannot be made so.
        """
        try:
            env = layered(gym.make(self.env_id, **{**self.env_kwargs, **more}), self.layers)
        except Exception as error:  # whatever an environment raises for wrong arguments
            raise ValueError(f"cannot make {self.setting}: {error}") from error
        return stacked(env, self.frames)

    def load(self, device: str = "auto") -> BaseAlgorithm:
        """Open it, and check that it is one for its environment.

        Raises:
            ValueError: If the file is no agent, its spaces are not those of the environment, or its
                observations were normalised.
        """
        model = equirl.load_agent(self.path, device, statistics=_statistics(self.path, self.env_id))
        if statistics_of(model) is None and (normalizer := normalizer_of(model)):
            config = RunFolder(self.path.parent, self.env_id).hyperparameters()
            if _normalizes(config.get("normalize", True)):
                told = f"{normalizer}, by what the file keeps; put its vecnormalize.pkl beside it"
                raise ValueError(_refusal(self.path, [told]))
            vars(model).update(_last_original_obs=None)  # of rewards only
        env = self.make()
        for what in ("observation_space", "action_space"):
            of_agent, of_env = getattr(model, what), getattr(env, what)
            if is_image_space(of_env) and not is_image_space_channels_first(of_env):
                of_env = VecTransposeImage.transpose_space(of_env)  # as for the training
            # bounds are not compared: those of old archives are written otherwise
            same = type(of_agent) is type(of_env) and shape_of(of_agent) == shape_of(of_env)
            if not same or getattr(of_agent, "n", None) != getattr(of_env, "n", None):
                raise ValueError(
                    f"{self.path} is for another environment than {self.env_id}: its {what} is "
                    f"{of_agent}, the environment's {of_env}. What an agent was wrapped in, such "
                    "as frame_stack, stands in the config.yml of its run folder: leave it there"
                )
        env.close()
        return model

    def symmetry(self) -> Symmetry:
        """The symmetry of its environment.

        Raises:
            ValueError: If none is registered.
        """
        env = self.make()
        env.close()
        return equirl.symmetry_of(env)


def find_agent(arguments: OneAgent) -> SavedAgent:
    """The agent that a command is about.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If its environment is not known, or there is no such device.
    """
    check_device(arguments.device)
    env_kwargs = parse_env_kwargs(arguments.env_kwargs)
    (agent,) = find_agents(arguments.agent, arguments.env, env_kwargs)
    return agent


def find_agents(
    path: Path,
    env_id: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    checkpoints: Literal["final", "all"] = "final",
) -> list[SavedAgent]:
    """The agents that a path names.

    Args:
        path: A zip file, or a run folder.
        env_id: The environment, and its arguments; known from the run folder when omitted.
        env_kwargs: See there.
        checkpoints: What a run folder stands for.

    Raises:
        FileNotFoundError: If there is no such file or folder, or no agent in it.
        ValueError: If the environment is not known, or what is known of the training says that the
            agent saw something else than the environment emits.
    """
    run = RunFolder.find(path)
    if run is None or not path.is_dir():
        path = archive_at(path)
        run = RunFolder.find(path)
    if not path.exists():
        raise FileNotFoundError(f"no agent at {path}")
    if path.is_dir() and run is None:
        raise FileNotFoundError(f"{path} is no run folder: it has no */args.yml")
    known = run.arguments() if run is not None else {}
    env_id = env_id or known.get("env")
    if env_id is None:
        raise ValueError(f"for which environment is {path}? Name it, as in --env CartPole-v1")
    equirl.symmetry_of(env_id)  # its message lists the known environments
    config = _config(path, run, env_id)
    files = _files(path, run, checkpoints)
    if found := _seen_through([file for _, file in files], env_id, config):
        raise ValueError(_refusal(path, found))
    seen: dict[str, Any] = {
        "layers": tuple(names_of(config, "env_wrapper")),
        "frames": config.get("frame_stack") or 1,
    }
    env_kwargs = {**(known.get("env_kwargs") or {}), **(env_kwargs or {})}
    if run is None or not path.is_dir():
        name = f"{path.absolute().parent.name}/{path.stem}" if run is not None else path.stem
    else:
        name = path.resolve().name
    return [
        SavedAgent(name, file, env_id, env_kwargs, known.get("seed"), budget, **seen)
        for budget, file in files
    ]


def _files(
    path: Path, run: RunFolder | None, checkpoints: Literal["final", "all"]
) -> list[tuple[int | None, Path]]:
    """The files that a path names, and the budget of each, if it is known."""
    steps = run.arguments().get("n_timesteps", 0) if run is not None else 0
    total = steps if steps > 0 else None  # the zoo writes -1 for what its hyperparameters say
    if run is None or not path.is_dir():
        match = re.fullmatch(r"rl_model_(\d+)_steps", path.stem)
        finished = run is not None and path.name == run.final_agent.name
        return [(int(match[1]) if match else total if finished else None, path)]
    if checkpoints == "all":
        if not (files := run.checkpoints()):
            raise FileNotFoundError(f"no checkpoints in {path}")
        return [*files]
    if not run.final_agent.exists():
        raise FileNotFoundError(
            f"the training in {path} is not finished: it has no {run.final_agent.name}. Finish it "
            "by the command that began it, name one of its checkpoints, or let equirl compare take "
            "all (--checkpoints all)"
        )
    return [(total, run.final_agent)]


def told_apart(agents: Sequence[SavedAgent]) -> list[SavedAgent]:
    """The same agents under names that differ: those of one name are called by their folders too.

    Raises:
        ValueError: If an agent is given twice, perhaps in two files of equal content.
    """
    seen: dict[tuple[str, str], SavedAgent] = {}
    for agent in agents:
        other = seen.setdefault((agent.setting, digest(agent.path.read_bytes())), agent)
        if other is agent:
            continue
        if other.location != agent.location or other.path == agent.path:
            raise ValueError(f"{other.path} and {agent.path} are the same agent; give it once")
    named = []
    for agent in agents:
        alike = {a.location for a in agents if (a.setting, a.name) == (agent.setting, agent.name)}
        parts = 1
        while len({location.parts[-parts:] for location in alike}) < len(alike):
            parts += 1
        name = agent.name if parts == 1 else "/".join(agent.location.parts[-parts:])
        named.append(dataclasses.replace(agent, name=name))
    return named


def _config(path: Path, run: RunFolder | None, env_id: str) -> dict[str, Any]:
    """What files beside an agent say of its training."""
    own = RunFolder(path if path.is_dir() else path.parent, env_id)
    return {**own.hyperparameters(), **(run.hyperparameters() if run is not None else {})}


def _seen_through(files: list[Path], env_id: str, config: dict[str, Any]) -> list[str]:
    """What stood between the environment and agents, and is not known here."""
    found = []
    layers = names_of(config, "env_wrapper")
    if any(name not in LAYERS for name in layers):
        known = f"known are {', '.join(LAYERS)}, without arguments"
        return [f"env_wrapper: {config['env_wrapper']}; {known}"]
    if (frames := config.get("frame_stack")) not in (None, 1):
        with contextlib.closing(layered(gym.make(env_id), layers)) as env:
            vectors = shows_vectors(env.observation_space)
        if not (isinstance(frames, int) and vectors):
            found.append(f"frame_stack: {frames}; known of vectors only")
    if names_of(config, "vec_env_wrapper"):
        found.append(f"vec_env_wrapper: {config['vec_env_wrapper']}")
    if _normalizes(normalize := config.get("normalize")):
        without = next((file for file in files if _statistics(file, env_id) is None), None)
        if without is not None:
            found.append(
                f"normalize: {normalize}, and {without.name} has no vecnormalize.pkl: put that "
                "beside it"
            )
    return found


def _statistics(agent: Path, env_id: str) -> Path | None:
    """The file of what normalised an agent's observations, also where its run keeps that."""
    of_run = agent.parent / RunFolder(agent.parent, env_id).final_agent.stem / "any.zip"
    return statistics_beside(agent) or statistics_beside(of_run)


def _normalizes(normalize: Any) -> bool:
    """Whether the zoo's hyperparameter ``normalize`` means that observations are normalised."""
    if isinstance(normalize, str):  # as in "{'norm_obs': False, 'norm_reward': True}"
        try:
            normalize = ast.literal_eval(normalize)
        except (ValueError, SyntaxError):
            return True
    return bool(normalize.get("norm_obs", True) if isinstance(normalize, dict) else normalize)


def _refusal(path: Path, found: list[str]) -> str:
    return (
        f"{path} did not see what its environment emits when it was trained, and returns and "
        f"symmetry would both be wrong: {'; '.join(found)}"
    )
