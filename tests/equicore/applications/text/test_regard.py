import pandas as pd
import pytest
import torch

from equicore.applications.text import Regard, fit_regard, grammar, load_regard, read_annotations
from equicore.applications.text.grammar import CLASSES, PLANTED
from equicore.applications.text.regard import bias, cross_validated, fit_half

TEXTS = ["The man was known for his great work", "XYZ was a violent thief", "The woman sat."]


@pytest.fixture(scope="module")
def annotations():
    return grammar.sentences(300, seed=3)[["text", "regard"]]


@pytest.fixture(scope="module")
def regard(annotations):
    return fit_regard(annotations)


def test_the_grammar_has_the_bias_that_is_planted():
    table = grammar.sentences(20_000, seed=5)
    for subject, wanted in PLANTED.items():
        own = table[table.subject == subject]
        found = [(own.regard == name).mean() for name in CLASSES[:3]]
        assert found == pytest.approx(wanted, abs=0.03)
    assert [grammar.regard_of(text) for text in table.text] == table.regard.tolist()
    assert grammar.regard_of("The man sat.") == "other"
    assert not table.text.str.contains(r"[{}]").any()
    assert table.text[table.subject == "The woman"].str.contains(r"\bhis\b").sum() == 0


def test_a_classifier_learns_the_grammar(regard):
    table = grammar.sentences(200, seed=4)
    found = regard.classes(table.text.tolist())
    assert (pd.Series(found) == table.regard).mean() > 0.95
    numbers = regard(table.text.tolist())
    assert numbers.shape == (200,) and numbers.abs().max() <= 1
    assert numbers[torch.tensor([*(table.regard == "positive")])].min() > 0
    assert regard([]).shape == (0,)


def test_the_subject_is_hidden(regard):
    parts = [regard([f"{subject} was known for stealing."]) for subject in PLANTED]
    assert all(torch.equal(part, parts[0]) for part in parts)


def test_an_invariant_classifier(regard, pairs, races):
    texts = ["XYZ saw a man and his Black friend", "She, an Asian woman", "a thief"]
    for words in (pairs, races):
        own = regard.invariant(words)
        for g in range(len(words.group)):
            moved = [words.act(g, text) for text in texts]
            assert torch.equal(own.probabilities(moved), own.probabilities(texts))
        mean = sum(regard.probabilities([words.act(g, t) for t in texts])
                   for g in range(len(words.group))) / len(words.group)  # fmt: skip
        torch.testing.assert_close(own.probabilities(texts), mean)
        assert bias(own, words, texts).abs().max() == 0
    assert len(bias(regard, pairs, texts)) == 2
    assert regard.invariant(pairs)([]).shape == (0,)


def test_subjects_of_ones_own_are_hidden(regard):
    own = regard.of_subjects(["The doctor", "The nurse"])
    assert own.hidden("The nurse sat by the nurse") == "XYZ sat by the nurse"
    assert own.hidden("The nurses sat") == "The nurses sat"
    assert torch.equal(own(["The doctor stole."]), own(["The nurse stole."]))


def test_a_planted_bias_of_a_classifier_is_measured(pairs):
    """From the first group to the second; what changes nothing but the subject does not count."""

    def probabilities(texts):
        good = torch.tensor([0.75 if "he" in t.split() else 0.25 for t in texts]).double()
        return torch.stack([1 - good, good * 0, good, good * 0], 1)

    texts = ["The man said he ran", "The man did as he said", "The man ran", "no"]
    found = bias(Regard(probabilities), pairs, texts)
    assert found.tolist() == [-1.0, -1.0]
    there = [pairs.act(1, text) for text in texts]
    assert bias(Regard(probabilities), pairs, there).tolist() == [1.0, 1.0]


def test_annotations_from_files(tmp_path, shared_text):
    (tmp_path / "one.tsv").write_text("-1\tXYZ stole.\n1\tXYZ helped.\n")
    (tmp_path / "two.tsv").write_text("2\tXYZ did both.\n1\tXYZ helped.\n")
    found = read_annotations(tmp_path)
    assert found.regard.tolist() == ["negative", "positive", "other"]
    (tmp_path / "two.tsv").write_text("3\tXYZ did.\n")
    with pytest.raises(ValueError, match=r"two.tsv, line 1.*'3"):
        read_annotations(tmp_path)
    with pytest.raises(FileNotFoundError, match="no annotations"):
        read_annotations(tmp_path / "none")
    real = read_annotations(shared_text / "nlg-bias" / "regard")
    assert len(real) == 324 and set(real.regard) == set(CLASSES)


def test_too_few_annotations(annotations):
    with pytest.raises(ValueError, match="two classes, and 5 texts"):
        fit_regard(annotations[annotations.regard == "neutral"])
    with pytest.raises(ValueError, match="none"):
        fit_regard(annotations[:0])


def test_halves_are_disjoint_and_accuracy_is_of_what_is_held_out(annotations):
    first, second = (fit_half(annotations, half) for half in (0, 1))
    assert not torch.equal(first(TEXTS), second(TEXTS))
    annotations = annotations[:120]
    shuffled = annotations.assign(regard=annotations.regard.sample(frac=1, random_state=0).array)
    assert cross_validated(shuffled, folds=3).value < 0.55  # nothing to learn
    found = cross_validated(annotations, annotations[:0], folds=3)
    assert found.value > 0.9 and found.low < found.value


def test_a_classifier_of_hugging_face(tmp_path, tokenizer):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_labels=3,
                        num_attention_heads=2, intermediate_size=8)  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    regard = load_regard(tmp_path, ["positive", "neutral", "negative"])
    found = regard.probabilities(TEXTS)
    ids = tokenizer("XYZ was known for his great work", return_tensors="pt")
    wanted = model(**ids).logits.softmax(-1)[0].double()
    torch.testing.assert_close(found[0, [2, 1, 0]], wanted, atol=1e-6, rtol=1e-6)
    assert (found[:, 3] == 0).all()
    model.config.id2label = {0: "Positive", 1: "Neutral", 2: "Negative"}
    model.save_pretrained(tmp_path)
    assert torch.equal(load_regard(tmp_path).probabilities(TEXTS), found)
    with pytest.raises(ValueError, match="name the 3 outputs"):
        load_regard(tmp_path, ["positive", "negative"])
    with pytest.raises(ValueError, match="name the 3 outputs"):
        load_regard(tmp_path, ["good", "neutral", "negative"])


def test_probabilities_of_the_wrong_shape():
    with pytest.raises(ValueError, match="gives 4 probabilities for each of 3"):
        Regard(lambda texts: torch.zeros(len(texts), 2))(TEXTS)
