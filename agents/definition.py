"""The definition of a study, read from YAML, and the units that it consists of."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import yaml

import equirl
from equirl.agents.panel import read_scale
from equirl.agents.policies import MAKERS
from equirl.agents.selection import Race
from equirl.agents.train import Train, Training, plan

DEFAULT_FILE = Path(__file__).with_name("study.yaml")
PANEL = ("seeds", "checkpoints")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How the agent of a checkpoint is evaluated.

    Attributes:
        episodes: For each policy and condition.
        transitions: Number of transitions that lambda's weights learn from.
        candidates: Policies among which one is selected.
        race: How it is selected.
    """

    episodes: int
    transitions: int
    candidates: tuple[str, ...]
    race: Race

    def digest(self) -> str:
        """Eight characters that are others for another evaluation."""
        return hashlib.sha256(repr((self, list(MAKERS))).encode()).hexdigest()[:8]


@dataclasses.dataclass(frozen=True)
class Unit:
    """One training in one environment and setting, with the evaluation of its checkpoints."""

    env: str
    setting: str
    training: Training
    evaluation: Evaluation

    def part(self, budget: int) -> Path:
        """The evaluation of the checkpoint after ``budget`` steps; exists when it is finished."""
        name = f"rl_model_{budget}_steps.{self.evaluation.digest()}.csv"
        return self.training.folder.path / name

    @property
    def parts(self) -> list[Path]:
        """The evaluations of all checkpoints, in their order."""
        return [self.part(budget) for budget in self.training.budgets]

    @property
    def error_log(self) -> Path:
        """What went wrong, if something did."""
        return self.training.folder.path / "error.log"

    @property
    def clock(self) -> Path:
        """Holds the seconds that the unit has taken so far, but for what a kill has cost."""
        return self.training.folder.path / "seconds.txt"

    @property
    def seconds(self) -> float:
        """What the clock shows."""
        return float(self.clock.read_text()) if self.clock.exists() else 0.0

    def __str__(self) -> str:
        """As in ``CartPole-v1, tuned, seed 3``."""
        return f"{self.env}, {self.setting}, seed {self.training.seed}"


def read_units(file: Path, panel: str, runs: Path) -> list[Unit]:
    """The units of one panel of a study, the longest trainings first.

    Args:
        file: The definition, see ``study.yaml``.
        panel: A key of its ``panels``.
        runs: Folder that the run folders are made in, as ``runs/setting/environment/dqn/...``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If something in it is missing, unknown or out of range.
        FileExistsError: If a run folder holds another run.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no definition of a study at {file}")
    try:
        document = yaml.safe_load(file.read_text())
        _check_keys(document, file)
        panels = document["panels"]
        if panel not in panels:
            raise ValueError(f"{file.name} has no panel {panel!r}; it has {', '.join(panels)}")
        evaluation = Evaluation(
            document["episodes"],
            document["transitions"],
            tuple(document["candidates"]),
            Race(**document["race"]),
        )
        chosen = panels[panel]
        for name, entry in document["environments"].items():
            if unknown := set(entry) - {"env", "env_kwargs", "scale"}:
                raise ValueError(f"{file.name}: {name} has an unknown {', '.join(sorted(unknown))}")
            read_scale(name, entry)
            equirl.symmetry_of(entry["env"])
        arguments = [
            (
                name,
                setting,
                Train(
                    env=entry["env"],
                    env_kwargs=tuple(
                        f"{k}={yaml.safe_dump(v, default_flow_style=True)}"
                        for k, v in entry.get("env_kwargs", {}).items()
                    ),
                    seeds=tuple(chosen["seeds"]),
                    hyperparameters=file.parent / hyperparameters,
                    output=runs.resolve() / setting / name,
                    checkpoints=chosen["checkpoints"],
                    eval_episodes=5,
                    experience=evaluation.transitions,
                    device="cpu",
                ),
            )
            for setting, hyperparameters in document["settings"].items()
            for name, entry in document["environments"].items()
        ]
        _check_evaluation(evaluation, file)
        units = [
            Unit(name, setting, training, evaluation)
            for name, setting, train in arguments
            for training in plan(train)
        ]
    except yaml.YAMLError as error:
        raise ValueError(f"{file.name} is not readable as YAML: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file.name} is no definition of a study: {error!r}") from error
    return sorted(units, key=lambda unit: -unit.training.steps)


def _check_keys(document: dict[str, Any], file: Path) -> None:
    """Raise ValueError if there are others than those that are read: a misspelt one, say."""
    evaluation = {field.name for field in dataclasses.fields(Evaluation)}
    known = {"environments", "settings", "panels", *evaluation}
    unknown = [str(name) for name in document if name not in known]
    for name, panel in document["panels"].items():
        unknown += [f"panels: {name}: {key}" for key in panel if key not in PANEL]
    if unknown:
        raise ValueError(
            f"{file.name} has an unknown {', '.join(unknown)}; known are "
            f"{', '.join(sorted(known))} and, in a panel, {' and '.join(PANEL)}"
        )


def _check_evaluation(evaluation: Evaluation, file: Path) -> None:
    for name, least in (("episodes", 1), ("transitions", 10)):
        number: Any = getattr(evaluation, name)
        if not isinstance(number, int) or number < least:
            raise ValueError(f"{file.name}: {name} must be at least {least}; got {number!r}")
    names = evaluation.candidates
    if not set(names) <= set(MAKERS) or "plain" not in names or len(set(names)) < len(names):
        raise ValueError(
            f"{file.name}: candidates are plain and others of {', '.join(MAKERS)}, each once; got "
            f"{', '.join(map(str, names))}"
        )
