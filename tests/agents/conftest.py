import contextlib
import dataclasses
import importlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stable_baselines3 import DQN

import equirl
from equicore.lab.jobs import Workers
from equirl.agents.arguments import Train
from equirl.agents.train import train_all
from equirl.agents.training import plan

TINY = """
equirl/Gridworld-v0:
  n_timesteps: 120
  policy: MlpPolicy
  learning_rate: 0.01
  buffer_size: 100
  learning_starts: 20
  batch_size: 16
  target_update_interval: 40
  train_freq: 4
  policy_kwargs: {net_arch: [16]}
"""

FITS = ("fit_familiarity", "fit_temporal_difference")
STEPS = 5


@contextlib.contextmanager
def counted_fits():
    """The fits of lambda take some steps only. Yields the names of those that were called."""
    calls = []

    def counted(name, fit):
        def call(*arguments, **options):
            calls.append(name)
            return fit(*arguments, **{"steps": STEPS, **options})

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in FITS:
            patch.setattr(equirl, name, counted(name, getattr(equirl, name)))
        yield calls


@pytest.fixture(scope="session")
def short_fits():
    """For fixtures that live longer than a test."""
    return counted_fits


@pytest.fixture
def fits():
    with counted_fits() as calls:
        yield calls


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory):
    path = tmp_path_factory.mktemp("hyperparameters") / "tiny.yaml"
    path.write_text(TINY)
    return path


def tiny(yaml, output, **changes):
    arguments = Train(
        env="equirl/Gridworld-v0",
        env_kwargs=("goals=corner", "n=4", "max_episode_steps=15"),
        hyperparameters=yaml,
        output=output,
        checkpoints=3,
        eval_episodes=2,
        device="cpu",
        jobs=1,
    )
    return dataclasses.replace(arguments, **changes)


@pytest.fixture
def tiny_train(tiny_yaml, tmp_path):
    """Arguments of a training of a second."""
    return tiny(tiny_yaml, tmp_path / "runs")


@pytest.fixture(scope="session")
def tiny_runs(tiny_yaml, tmp_path_factory):
    """Folders of two finished trainings, which tests leave as they are."""
    trainings = plan(tiny(tiny_yaml, tmp_path_factory.mktemp("runs"), seeds=(0, 1)))
    train_all(trainings, jobs=1)
    return [training.folder.path for training in trainings]


@pytest.fixture(scope="session")
def new_agent(tmp_path_factory):
    """The file of an agent of CartPole that has learned nothing."""
    path = tmp_path_factory.mktemp("agent") / "mine.zip"
    DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu", buffer_size=1).save(path)
    return path


@pytest.fixture
def cartpole_zip(new_agent, tmp_path):
    """A copy of it, which may be moved."""
    return Path(shutil.copy(new_agent, tmp_path))


@dataclasses.dataclass(frozen=True)
class Sent(Workers):
    """Runs tasks in this process, but as they arrive in another."""

    def map(self, tasks, what, **options):
        return super().map([pickle.loads(pickle.dumps(t)) for t in tasks], what, **options)


@pytest.fixture
def sent():
    return Sent(1)


