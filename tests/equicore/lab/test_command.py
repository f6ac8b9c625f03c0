"""The frame of a command: arguments, errors, exit status, and the command line again."""

import dataclasses
import shlex
from pathlib import Path

import pytest
import tyro

from equicore.lab.command import (
    check_least,
    check_several,
    command_line,
    option,
    report_errors,
    run,
)


@dataclasses.dataclass(frozen=True)
class Count:
    """Count things."""

    what: tyro.conf.Positional[str]
    """What to count."""
    times: int = 3
    """How often."""
    sizes: tuple[int, ...] = (1, 2)
    """Of what size."""
    output: Path = Path("results")
    """Where to write."""
    fast: bool = False
    """Whether to hurry."""
    limit: float | None = None
    """At most so many."""


@dataclasses.dataclass(frozen=True)
class Show:
    """Show them."""

    title: str = "counts"
    """Above them."""


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch):
    monkeypatch.delenv("EQUIRL_DEBUG", raising=False)


def test_one_command(capsys):
    run({Count: lambda a: print(a.what, a.times, a.sizes)}, args=["sheep", "--times", "4"])
    assert capsys.readouterr().out == "sheep 4 (1, 2)\n"


@pytest.mark.parametrize("args, called", [(["count", "sheep"], "Count"), (["show"], "Show")])
def test_several_commands(args, called, capsys):
    mains = {kind: lambda a: print(type(a).__name__) for kind in (Count, Show)}
    run(mains, args=args)
    assert capsys.readouterr().out == f"{called}\n"


def test_help_shows_what_the_docstrings_say(capsys):
    with pytest.raises(SystemExit) as end:
        run({Count: print}, prog="sheep", args=["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("sheep", "How often.", "--sizes", "default: 3"))


@pytest.mark.parametrize("args", [[], ["sheep", "--times", "many"], ["sheep", "--unknown", "1"]])
def test_wrong_arguments_are_status_2(args, capsys):
    with pytest.raises(SystemExit) as end:
        run({Count: print}, args=args)
    assert end.value.code == 2


@pytest.mark.parametrize("error", [ValueError, TypeError, FileNotFoundError, LookupError])
def test_wrong_input_is_a_message_and_status_2(error, capsys, monkeypatch):
    def main(arguments):
        raise error("give another")

    with pytest.raises(SystemExit) as end:
        run({Show: main}, LookupError, args=[])
    assert end.value.code == 2
    assert capsys.readouterr() == ("", "error: give another\n")
    monkeypatch.setenv("EQUIRL_DEBUG", "1")
    with pytest.raises(error, match="give another"):
        run({Show: main}, LookupError, args=[])


def test_an_interrupt_is_status_130():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        report_errors(interrupted)
    assert end.value.code == 130


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        report_errors(lambda: 1 // 0)
    with pytest.raises(LookupError):  # nobody said that it is wrong input
        report_errors(lambda: {}["key"])


def test_options_have_a_least_value():
    check_least(Count("sheep", times=1, limit=0.5), times=1, limit=0.5)
    check_least(Count("sheep"), times=3, limit=7)  # None is no number
    with pytest.raises(ValueError, match="--times must be at least 4; got 3"):
        check_least(Count("sheep"), times=4)
    with pytest.raises(ValueError, match="--limit must be at least 0; got -0.5"):
        check_least(Count("sheep", limit=-0.5), times=1, limit=0)


def test_options_of_several_values():
    check_several(Count("sheep", sizes=(2, 1)), "sizes")
    with pytest.raises(ValueError, match="no sizes given: name at least one after --sizes"):
        check_several(Count("sheep", sizes=()), "sizes")
    with pytest.raises(ValueError, match="--sizes has 3 more than once"):
        check_several(Count("sheep", sizes=(3, 1, 3)), "sizes")


def test_names_of_options():
    assert option("eval_episodes") == "--eval-episodes"


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (Count("sheep"), "equirl count sheep"),
        (Count("sheep", times=4, fast=True), "equirl count sheep --times 4 --fast"),
        (Count("sheep", sizes=(3, 4)), "equirl count sheep --sizes 3 4"),
        (Count("black sheep", limit=0.5), "equirl count 'black sheep' --limit 0.5"),
    ],
)
def test_the_command_line_again(arguments, expected):
    written = command_line("equirl count", arguments, ("what",), [arguments.what])
    assert written == expected
    assert tyro.cli(Count, args=shlex.split(written)[2:]) == arguments


def test_of_paths_the_name_is_written_and_some_fields_are_left_out():
    arguments = Count("sheep", output=Path("/somewhere/deep/runs"), times=7)
    assert command_line("equirl count", arguments, ("what", "times")) == (
        "equirl count --output runs"
    )
