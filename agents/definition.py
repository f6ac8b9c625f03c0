"""The definition of a study, read from YAML, and the units that it consists of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import equirl
from equicore.lab.store import digest
from equicore.lab.values import read_yaml, to_yaml, whole
from equirl.agents.arguments import Train
from equirl.agents.evaluation import Protocol
from equirl.agents.hyperparameters import algorithm_class, default_file
from equirl.agents.panel import read_scale
from equirl.agents.policies import MAKERS
from equirl.agents.selection import Race
from equirl.agents.training import Training, plan
from equirl.seeds import STUDY_SEED

DEFAULT_FILE = Path(__file__).with_name("study.yaml")
PANEL = ("seeds", "checkpoints")
POLICIES = (
    *("plain", "equitune", "equizero", "equizero_raw"),
    *("lambda", "lambda_rollouts", "lambda_replay", "lambda_td"),
)
"""What plays where the definition does not say; those that are added later are not among them."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """One training in one environment and setting, with the evaluation of its checkpoints."""

    env: str
    setting: str
    training: Training
    protocol: Protocol

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the evaluation of a checkpoint, as plain values."""
        return dataclasses.asdict(self.protocol)

    @property
    def parts(self) -> list[Path]:
        """The evaluations of the checkpoints, in their order; each exists when it is finished."""
        name = f"rl_model_{{}}_steps.{digest(self.settings)}.csv"
        return [self.training.folder.path / name.format(b) for b in self.training.budgets]

    @property
    def error_log(self) -> Path:
        """What went wrong, if something did."""
        return self.training.folder.path / "error.log"

    @property
    def clock(self) -> Path:
        """Holds the seconds that the unit has taken so far, but for what a kill has cost."""
        return self.training.folder.path / "seconds.log"

    @property
    def seconds(self) -> float:
        """What the clock shows."""
        return float(self.clock.read_text()) if self.clock.exists() else 0.0

    def __str__(self) -> str:
        """As in ``CartPole-v1, tuned, seed 3``."""
        return f"{self.env}, {self.setting}, seed {self.training.seed}"


