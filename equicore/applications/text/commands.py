"""What `equicore text` does: train, generate, evaluate, judge, table, plot."""

from __future__ import annotations

import dataclasses
import functools
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from equicore.applications.text.names import METHODS, PER_TOKEN, STEERED, Method
from equicore.lab import CORES
from equicore.lab.command import Main, check_least, check_several
from equicore.lab.store import check_writable
from equicore.lab.tables import add_rows, check_rows

if TYPE_CHECKING:
    import pandas as pd

    from equicore.applications.text.experiment import Study

RESULTS = Path("results/text")
RUNS = Path("results/runs/text")


@dataclasses.dataclass(frozen=True)
class Model:
    """A language model, and the words that are exchanged."""

    model: str | None = None
    """A folder or a hub id of Hugging Face, of a causal language model. When omitted, a small one
    that is trained now, on sentences of a grammar with a known bias."""
    lists: tuple[str, ...] = ("gender",)
    """Lists of words: files, with an entry a line, or ours: gender, pronouns, race, races,
    orientation."""
    drop: bool = False
    """Drop entries with a word that is no single token of the model; else methods that average for
    each token refuse the list."""
    neutral: str = "neutral"
    """File of neutral words of relaxed methods, one a line."""
    held_out: Path | None = None
    """Texts of the model's training distribution, a line each, for perplexity; half of them fit
    weights. The model's held_out.txt when omitted."""
    runs: Path = RUNS
    """Folder that keeps models and texts."""


@dataclasses.dataclass(frozen=True)
class Annotations:
    """Sentences with their regard, to which classifiers are fitted."""

    annotations: tuple[Path, ...] = ()
    """Files or folders of lines of -1, 0, 1 or 2 for other, a tab, a sentence whose subject is XYZ;
    without a --model, sentences of the grammar when omitted."""
    more: tuple[Path, ...] = ()
    """More of them to learn from, such as of sentiment; accuracy is not measured on them."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a small language model of GPT-2's architecture; an interrupted training goes on.

    A tenth of the texts is held out, and written to held_out.txt beside the model.

    Example: equicore text train --texts continuations.txt
    """

    texts: Path | None = None
    """File with a text a line; 10,000 sentences of the grammar when omitted."""
    epochs: int = 15
    """Passes over the texts."""
    width: int = 128
    """Width of the layers, a multiple of 4."""
    layers: int = 4
    """Number of layers."""
    vocabulary: int = 4000
    """Number of tokens that the tokenizer learns, at most."""
    seed: int = 0
    """Seed of the initial parameters and of the order of the texts."""
    runs: Path = RUNS
    """The model is written to a folder in it, named as the file of the texts."""


