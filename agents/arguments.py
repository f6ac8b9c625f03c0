"""The arguments of the commands: dataclasses whose docstrings are their ``--help``.

Only this, and none of what the commands do, is imported for ``equirl --help``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from equicore.lab import CORES
from equirl.seeds import FIRST_SEED

PolicyName = Literal["plain", "equitune", "equizero", "equitune_raw", "equizero_raw", "lambda"]


@dataclasses.dataclass
class Train:
    """Train agents, one per seed.

    Run again after an interruption, the same command goes on where it was; seeds that are
    finished are skipped.

    Example: equirl train --env equirl/Gridworld-v0 --env-kwargs goals=corner --seeds 0 1 2
    """

    env: str
    """Environment id, for instance CartPole-v1 or equirl/Gridworld-v0."""
    algo: str = "dqn"
    """Algorithm, by its name in rl-baselines3-zoo: a2c, ddpg, dqn, ppo, sac or td3; with the extra
    contrib also ars, crossq, maskable_ppo, qrdqn, tqc or trpo."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--seed"])] = (0,)
    """Training seeds; one agent each."""
    steps: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Environment steps; n_timesteps of the hyperparameters when omitted."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, name=value."""
    hyperparameters: Path | None = None
    """YAML file in the convention of rl-baselines3-zoo; that of the algorithm when omitted."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-f"])] = Path("results/runs")
    """Folder that the run folders are made in."""
    checkpoints: int = 10
    """How often, evenly spaced, the agent is saved and evaluated."""
    eval_freq: int | None = None
    """In place of --checkpoints: after how many steps that is done, as in rl-baselines3-zoo."""
    eval_episodes: int = 20
    """Episodes of each evaluation."""
    experience: int = 0
    """How many of the newest transitions in the replay buffer are kept with each checkpoint; for
    algorithms that have one."""
    device: str = "auto"
    """Device of the networks: auto, cpu, cuda."""
    jobs: int = CORES
    """Seeds that are trained side by side."""


@dataclasses.dataclass
class OneAgent:
    """Arguments of the commands that are about one agent."""

    agent: tyro.conf.Positional[Path]
    """A zip file that Stable-Baselines3 saved, or a run folder. Nothing in it is executed."""
    env: str | None = None
    """Environment id; known from the run folder when omitted."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, name=value; known from the run folder when omitted."""
    transitions: int = 20_000
    """Transitions that lambda's weights learn from: the newest of the replay buffer if it was kept
    (equirl train --experience), else of the plain agent's own rollouts."""
    device: str = "auto"
    """Device of the networks: auto, cpu, cuda."""


@dataclasses.dataclass
class Evaluate(OneAgent):
    """Evaluate one agent under one policy, and print a summary; all returns go to --output.

    Whether the agent is one for this environment at all, equirl compare says: it plays random
    actions, too.

    Example: equirl evaluate dqn.zip --env CartPole-v1 --policy lambda --condition transformed
    """

    policy: PolicyName = "equizero"
    """The plain agent, or a symmetrised policy around it."""
    condition: str = "original"
    """original, transformed (a random group element for each episode), or one element: 1."""
    episodes: int = 100
    """Episodes to play, at least 5."""
    seed: int = FIRST_SEED
    """Seed of the first episode; the others follow."""
    output: Path | None = None
    """File for the summary and the return of each episode, as JSON."""


@dataclasses.dataclass
class Compare:
    """Compare plain, equitune, equizero and lambda policies of saved agents.

    Every policy plays the same episodes, on the original environment and on one seen through a
    random group element in each episode.

    Example: equirl compare dqn.zip --env Acrobot-v1 --episodes 200 --output results/mine
    """

    agents: tyro.conf.Positional[tuple[Path, ...]]
    """Zip files that Stable-Baselines3 saved, or run folders. Nothing in them is executed."""
    env: str | None = None
    """Environment id; known from run folders when omitted."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, name=value; known from run folders when omitted."""
    checkpoints: Literal["final", "all"] = "final"
    """What a run folder stands for: its finished agent, or each of its checkpoints."""
    episodes: int = 100
    """Episodes for each agent, policy and condition, at least 5."""
    seed: int = FIRST_SEED
    """Seed of the first episode; the others follow."""
    select: bool = False
    """Also choose a policy for each agent and condition, by validation episodes of its own seeds,
    allotted by racing; the plain agent is kept unless another is better."""
    transitions: int = 20_000
    """Transitions that lambda's weights learn from: the newest of the replay buffer if it was kept
    (equirl train --experience), else of the plain agent's own rollouts."""
    device: str = "auto"
    """Device of the networks: auto, cpu, cuda."""
    output: Path | None = None
    """Folder for report.html, returns.csv, table.md and the figures; nothing is written when
    omitted."""
    jobs: int = CORES
    """Processes."""


