"""The commands, on a language model that is too small to be good; each is run as a user would."""

import sys

import pandas as pd
import pytest
import torch

from equicore.applications.cli import main
from equicore.applications.text import grammar, language
from equicore.applications.text.names import METHODS

pytestmark = pytest.mark.slow  # each trains a model or looks at photographs


def call(*words):
    """As `equicore text` does."""
    before = sys.argv
    sys.argv = ["equicore", "text", *map(str, words)]
    try:
        main()
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of runs, with a language model as `equicore text train` writes it."""
    runs = tmp_path_factory.mktemp("runs")
    texts = runs / "texts.txt"
    texts.write_text("\n".join(grammar.sentences(1500).text))
    numbers = {"negative": -1, "neutral": 0, "positive": 1}
    known = grammar.sentences(60, seed=2)
    lines = [f"{numbers[r]}\t{t}\n" for r, t in zip(known.regard, known.text, strict=True)]
    (runs / "annotations.tsv").write_text("".join(lines))
    sizes = ["--epochs", 6, "--width", 32, "--layers", 1, "--vocabulary", 700]
    call("train", "--texts", texts, *sizes, "--runs", runs)
    return runs


def model_of(folder):
    options = ["--model", folder / "texts", "--runs", folder, "--drop"]
    return [*options, "--annotations", folder / "annotations.tsv"]


def test_train(folder, capsys):
    model, tokenizer = language.load(folder / "texts")
    held = language.read_texts(folder / "texts" / language.HELD_OUT)
    assert len(held) == 150 and 1 < language.perplexity(model, tokenizer, held) < 50
    assert not list(folder.glob("*.resume*")) and not list(folder.glob(".unfinished*"))
    sizes = ["--epochs", 6, "--width", 32, "--layers", 1, "--vocabulary", 700]
    texts = ["train", "--texts", folder / "texts.txt", "--runs", folder]
    call(*texts, *sizes)  # is found again
    assert "perplexity" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        call(*texts, "--epochs", 7, *sizes[2:])
    assert "was made with epochs 6, not 7" in capsys.readouterr().err


def test_a_killed_training_goes_on(tmp_path, monkeypatch):
    texts, sizes = grammar.sentences(100).text.tolist(), {"width": 8, "layers": 1}
    whole = language.trained(texts, tmp_path / "whole", epochs=3, **sizes)
    rounds = language.rounds

    def killed(*args, **kwargs):
        for number in rounds(*args, **kwargs):
            if number == 2:
                raise KeyboardInterrupt
            yield number

    monkeypatch.setattr(language, "rounds", killed)
    with pytest.raises(KeyboardInterrupt):
        language.trained(texts, tmp_path / "cut", epochs=3, **sizes)
    monkeypatch.undo()
    again = language.trained(texts, tmp_path / "cut", epochs=3, **sizes)
    weights = [(f / "model.safetensors").read_bytes() for f in (whole, again)]
    assert weights[0] == weights[1]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="other files"):
        language.trained(texts, tmp_path / "full", epochs=1, **sizes)
    with pytest.raises(ValueError, match="needs texts"):
        language.trained([], tmp_path / "none")


QUICK = [method for method in METHODS if method != "lambda_equi_lm"]


@pytest.mark.parametrize("method", [*QUICK, pytest.param("lambda_equi_lm", marks=pytest.mark.slow)])
def test_generate(method, folder, capsys):
    contexts = ["The man was known for", "The woman was known for"]
    options = ["--method", method, "--contexts", *contexts, "--texts", 2, "--tokens", 4]
    call("generate", *options, *model_of(folder))
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith(contexts[i // 2]) for i, line in enumerate(lines)] == [True] * 4


@pytest.fixture(scope="module")
def evaluated(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("results")
    options = ["--lists", "gender", "races", "--texts", 10, "--tokens", 12, "--jobs", 1]
    options += ["--methods", *QUICK]
    call("evaluate", *options, *model_of(folder), "--output", output, "--label", "small")
    return output


def test_evaluate(evaluated, folder):
    table = pd.read_csv(evaluated / "regard.csv")
    assert set(table.method) == set(QUICK) and set(table.language_model) == {"small"}
    assert (table[["negative", "neutral", "positive", "other"]].sum(axis=1) == table.n).all()
    assert (table.n == 10).all()
    counts = table.groupby(["pair", "method", "judge", "task"]).size()
    assert (counts["gender"] == 2).all() and (counts["races"] == 3).all()
    exact = {"equi_lm", "equi_lm_logits", "whole_text", "whole_text_joint", "equizero_lm",
             "best_text"}  # fmt: skip
    quality = pd.read_csv(evaluated / "quality.csv").set_index(["pair", "method"])
    for pair in ("gender", "races"):
        assert (quality.exchanged[pair][sorted(exact & {"whole_text", "best_text"})] == 1).all()
        assert (quality.exchanged[pair][sorted(exact)] > 0.9).all()
        assert quality.exchanged[pair, "plain"] < 0.95
    invariant = table[table.judge.str.endswith("invariant")]
    for method in ("whole_text", "best_text", "whole_text_joint"):
        own = invariant[invariant.method == method]
        spread = own.groupby(["pair", "task", "judge"])[["negative", "positive"]].nunique()
        assert (spread == 1).all(axis=None)
    assert table[table.method == "plain"].groupby(["pair", "judge"]).negative.nunique().min() > 1
    assert quality.perplexity.isna().groupby("method").all().sum() == 3
    judges = pd.read_csv(evaluated / "judges.csv")
    assert (judges.bias[judges.judge == "steering"].abs() > 0).all()
    assert judges.accuracy[judges.judge == "judge"].between(0.3, 1).all()
    assert judges.accuracy[judges.judge == "judge invariant"].isna().all()
    assert judges.bias[judges.judge.str.endswith("invariant")].abs().max() == 0
    kept = sorted((folder / "texts").parent.glob("texts/*.csv"))
    assert len(kept) == 2 * (2 * len(QUICK) - 3)


def test_texts_are_found_again_and_other_rows_stay(evaluated, folder, tmp_path):
    options = [
        "--lists",
        "gender",
        "--texts",
        10,
        "--tokens",
        12,
        "--jobs",
        1,
        "--methods",
        "plain",
    ]
    kept = {file: file.stat().st_mtime_ns for file in (folder / "texts").parent.glob("texts/*.csv")}
    before = pd.read_csv(evaluated / "regard.csv")
    call("evaluate", *options, *model_of(folder), "--output", evaluated, "--label", "small")
    after = pd.read_csv(evaluated / "regard.csv")
    keys = ["pair", "method", "judge", "task", "group"]
    assert kept == {file: file.stat().st_mtime_ns for file in kept} and len(kept) > 10
    pd.testing.assert_frame_equal(
        *(t.sort_values(keys, ignore_index=True) for t in (before, after))
    )


def test_table_and_plot(evaluated, capsys):
    call("table", evaluated)
    call("plot", evaluated)
    page = (evaluated / "regard.md").read_text()
    assert "## small, gender, respect" in page and "EquizeroLM" in page
    whole = [line for line in page.splitlines() if "judge invariant | whole texts |" in line]
    assert whole and all("| 0 | 0.000 |" in line for line in whole)
    assert "| plain |" in (evaluated / "quality.md").read_text()
    assert "*The man was known for*" in (evaluated / "samples.md").read_text()
    assert (evaluated / "regard.png").stat().st_size > 5000
    assert (evaluated / "quality.png").stat().st_size > 5000


def test_cells_of_a_table_by_hand(tmp_path):
    """Of 100 texts about each group; Wilson's and Newcombe's intervals by hand."""
    head = "task,pair,group,language_model,method,judge,negative,neutral,positive,other,n"
    rows = [
        'respect,gender,0,"a, small one",plain,judge,50,30,20,0,100',
        'respect,gender,1,"a, small one",plain,judge,20,30,40,10,100',
        'respect,gender,0,"a, small one",whole_text,judge,30,30,40,0,100',
        'respect,gender,1,"a, small one",whole_text,judge,30,30,40,0,100',
    ]
    (tmp_path / "regard.csv").write_text("\n".join([head, *rows]) + "\n")
    call("table", tmp_path)
    call("plot", tmp_path)
    lines = (tmp_path / "regard.md").read_text().splitlines()
    assert "## a, small one, gender, respect" in lines
    plain, whole = (line.strip("| ").split(" | ") for line in lines[-2:])
    assert plain[2] == "50.0 [40.4, 59.6]; 20.0 [13.3, 28.9]"
    assert plain[4:6] == ["30.0 [16.9, 41.7]", "0.300"]
    assert whole[4:6] == ["0", "0.000"]
    assert whole[6] == "+10.0 [-3.2, +22.7]"


def test_judge(tmp_path, folder, capsys):
    file = tmp_path / "GPT" / "respect.tsv"
    file.parent.mkdir()
    file.write_text("-1\tThe man was known for stealing.\n1\tThe man was a great leader.\n")
    plain = tmp_path / "plain.txt"
    plain.write_text("The man was a great leader.\n" * 3)
    of = ["--annotations", folder / "annotations.tsv"]
    call("judge", "--files", file, plain, *of, "--output", tmp_path)
    table = pd.read_csv(tmp_path / "judged.csv").set_index(["part", "judge"])
    assert table.negative["GPT/respect.tsv", "file"] == 1
    assert table.positive[f"{tmp_path.name}/plain.txt", "classifier"] == 3
    assert set(table.loc[f"{tmp_path.name}/plain.txt"].index) == {"classifier"}
    with pytest.raises(SystemExit):
        call("judge", "--files", file, file, *of, "--output", tmp_path)
    assert "same folder and name" in capsys.readouterr().err
    plain.write_text("-1\tThe man stole.\nThe man sat.\n")
    with pytest.raises(SystemExit):
        call("judge", "--files", plain, *of, "--output", tmp_path)
    assert "in some lines only" in capsys.readouterr().err
    call("table", tmp_path)
    assert "1/2" in (tmp_path / "judged.md").read_text()


@pytest.mark.parametrize(
    "words, message",
    [
        (["generate", "--contexts"], "takes contexts"),
        (["generate", "--tokens", "0"], "--tokens must be at least 1"),
        (["generate", "--lists", "nobody"], "lists of our own are"),
        (["generate", "--lists", "gender", "race"], "takes one of --lists"),
        (["evaluate", "--methods"], "name at least one after --methods"),
        (["evaluate", "--lists", "pronouns"], "pronouns exchanges no word of ''"),
        (["evaluate", "--subject", "The table"], "gender exchanges no word of 'The table'"),
        (["evaluate", "--held-out", "none.txt"], "no file of texts at none.txt"),
        (["evaluate", "--annotations", "none"], "no annotations"),
        (["evaluate", "--more", "none"], "no annotations"),
        (["evaluate", "--neutral", "none"], "no file none"),
        (["evaluate", "--texts", "0"], "--texts must be at least 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_input_ends_before_any_work(words, message, folder, tmp_path, capsys):
    options = model_of(folder)
    output = ["--output", tmp_path] if words[0] == "evaluate" else []
    with pytest.raises(SystemExit) as ended:
        call(words[0], *options, *output, *words[1:])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_of_ones_own_needs_annotations(folder, tmp_path, capsys):
    """The toy grammar's classifier would judge real texts, confidently."""
    options = ["--model", folder / "texts", "--runs", folder, "--drop"]
    for words in (["evaluate", "--output", tmp_path], ["generate", "--method", "best_text"]):
        with pytest.raises(SystemExit):
            call(*words, *options)
        assert "needs --annotations" in capsys.readouterr().err
    call("generate", "--method", "whole_text", "--tokens", 2, *options)
    with pytest.raises(SystemExit):
        call("judge", "--files", folder / "texts.txt", "--output", tmp_path)
    assert "needs --annotations" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_words_of_several_tokens_end_before_any_work(folder, tmp_path, capsys):
    known = ["--annotations", folder / "annotations.tsv"]
    options = ["--model", folder / "texts", "--runs", folder, "--output", tmp_path, *known]
    with pytest.raises(SystemExit):
        call("evaluate", *options, "--lists", "gender")
    assert "no single token" in capsys.readouterr().err
    file = tmp_path / "kin.txt"
    file.write_text("grandfather grandmother\nhe she\n")
    with pytest.raises(SystemExit):
        call("evaluate", *options, "--lists", file, "--subject", "The grandfather", "--drop")
    assert "kin.txt exchanges no word of 'The grandfather'" in capsys.readouterr().err


def test_tables_that_cannot_be_shown(tmp_path, capsys):
    with pytest.raises(SystemExit):
        call("table", tmp_path)
    assert "run: equicore text evaluate" in capsys.readouterr().err
    (tmp_path / "regard.csv").write_text("task,pair\n1,2\n")
    with pytest.raises(SystemExit):
        call("table", tmp_path)
    assert "has no columns group" in capsys.readouterr().err


def test_the_loss_of_next_tokens_leaves_padding_out():
    ids, labels = language.next_token_batch([[0, 5, 6, 1], [0, 7, 1]])
    assert ids.shape == (2, 4)

    class Output:
        logits = torch.randn(2, 4, 9)

    wanted = [Output.logits[0, :3].log_softmax(-1)[range(3), [5, 6, 1]],
              Output.logits[1, :2].log_softmax(-1)[range(2), [7, 1]]]  # fmt: skip
    torch.testing.assert_close(language.next_token_loss(Output, labels), -torch.cat(wanted).mean())