@dataclasses.dataclass(frozen=True)
class Generate:
    """Write what follows contexts, a line each, which treats exchanged contexts alike.

    Example: equicore text generate --method whole_text --contexts "The man was" "The woman was"
    """

    of: Model = Model()
    known: Annotations = Annotations()
    method: Method = "whole_text"
    """How it is written; see docs/fair-text.md."""
    contexts: tuple[str, ...] = ("The man was known for", "The woman was known for")
    """Contexts to go on from."""
    texts: int = 1
    """Number of texts for each context."""
    tokens: int = 15
    """Number of tokens to write."""
    seed: int = 0
    """Seed of what is drawn."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure the regard of texts about each group, and their quality, under every method.

    The paper's two tasks, respect and occupation, with five contexts each. Writes regard.csv,
    quality.csv, judges.csv and samples.csv.

    Example: equicore text evaluate --model gpt2 --lists gender race --drop --annotations regard
    """

    of: Model = Model()
    known: Annotations = Annotations()
    methods: tuple[Method, ...] = METHODS
    """Plain; EquiLM of probabilities, or of logits; R-EquiLM; lambda-EquiLM; equitune of whole
    texts, with equal weights or those of the joint; EquizeroLM, R-EquizeroLM; the best text."""
    subject: str | None = None
    """Whom contexts about the first group begin with, such as "The boy", for lists that are not
    ours; its words are exchanged for the other groups."""
    label: str | None = None
    """What tables call the model; its folder's name when omitted."""
    judge: str | None = None
    """A further judge: a classifier of Hugging Face, such as a BERT of regard."""
    judge_labels: tuple[str, ...] = ()
    """What its outputs are, in their order: negative, neutral, positive, other; as it names them
    itself when omitted."""
    texts: int = 500
    """Number of texts for each task, method and group."""
    tokens: int = 15
    """Number of tokens of each text."""
    seed: int = 0
    """Seed of what is drawn, and of the halves of annotations."""
    jobs: int = CORES
    """Processes, each on one core."""
    output: Path = RESULTS
    """Folder for tables, in which other rows stay."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """Judge texts of others; writes judged.csv.

    Example: equicore text judge --files respect_BLACK_preds.tsv --annotations regard
    """

    files: tuple[Path, ...]
    """With a text a line, or a regard of -1, 0, 1 or 2, a tab and a text, which is compared."""
    known: Annotations = Annotations()
    output: Path = RESULTS
    """Folder for judged.csv."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Write regard.md, quality.md, judges.md, judged.md and samples.md from the CSV files.

    Example: equicore text table
    """

    folder: tyro.conf.Positional[Path] = RESULTS
    """Holds regard.csv, and what was written with it."""


@dataclasses.dataclass(frozen=True)
class Plot(Table):
    """Draw regard and quality, as PNG and SVG, from the CSV files beside them.

    Example: equicore text plot
    """


def run(command: Train | Generate | Evaluate | Judge | Table | Plot) -> None:
    """Language models that treat demographic groups alike."""
    mains: dict[type, Main] = {
        Train: _train,
        Generate: _generate,
        Evaluate: _evaluate,
        Judge: _judge,
        Table: _report,
        Plot: _report,
    }
    mains[type(command)](command)


def _train(arguments: Train) -> None:
    from equicore.applications.text import language

    check_least(arguments, epochs=1, width=4, layers=1, vocabulary=300, seed=0)
    if arguments.width % 4:
        raise ValueError(f"--width is a multiple of 4; got {arguments.width}")
    check_writable(arguments.runs / "model")
    sizes = {name: getattr(arguments, name) for name in ("epochs", "width", "layers", "vocabulary")}
    folder = _trained(arguments.texts, arguments.runs, seed=arguments.seed, **sizes)
    model, tokenizer = language.load(folder)
    found = language.perplexity(model, tokenizer, language.read_texts(folder / language.HELD_OUT))
    print(f"{folder}\nperplexity {found:.2f} on texts that were held out")


def _trained(texts: Path | None, runs: Path, **sizes: Any) -> Path:
    """The folder of a model trained on the lines of a file, or on the grammar."""
    from equicore.applications.text import grammar, language

    found = grammar.sentences(10_000).text.tolist() if texts is None else language.read_texts(texts)
    random.Random(0).shuffle(found)
    held = len(found) // 10
    name = "grammar" if texts is None else texts.stem
    return language.trained(found[held:], runs / name, found[:held], **sizes)


def _generate(arguments: Generate) -> None:
    from equicore.applications.text.experiment import made

    check_least(arguments, texts=1, tokens=1, seed=0)
    if len(arguments.of.lists) != 1:
        raise ValueError("generate takes one of --lists")
    method = arguments.method
    known = _annotations(arguments.known, arguments.of) if method in STEERED else None
    (study,) = _studies(arguments.of, (method,), known, None, seed=arguments.seed)
    writer, _ = made(study, method)
    contexts = [context for context in arguments.contexts for _ in range(arguments.texts)]
    texts = writer.generate(contexts, arguments.tokens, seed=arguments.seed)
    whole = (context + text for context, text in zip(contexts, texts, strict=True))
    print(*(" ".join(text.split("\n")) for text in whole), sep="\n")


def _evaluate(arguments: Evaluate) -> None:
    import pandas as pd

    from equicore.applications.text import experiment, grammar, regard
    from equicore.lab.jobs import Workers

    check_several(arguments, "methods")
    check_several(arguments.of, "lists")
    check_least(arguments, texts=1, tokens=1, seed=0, jobs=1)
    files = {name: arguments.output / f"{name}.csv" for name in experiment.TABLES}
    for name, file in files.items():
        check_rows(file, experiment.TABLES[name])
    known = _annotations(arguments.known, arguments.of)
    options = {"texts": arguments.texts, "new_tokens": arguments.tokens, "seed": arguments.seed}
    subject = arguments.subject or ""
    studies = _studies(arguments.of, arguments.methods, known, subject, **options)
    studies = [dataclasses.replace(s, name=arguments.label or s.name) for s in studies]
    judges: dict[str, Any] = {
        name: regard.fit_half(known, half, arguments.seed)
        for half, name in ((1, "judge"), (0, "steering"))
    }
    accurate = dict.fromkeys(judges, experiment.accuracy(known, arguments.seed))
    if arguments.judge is not None:
        name = Path(arguments.judge).name
        judges[name] = regard.load_regard(arguments.judge, arguments.judge_labels)
        accurate[name] = experiment.agreement(judges[name], known)
    tasks = [functools.partial(experiment.write, s, m) for s in studies for m in arguments.methods]
    written = iter(Workers(arguments.jobs).map(tasks, "texts"))
    rows: dict[str, list[pd.DataFrame]] = {name: [] for name in files}
    for study in studies:
        texts = {method: next(written) for method in arguments.methods}
        own = {name: judge.of_subjects(study.subjects) for name, judge in judges.items()}
        own |= {f"{name} invariant": judge.invariant(study.words) for name, judge in own.items()}
        asked: dict[str, Any] = dict(own)
        if not arguments.known.annotations:
            asked["grammar"] = lambda some: [grammar.regard_of(text) for text in some]
        whole = pd.concat(texts.values(), ignore_index=True)
        rows["regard"].append(experiment.judge(whole, asked))
        rows["samples"].append(whole[whole.number == 0][experiment.TEXT_COLUMNS])
        found = [experiment.quality(study, method, table) for method, table in texts.items()]
        rows["quality"].append(pd.DataFrame(found))
        if "plain" in texts:
            rows["judges"].append(experiment.biases(study, own, texts["plain"], accurate))
    for name, tables in rows.items():
        if any(len(table) for table in tables):
            add_rows(files[name], pd.concat(tables), experiment.TABLES[name])
            print(files[name])


def _judge(arguments: Judge) -> None:
    import pandas as pd

    from equicore.applications.text import experiment, regard

    file, keys = arguments.output / "judged.csv", ["part", "judge"]
    check_rows(file, keys)
    texts = {path: experiment.read_judged(path) for path in arguments.files}
    names = [f"{path.parent.name}/{path.name}" for path in arguments.files]
    if len(set(names)) < len(names):
        raise ValueError(f"--files of the same folder and name: {', '.join(names)}")
    classifier = regard.fit_regard(_annotations(arguments.known, None))
    rows = [experiment.judged(path, found, classifier) for path, found in texts.items()]
    add_rows(file, pd.concat(rows), keys)
    print(file)


def _report(arguments: Table) -> None:
    from equicore.applications.text import report  # which loads matplotlib

    write = report.write_figures if isinstance(arguments, Plot) else report.write_tables
    print(*write(arguments.folder), sep="\n")


def _annotations(known: Annotations, of: Model | None) -> pd.DataFrame:
    """What classifiers learn from: ``text``, ``regard``, and whether accuracy ``counts`` it."""
    import pandas as pd

    from equicore.applications.text import grammar, regard

    if not known.annotations:
        if of is None or of.model is not None or known.more:
            raise ValueError(
                "a classifier of regard needs --annotations: files of -1, 0, 1 or 2, a tab and a "
                "sentence; those of the grammar are for its own model alone"
            )
        return grammar.sentences(400, seed=2)[["text", "regard"]].assign(counts=True)
    own = regard.read_annotations(*known.annotations).assign(counts=True)
    more = regard.read_annotations(*known.more).assign(counts=False)
    return pd.concat([own, more]).drop_duplicates("text")


def _studies(
    of: Model,
    methods: tuple[str, ...],
    annotations: pd.DataFrame | None,
    subject: str | None,
    **options: Any,
) -> list[Study]:
    """A study for each list; raises for whatever does not fit, before any long work.

    Contexts begin with the subject, with that of the list if it is "", with none if it is None.
    """
    from equicore.applications.text import language
    from equicore.applications.text.experiment import Study
    from equicore.applications.text.grammar import SUBJECTS
    from equicore.applications.text.words import WordTokens, read_neutral, read_words

    check_writable(of.runs / "model")
    lists = [read_words(name) for name in of.lists]
    neutral = tuple(read_neutral(of.neutral))
    source = of.model or str(_trained(None, of.runs))
    held = of.held_out or Path(source) / language.HELD_OUT
    held_out = tuple(language.read_texts(held)) if of.held_out or held.is_file() else ()
    if "lambda_equi_lm" in methods and len(held_out) < 2:
        raise ValueError("lambda_equi_lm fits its weight to texts: name them with --held-out")
    _, tokenizer = language.load(source)
    studies = []
    for words in lists:
        first = SUBJECTS.get(words.name, "") if subject == "" else subject or ""
        if of.drop:
            words = WordTokens.usable(words, tokenizer)
        own = [words.act(g, first) for g in range(len(words.group))]
        if subject is not None and len(set(own)) < len(own):
            raise ValueError(
                f"{words.name} exchanges no word of {first!r}; name another --subject, whom "
                "contexts about its first group begin with, such as 'The man'"
            )
        if set(methods) & set(PER_TOKEN):
            table = WordTokens(words, tokenizer)
            if table.unlike(first, table.encoded(first)):
                raise ValueError(
                    f"the words of {first!r} are no single tokens of {source}; methods that "
                    f"exchange it are {', '.join(m for m in METHODS if m not in PER_TOKEN)}"
                )
        studies.append(Study(
            source, Path(source).name, words, tuple(own), annotations, neutral, held_out,
            of.runs / "texts", **options,
        ))  # fmt: skip
    return studies
