"""Tables as Markdown and CSV."""

import numpy as np
import pandas as pd
import pytest

from equicore.lab.statistics import Estimate
from equicore.lab.tables import (
    add_rows,
    check_rows,
    frame_markdown,
    markdown,
    measured,
    read_csv,
    write_csv,
)


def test_markdown_by_hand():
    rows = [
        ["equizero", 20_000, Estimate(0.5, 0.25, 0.75), 0.1],
        ["plain", np.int64(1_234_567), Estimate(11.25, 6.5, 15.75), None],
        [True, -5, Estimate(1.0, np.nan, np.nan), "a"],
    ]
    assert markdown(["method", "steps", "return", "x"], rows).split("\n") == [
        "| method | steps | return | x |",
        "|---|---|---|---|",
        "| equizero | 20,000 | 0.50 [0.25, 0.75] | 0.1 |",
        "| plain | 1,234,567 | 11.2 [6.5, 15.8] |  |",
        "| True | -5 | 1.00 [one run] | a |",
    ]


def test_estimates_in_a_format_of_ones_own():
    (_, _, row) = markdown(["x"], [[Estimate(0.5, 0.25, 0.75)]], ".3f").split("\n")
    assert row == "| 0.500 [0.250, 0.750] |"


def test_a_table_without_rows():
    assert markdown(["a", "b"], []) == "| a | b |\n|---|---|"


def test_a_data_frame_as_markdown():
    table = pd.DataFrame({"method": ["a", "b"], "steps": [1000, 2]}, index=[7, 8])
    assert frame_markdown(table) == markdown(["method", "steps"], [["a", 1000], ["b", 2]])


def test_a_csv_file_is_read_as_it_was_written(tmp_path):
    table = pd.DataFrame({"name": ["a, b", "c"], "value": [0.1, 1 / 3], "count": [1, 2]})
    path = tmp_path / "deep" / "table.csv"
    write_csv(path, table)
    pd.testing.assert_frame_equal(read_csv(path, ["name", "count"], "equirl compare"), table)
    assert [file.name for file in path.parent.iterdir()] == ["table.csv"]
    write_csv(path, table, "%.2f")
    assert path.read_text() == 'name,value,count\n"a, b",0.10,1\nc,0.33,2\n'


def test_names_are_text_however_they_look(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    names = ["5", "NA", "1e5", "", "007", "resnet"]
    rows = pd.DataFrame({"model": names, "seed": range(6), "accuracy": [0.5] * 6})
    for _ in range(2):  # the same rows, in place of those before
        add_rows(path, rows, ["model", "seed"])
        found = check_rows(path, ["model"])
        assert found.model.tolist() == names
        assert found.seed.tolist() == list(range(6))
        assert found.accuracy.dtype == float
    assert read_csv(path, ["model"], "it").model.tolist() == names
    with pytest.raises(ValueError, match="is another table, without digest"):
        check_rows(path, ["model", "digest"])
    assert list(check_rows(tmp_path / "new.csv", ["model"])) == ["model"]
    path.write_text("model,accuracy\nNA,NaN\nb,\nc,0.5\n")
    assert check_rows(path, ["model"]).accuracy.isna().tolist() == [True, True, False]


@pytest.mark.parametrize("accuracy", ["often", ""])
def test_accuracies_are_numbers(tmp_path, accuracy):
    (tmp_path / "it.csv").write_text(f"model,accuracy\na,0.5\nb,{accuracy}\n")
    with pytest.raises(ValueError, match="it.csv has accuracies that are no numbers; write"):
        measured(tmp_path, {"it": ("equicore it", ["model"])})


def test_csv_files_that_are_of_no_use_say_how_to_make_one(tmp_path):
    path = tmp_path / "table.csv"
    with pytest.raises(FileNotFoundError, match="no .*table.csv; make it with equirl compare"):
        read_csv(path, ["a"], "equirl compare")
    with pytest.raises(FileNotFoundError):
        read_csv(tmp_path, ["a"], "equirl compare")
    for content, message in (
        (b"a,b,c\n", "table.csv has no rows; write it with equirl compare"),
        (b"a\n1\n", "table.csv has no columns b, c; write it with equirl compare"),
        (b"", "table.csv is not readable as CSV: No columns"),
        (b"a,b,c\n1,2,3\n1,2,3,4\n", "table.csv is not readable as CSV: .*line 3, saw 4"),
        (b"\xff\xfe\x00\x80", "table.csv is not readable as CSV"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_csv(path, ["a", "b", "c"], "equirl compare")