@pytest.fixture(scope="session")
def gate(tmp_path_factory):
    """Folder of the module `gate`, which environments named gate:<id> import."""
    folder = tmp_path_factory.mktemp("gate")
    (folder / "gate.py").write_text(GATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        importlib.import_module("gate")
    return folder


@pytest.fixture(scope="session")
def forked(gate, tmp_path_factory):
    """Starts commands quickly, without figures."""
    commands = Forked(tmp_path_factory.mktemp("forked"), gate)
    yield commands
    commands.close()


@pytest.fixture
def fresh(gate, tmp_path):
    """Starts commands as a user does."""
    commands = Fresh(tmp_path / "fresh", gate)
    yield commands
    commands.close()


@pytest.fixture
def make_returns():
    """Made-up returns in the form of `equirl compare`, equizero better than plain."""

    def make(envs=("CartPole-v1", "Acrobot-v1"), budgets=(100, 200), agents=3, episodes=10):
        rng = np.random.default_rng(0)
        bonus = {"plain": 0, "equitune": 5, "equizero": 8, "lambda": 10}
        return pd.DataFrame(
            {
                "env": env,
                "agent": f"agent{agent}",
                "seed": agent,
                "budget": budget,
                "policy": policy,
                "condition": condition,
                "episode": episode,
                "episode_return": 20 + bonus[policy] + budget / 50 + rng.normal(),
            }
            for env in envs
            for budget in budgets
            for policy in bonus
            for condition in ("original", "transformed")
            for agent in range(agents)
            for episode in range(episodes)
        )

    return make


# Every process that makes an environment called gate:<id> imports this module. Where the variable
# GATE names a folder, it makes the fits short and stops the process: once as many files of runs
# have been written as the folder's file `limit` says, it waits just before the next is renamed.
GATE = f"""
import functools, os, pathlib, tempfile, time
import equirl

folder = os.environ.get("GATE")
replace = pathlib.Path.replace


def gated(path, target):
    target = pathlib.Path(target)
    if "dqn" in target.parts and target.suffix in (".zip", ".npz", ".safetensors", ".csv"):
        gate = pathlib.Path(folder)
        if len(os.listdir(gate / "written")) >= int((gate / "limit").read_text()):
            (gate / "closed").touch()
            while (gate / "closed").exists():
                time.sleep(0.01)
        os.close(tempfile.mkstemp(dir=gate / "written")[0])
    return replace(path, target)


if folder:
    pathlib.Path.replace = gated
    for name in {FITS}:
        setattr(equirl, name, functools.partial(getattr(equirl, name), steps={STEPS}))
"""

# Forks a process for each line of arguments, which spares it the imports, and tells its id and its
# status.
SERVER = """
import json, os, sys
import torch._dynamo, gate
from equirl.agents import cli, study, train

study.write_panel = lambda folder: []
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.setsid()
        status = 1
        try:
            sys.argv = ["equirl", *json.loads(line)]
            cli.main()
            status = 0
        except SystemExit as error:
            status = error.code
        finally:
            os._exit(status)
    print("pid", child, flush=True)
    print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Commands:
    """Runs `equirl` in processes that the test can stop and kill.

    Each is a session of its own. It writes temporary files to a folder of its own.
    """

    def __init__(self, folder, module):
        self.gate, self.temporary = folder / "gate", folder / "tmp"
        (self.gate / "written").mkdir(parents=True)
        self.temporary.mkdir()
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(module), os.environ.get("PYTHONPATH", "")]),
            "GATE": str(self.gate),
            "TMPDIR": str(self.temporary),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),  # torch makes it, and keeps it
        }
        self.log = (folder / "log.txt").open("w")
        self.pid = None

    def start(self, arguments, limit=1_000_000):
        """Begin; the process stops when so many files of runs are written."""
        for file in (self.gate / "written").iterdir():
            file.unlink()
        (self.gate / "closed").unlink(missing_ok=True)
        (self.gate / "limit").write_text(str(limit))
        self.pid = self._start([str(word) for word in arguments])

    def finish(self):
        """The exit status, when nothing of it is left."""
        status = self._status()
        self.check_gone()
        return status

    def stop_at_gate(self):
        """Wait until a process waits at the gate, so that work is certainly left."""
        wait(lambda: (self.gate / "closed").exists() or not running(self.pid), 120)
        assert running(self.pid), f"ended before it could be stopped; see {self.log.name}"

    def kill(self):
        """Kill the process that was started, and no other."""
        self.stop_at_gate()
        os.kill(self.pid, signal.SIGKILL)
        assert self._status() == -signal.SIGKILL
        self.check_gone()

    def interrupt(self):
        """What a terminal does at Ctrl-C."""
        self.stop_at_gate()
        os.killpg(self.pid, signal.SIGINT)

    def check_gone(self):
        """No process, no shared memory and no temporary file of it is left."""
        if not wait(lambda: not session(self.pid), 60):
            left = session(self.pid)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"processes {left} outlived the command")
        # as in sem.loky-<pid>-..., joblib_memmapping_folder_<pid>_...
        names = os.listdir("/dev/shm")
        assert not [name for name in names if str(self.pid) in re.split("[-_]", name)]
        assert not list(self.temporary.iterdir())


class Forked(Commands):
    """Begins each by a fork of a process that has imported everything."""

    def __init__(self, folder, module):
        super().__init__(folder, module)
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=self.environment,
        )

    def _start(self, words):
        print(json.dumps(words), file=self.server.stdin, flush=True)
        return self._answer("pid")

    def _status(self):
        return self._answer("status")

    def _answer(self, what):
        for line in self.server.stdout:  # among what the command prints
            if line.startswith(f"{what} "):
                return int(line.split()[1])
        raise AssertionError(f"the process died, see {self.log.name}")

    def close(self):
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()
        self.log.close()


class Fresh(Commands):
    """Begins each from nothing, as a user does."""

    def _start(self, words):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "equirl.agents.cli", *words],
            stdout=self.log,
            stderr=self.log,
            env=self.environment,
            start_new_session=True,
        )
        return self.process.pid

    def _status(self):
        return self.process.wait(timeout=300)

    def close(self):
        self.log.close()


def wait(condition, seconds):
    """Whether a condition comes true within so many seconds."""
    end = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return true


def running(pid):
    """Whether there is such a process that is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def session(leader):
    """The processes of a session."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.getsid(int(name)) == leader and running(name):
                found.append(int(name))
    return found
