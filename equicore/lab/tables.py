"""Tables as Markdown and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equicore.lab.statistics import Estimate
from equicore.lab.store import replacing


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


def read_csv(path: Path, columns: Iterable[str], made_by: str) -> pd.DataFrame:
    """Read a CSV file that has these columns; ``made_by`` is the command that writes it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no CSV file, has no rows, or lacks columns.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; make it with {made_by}")
    try:
        table = pd.read_csv(path)
    except ValueError as error:
        raise ValueError(f"{path} is not readable as CSV: {error}") from error
    if missing := [name for name in columns if name not in table]:
        raise ValueError(f"{path} has no columns {', '.join(missing)}; write it with {made_by}")
    if table.empty:
        raise ValueError(f"{path} has no rows; write it with {made_by}")
    return table


def _cell(cell: Any, spec: str) -> str:
    if isinstance(cell, Estimate):
        return format(cell, spec)
    if isinstance(cell, int | np.integer) and not isinstance(cell, bool):
        return f"{cell:,}"
    return "" if cell is None else str(cell)
