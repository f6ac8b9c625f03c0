"""Tables as Markdown and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from pandas.api.types import is_numeric_dtype

from equicore.lab.statistics import Estimate
from equicore.lab.store import check_writable, replacing

NAMES = (
    "agent", "cell", "condition", "context", "dataset", "digest", "env", "group", "judge",
    "language_model", "method", "model", "network", "pair", "part", "policy", "split", "task",
    "text",
)  # fmt: skip
"""Columns that hold names, which are text however they look: a model may be called 5, or NA."""
MISSING = ("", "nan", "NaN", "NA", "N/A", "null", "None")
"""What stands for a missing number."""


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]], spec: str = "") -> str:
    """A table in Markdown: an `Estimate` by its format, integers with commas, None as nothing.

    >>> print(markdown(["method", "steps"], [["equizero", 20_000], ["plain", None]]))
    | method | steps |
    |---|---|
    | equizero | 20,000 |
    | plain |  |
    """
    lines = [list(head), *([_cell(cell, spec) for cell in row] for row in rows)]
    first, *others = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([first, "|" + "---|" * len(head), *others])


def frame_markdown(table: pd.DataFrame, spec: str = "") -> str:
    """A data frame in Markdown, see `markdown`."""
    return markdown(list(table.columns), table.itertuples(index=False), spec)


def write_csv(path: Path, table: pd.DataFrame, float_format: str | None = None) -> None:
    """Write a data frame as CSV, whole or not at all."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format=float_format)


def read_rows(path: Path) -> pd.DataFrame:
    """Read a CSV file, columns of `NAMES` as text; raise ValueError if it is none."""
    try:
        columns = pd.read_csv(path, nrows=0).columns
        return pd.read_csv(
            path,
            dtype={name: str for name in columns if name in NAMES},
            keep_default_na=False,
            na_values={name: list(MISSING) for name in columns if name not in NAMES},
        )
    except ValueError as error:
        raise ValueError(f"{path} is not readable as CSV: {error}") from error


def check_rows(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The rows that a file has, to which more will be added; none if there is no file.

    Raises ValueError if it could not be done: it is another table, without some of the columns, or
    no table.
    """
    check_writable(path)
    if not path.is_file():
        return pd.DataFrame(columns=list(columns))
    found = read_rows(path)
    if missing := sorted(set(columns) - set(found.columns)):
        raise ValueError(
            f"{path} is another table, without {', '.join(missing)}; choose another --output"
        )
    return found


def check_made(path: Path, columns: Sequence[str], digest: str, **of: str) -> None:
    """Raise ValueError if a CSV file has rows of the same names that were made otherwise.

    Args:
        path: With a column ``digest``, of the settings that made each row; it need not be there.
        columns: That it has.
        digest: Of the settings that rows are made with now.
        of: Columns with a name each, such as ``model="resnet20"``: which rows are to be alike.
    """
    own = check_rows(path, [*columns, "digest"])
    for column, name in of.items():
        own = own[own[column] == name]
    if not {*own.digest} <= {digest}:
        raise ValueError(
            f"{path} has rows of {', '.join(of.values())} that were made with other models, data "
            "or settings; delete them, or choose another place for the results"
        )


def add_rows(path: Path, rows: pd.DataFrame, keys: Sequence[str]) -> None:
    """Add rows to a CSV file, in place of those of the same keys; errors as of `check_rows`.

    Several processes may add to one file.
    """
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        found = check_rows(path, keys)
        table = pd.concat([found, rows]) if len(found) else rows
        write_csv(path, table.drop_duplicates(list(keys), keep="last"), "%.6f")


def read_csv(path: Path, columns: Iterable[str], made_by: str) -> pd.DataFrame:
    """Read a CSV file that has these columns; ``made_by`` is the command that writes it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no CSV file, has no rows, or lacks columns.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; make it with {made_by}")
    table = read_rows(path)
    if missing := [name for name in columns if name not in table]:
        raise ValueError(f"{path} has no columns {', '.join(missing)}; write it with {made_by}")
    if table.empty:
        raise ValueError(f"{path} has no rows; write it with {made_by}")
    return table


def measured(
    folder: Path, sources: Mapping[str, tuple[str, Sequence[str]]]
) -> dict[str, pd.DataFrame]:
    """Those tables of accuracies that a folder has, by name; accuracies in %.

    Args:
        folder: Holds them, as NAME.csv.
        sources: For each name the command that writes it, and the columns that it has. The first
            is proposed where there is none.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: As of `read_csv`, or if an accuracy is no number.
    """
    tables = {}
    for name, (command, columns) in sources.items():
        if (folder / f"{name}.csv").is_file():
            table = read_csv(folder / f"{name}.csv", columns, command)
            if not is_numeric_dtype(table.accuracy) or table.accuracy.isna().any():
                raise ValueError(
                    f"{folder / name}.csv has accuracies that are no numbers; write it with "
                    f"{command}"
                )
            tables[name] = table.assign(accuracy=100 * table.accuracy)
    if not tables:
        files = " and ".join(f"no {name}.csv" for name in sources)
        raise FileNotFoundError(f"{files} in {folder}; run: {next(iter(sources.values()))[0]}")
    return tables


def _cell(cell: Any, spec: str) -> str:
    if isinstance(cell, Estimate):
        return format(cell, spec)
    if isinstance(cell, int | np.integer) and not isinstance(cell, bool):
        return f"{cell:,}"
    return "" if cell is None else str(cell)