def read_units(file: Path, panel: str, runs: Path) -> list[Unit]:
    """The units of one panel of a study, the longest trainings first.

    Run folders are made in ``runs/setting/environment/algorithm``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If something in it is missing, unknown or out of range.
        FileExistsError: If a run folder holds another run.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no definition of a study at {file}")
    try:
        document = read_yaml(file)
        _check_kinds(document, file)
        _check_keys(document, file)
        panels = document["panels"]
        if panel not in panels:
            raise ValueError(f"{file.name} has no panel {panel!r}; it has {', '.join(panels)}")
        protocol = Protocol(
            tuple(document.get("policies", POLICIES)),
            whole(document["episodes"], f"{file.name}: episodes"),
            STUDY_SEED,
            whole(document["transitions"], f"{file.name}: transitions"),
            Race(**document["race"]),
            tuple(document["candidates"]),
        )
        chosen = panels[panel]
        for name, entry in document["environments"].items():
            if unknown := set(entry) - {"env", "env_kwargs", "scale"}:
                raise ValueError(
                    f"{file.name}: {name} has an unknown {', '.join(sorted(map(str, unknown)))}; "
                    "known are env, env_kwargs and scale"
                )
            read_scale(name, entry)
            equirl.symmetry_of(entry["env"])
        arguments = [
            (
                name,
                setting,
                Train(
                    env=entry["env"],
                    algo=algo,
                    env_kwargs=tuple(
                        f"{k}={to_yaml(v, flow=True)}"
                        for k, v in entry.get("env_kwargs", {}).items()
                    ),
                    seeds=tuple(whole(seed, f"{file.name}: a seed") for seed in chosen["seeds"]),
                    hyperparameters=file.parent / settings_file,
                    output=runs.resolve() / setting / name,
                    checkpoints=whole(chosen["checkpoints"], f"{file.name}: checkpoints"),
                    eval_episodes=5,
                    experience=_kept(algo, protocol.transitions),
                    device="cpu",
                ),
            )
            for setting, told in document["settings"].items()
            for algo, settings_file in (_setting(setting, told, file),)
            for name, entry in document["environments"].items()
        ]
        _check_protocol(protocol, file)
        units = [
            Unit(name, setting, training, protocol)
            for name, setting, train in arguments
            for training in _planned(train, f"{file.name}, {name}, {setting}")
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file.name} is no definition of a study: {error!r}") from error
    return sorted(units, key=lambda unit: -unit.training.steps)


def _planned(arguments: Train, where: str) -> list[Training]:
    try:
        return plan(arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_kinds(document: Any, file: Path) -> None:
    """Raise ValueError unless what should be a mapping or a list is one, and none is empty."""
    parts = ("environments", "settings", "panels", "race")
    given = document if isinstance(document, dict) else {}
    wrong = [part for part in parts if not (isinstance(given.get(part), dict) and given[part])]
    if wrong:
        raise ValueError(
            f"{file.name} is no definition of a study: {wrong[0]} must be a mapping, as in "
            f"{DEFAULT_FILE.name} that comes with equirl"
        )
    known = [field.name for field in dataclasses.fields(Race)]
    if unknown := [str(key) for key in given["race"] if key not in known]:
        raise ValueError(
            f"{file.name}: race has an unknown {', '.join(unknown)}; known are {', '.join(known)}"
        )


def _setting(name: str, told: Any, file: Path) -> tuple[str, str]:
    """The algorithm and the file of hyperparameters of a setting; a file alone is one of dqn."""
    if isinstance(told, str):
        return "dqn", told
    if set(told) - {"algo", "hyperparameters"} or "algo" not in told:
        raise ValueError(
            f"{file.name}: the setting {name} is a file of hyperparameters, or algo: and maybe "
            f"hyperparameters:; got {told!r}"
        )
    return told["algo"], str(told.get("hyperparameters", default_file(told["algo"])))


def _kept(algo: str, transitions: int) -> int:
    """How many transitions of the replay buffer are kept; rollouts stand in where there is none."""
    return transitions if issubclass(algorithm_class(algo), OffPolicyAlgorithm) else 0


def _check_keys(document: dict[str, Any], file: Path) -> None:
    """Raise ValueError if there are others than those that are read: a misspelt one, say."""
    protocol = {field.name for field in dataclasses.fields(Protocol)} - {"seed", "rules"}
    known = {"environments", "settings", "panels", *protocol}
    unknown = [str(name) for name in document if name not in known]
    for name, panel in document["panels"].items():
        unknown += [f"panels: {name}: {key}" for key in panel if key not in PANEL]
    if unknown:
        raise ValueError(
            f"{file.name} has an unknown {', '.join(unknown)}; known are "
            f"{', '.join(sorted(known))} and, in a panel, {' and '.join(PANEL)}"
        )
    for name, panel in document["panels"].items():
        if not isinstance(panel["seeds"], list) or not panel["seeds"]:
            raise ValueError(f"{file.name}: panels: {name}: seeds must be a list, as in [0, 1, 2]")


def _check_protocol(protocol: Protocol, file: Path) -> None:
    for name, least in (("episodes", 1), ("transitions", 10)):
        if (number := getattr(protocol, name)) < least:
            raise ValueError(f"{file.name}: {name} must be at least {least}; got {number!r}")
    for key, known in (("policies", MAKERS), ("candidates", protocol.policies)):
        names = getattr(protocol, key)
        if not set(names) <= set(known) or "plain" not in names or len(set(names)) < len(names):
            raise ValueError(
                f"{file.name}: {key} are plain and others of {', '.join(known)}, each once; got "
                f"{', '.join(map(str, names))}"
            )