@dataclasses.dataclass
class Check:
    """Check whether the symmetry of an environment is true, against its simulator.

    Prints what the symmetry does, entry by entry, and the verdict for dynamics, reward, the end of
    episodes, and first states. The exit code is 1 unless it holds. Environments whose simulator is
    not known are judged by 20,000 transitions. Observations that are no vectors are flattened.

    Example: equirl check LunarLander-v3 --output lander.png
    """

    env: tyro.conf.Positional[str]
    """Environment id; module:id imports the module first, which may register it."""
    symmetry: str | None = None
    """module:name of a Symmetry, or of a function of the environment's EnvSpec that returns one;
    the registered one when omitted."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, name=value."""
    seed: int = 0
    """Of resets, actions, and networks."""
    output: Path | None = None
    """File of the figure: for each entry what was found against what the symmetry wants."""


@dataclasses.dataclass
class Discover:
    """Find the symmetries of an environment from interaction alone.

    Signed permutations of the entries of observation and action vectors, and permutations of
    discrete actions: candidates are learned from 20,000 transitions under random actions, and each
    is verified as `equirl check` does. Prints the group's generators, and Python code of them.

    Example: equirl discover Acrobot-v1 --output found.py
    """

    env: tyro.conf.Positional[str]
    """Environment id; module:id imports the module first, which may register it."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, name=value."""
    names: str | None = None
    """module:name of equirl.Names of the entries; numbers when omitted."""
    seed: int = 0
    """Of resets, actions, and networks."""
    output: Path | None = None
    """Python file for the symmetry, ready to register."""


@dataclasses.dataclass
class Convert:
    """Write the statistics of a VecNormalize, from a pickle, to a file that holds no code.

    Nothing in the pickle is executed: arrays of numbers are read, and everything else is refused.
    An agent finds the new file beside itself as it does the old one.

    Example: equirl convert logs/ppo/BipedalWalker-v3_1/BipedalWalker-v3/vecnormalize.pkl
    """

    statistics: tyro.conf.Positional[Path]
    """The file that VecNormalize.save wrote."""
    output: Path | None = None
    """The new file; of the same name with .safetensors when omitted."""


@dataclasses.dataclass
class Study:
    """Train agents in all environments and settings, and evaluate every policy of each.

    Writes returns.csv, selection.csv, tables and figures. Run again after an interruption or a
    kill, the same command goes on where it was.

    Example: equirl study --jobs 2
    """

    definition: Path | None = None
    """YAML file: environments, settings, seeds, budgets, episodes; agents/study.yaml, which comes
    with equirl, when omitted."""
    panel: str = "test"
    """Which of its panels."""
    output: Path = Path("results/study")
    """Folder for the tables and figures."""
    runs: Path = Path("results/runs/study")
    """Folder for the trained agents; on a cluster, one that all machines see."""
    backend: str = "loky"
    """A backend of joblib: loky (processes of this machine), threading, dask, ray, ..."""
    address: str | None = None
    """Scheduler of a dask or ray cluster, as in tcp://head:8786."""
    jobs: int = CORES
    """Units side by side; each uses one core."""


@dataclasses.dataclass
class Plot:
    """Plot what `equirl compare --output` or `equirl study` wrote.

    For comparisons: returns.png and returns.svg, seed-averaged bars for each policy; and, for each
    environment with several training budgets, curves of return against training steps. For a
    study: all its tables and figures, anew.

    Example: equirl plot results/mine
    """

    comparisons: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of comparisons, or their returns.csv; several are drawn together. Or a study."""
    output: Path | None = None
    """Folder for the figures; that of the first comparison when omitted."""


@dataclasses.dataclass
class Landscape(OneAgent):
    """Draw the Q-landscape of an agent, plain and symmetrised, and the weights of lambda.

    Writes q_landscape, or actions where these are continuous, and lambda as PNG, and as SVG if
    small. The states lie on a plane of two entries of the observation, as wide as --transitions of
    the plain agent's own rollouts and their images under the group; all other entries are at their
    mean over those, 0 where the group changes their sign.

    Example: equirl landscape dqn.zip --env CartPole-v1 --axes 0 2
    """

    axes: tuple[int, int] = (0, 2)
    """The entries of the observation, counted from 0, that the plane shows: across, and up."""
    labels: tuple[str, str] | None = None
    """What the two are called in the figures; known of some environments when omitted."""
    output: Path = Path("results/landscape")
    """Folder for the figures."""


@dataclasses.dataclass
class Video(OneAgent):
    """Film an agent under several policies side by side, as a GIF.

    Every policy plays the same episodes. In a transformed gridworld the picture is turned, as the
    agent sees it; other environments show the original. Classic control needs pygame.

    Example: equirl video dqn.zip --env Acrobot-v1 --policies plain equizero --episodes 2
    """

    policies: tuple[PolicyName, ...] = ("plain", "equizero")
    """The plain agent, or symmetrised policies around it; a pane for each."""
    condition: str = "transformed"
    """original, transformed (a random group element for each episode), or one element: 1."""
    episodes: int = 4
    """Episodes, one after the other."""
    seed: int = FIRST_SEED
    """Seed of the first episode; the others follow."""
    width: int = 240
    """Largest width of a pane in pixels."""
    output: Path = Path("results/video.gif")
    """The GIF."""
