import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equicore import check_representation
from equicore.applications.text import (
    WordGroup,
    WordTokens,
    mended,
    read_entries,
    read_neutral,
    read_words,
)

READY = ["gender", "pronouns", "race", "races", "orientation"]
THREE = WordGroup([("dog", "cat", "old cow"), ("Kim", "Lee", "Max"), ("mr.", "mrs.", "dr.")])
PIECES = st.sampled_from(
    ["dog", "Cat", "old cow", "OLD", "cow", "Kim", "LEE", "max", "mr.", "Dr.", "'s", "s", " ", "-",
     ".", "old", "\n", "a", "Lee's", "doge", "_"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=12).map("".join), st.integers(0, 2), st.integers(0, 2))
def test_lists_act_on_every_text(text, g, h):
    assert THREE.act(0, text) == text
    assert THREE.act(g, THREE.act(h, text)) == THREE.act(THREE.group.compose(g, h), text)


@given(st.lists(PIECES, max_size=8).map("".join), st.lists(PIECES, max_size=8).map("".join))
def test_lists_act_on_what_follows_a_text(context, text):
    exchanged = THREE.act(1, text, after=context)
    assert THREE.act(2, exchanged, after=THREE.act(1, context)) == text


def test_forms_of_words():
    words = WordGroup([("he", "she"), ("man", "woman"), ("Black", "White")])
    assert words.act(1, "The Man's son; MEN, he-man HE?") == "The Woman's son; MEN, she-woman SHE?"
    assert words.act(1, "a manager, the then, Zhe, man_") == "a manager, the then, Zhe, man_"
    assert words.act(1, "a Black man in black") == "a White woman in black"
    assert words.act(1, "man was", after="The wo") == "man was"
    assert words.found("The Man and he") == ["Man", "he"]
    assert words.orbit(["he", "a man"]) == ["he", "a man", "she", "a woman"]


@pytest.mark.parametrize("name", READY)
def test_lists_of_our_own_are_actions(name):
    words = read_words(name)
    text = "The Black man said: he, his MALE gay friend and Mr Smith; Asian."
    for g in range(len(words.group)):
        assert words.act(words.group.inverse(g), words.act(g, text)) == text
    assert len(read_neutral()) > 20


@pytest.mark.parametrize(
    "entries, fault, kept",
    [
        ([("his", "her"), ("him", "her")], "'her' is also in his -> her", 1),
        ([("male", "female"), ("males", "female")], "'female' is also in", 1),
        ([("a", "b"), ("c", "d", "e")], "has 3 words", 1),
        ([("a", "b"), ("c", "c")], "a word twice", 1),
        ([("a", "b"), ("x_y", "z")], "write spaces", 1),
        ([("a", "b"), ("Black", "white")], "small or capitalised", 1),
        ([("a", "b"), ("I", "we")], "small or capitalised", 1),
        ([("cow", "dog"), ("old cow", "old dog")], "overlap", 1),
        ([("aa b", "xx"), ("b cc", "yy")], "overlap", 1),
        ([("a", "b"), ("mr.", "madam")], "begin or end with a letter", 1),
        ([("a", "")], "empty word", 0),
        ([("aB", "ab")], "differ only in their case", 0),
        ([("one",)], "has 1 words", 0),
        ([], "it is empty", 0),
    ],
)
def test_lists_that_are_no_action_are_refused_and_mended(entries, fault, kept):
    with pytest.raises(ValueError, match=fault):
        WordGroup(entries)
    left, faults = mended(entries)
    assert len(left) == kept and len(faults) == 1 and fault in faults[0]
    if left:
        WordGroup(left)


def test_an_entry_twice_or_turned_is_the_same_one():
    assert len(WordGroup([("a", "b"), ("b", "a"), ("a", "b")]).entries) == 1
    assert len(WordGroup([("a", "b", "c"), ("c", "a", "b")]).entries) == 1
    with pytest.raises(ValueError, match="is also in"):
        WordGroup([("a", "b", "c"), ("b", "a", "c")])


def test_files(tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("# people\nhe \t she \nold man, old woman # phrases\n")
    assert read_entries(one) == [("he", "she"), ("old man", "old woman")]
    one.write_text("man  woman\nhe she\n")
    assert read_words(one).entries == [("man", "woman"), ("he", "she")]
    one.write_text("man\nhe\n")
    two.write_text("woman\nshe\n")
    assert read_words(one, two).entries == [("man", "woman"), ("he", "she")]
    one.write_bytes(b"\xef\xbb\xbfman woman\r\nhe she\r\n")  # as Windows writes
    assert read_words(one).entries == [("man", "woman"), ("he", "she")]
    one.write_bytes("Bär Bärin".encode("latin-1"))
    with pytest.raises(ValueError, match="one.txt is no text in UTF-8"):
        read_words(one)
    one.write_text("man\nhe\n")
    two.write_text("woman\n")
    with pytest.raises(ValueError, match=r"n-th lines.*2.*1"):
        read_words(one, two)
    with pytest.raises(FileNotFoundError, match="gender.*pronouns"):
        read_words("nobody")


def test_faults_of_public_lists(shared_text):
    folder = shared_text / "words"
    left, faults = mended(read_entries(folder / "winobias-generalized_swaps.txt"))
    assert any("his -> her" in fault and "him -> her" in fault for fault in faults)
    assert any("mentleman" in fault for fault in faults) and len(faults) == 9
    WordGroup(left)
    files = folder / "gn_glove-male.txt", folder / "gn_glove-female.txt"
    left, faults = mended(read_entries(*files))
    assert any("female_ejaculation" in fault for fault in faults) and len(faults) == 36
    WordGroup(left)


def test_words_as_tokens(tokenizer, pairs):
    table = WordTokens(pairs, tokenizer)
    ids = torch.tensor(
        tokenizer("The man said he saw his friend; He", add_special_tokens=False).input_ids
    )
    check_representation(table.tokens, ids[None])
    exchanged = tokenizer.decode(table.tokens.act(1, ids))
    assert exchanged == "The woman said she saw her friend; She"
    assert not table.unlike("The man", table.encoded("The man"))
    assert table.unlike("HE", table.encoded("HE"))
    report = table.report.set_index("form")
    assert report.loc[" man"].exchanged and not report.loc[" MAN"].exchanged.any()
    assert table.ids(["man", "xyzzyx"]) == table.ids(["man"]) != []


def test_pieces_that_go_on_words_are_no_words(tokenizer, pairs):
    """ "he" without a space also ends "the"."""
    table = WordTokens(pairs, tokenizer)
    piece = tokenizer.convert_tokens_to_ids("he")
    assert int(table.tokens.act(1, torch.tensor([[piece]]))) == piece != tokenizer.unk_token_id


def test_words_of_several_tokens_are_named(tokenizer):
    words = WordGroup([("man", "woman"), ("grandfather", "grandmother")])
    with pytest.raises(ValueError, match="no single token.*grandfather, grandmother.*WholeText"):
        WordTokens(words, tokenizer)
    assert WordTokens.usable(words, tokenizer).entries == [("man", "woman")]
    with pytest.raises(ValueError, match="no entry"):
        WordTokens.usable(WordGroup([("grandfather", "grandmother")]), tokenizer)


def test_a_real_tokenizer(stories):
    _, tokenizer = stories
    table = WordTokens(read_words("pronouns"), tokenizer)
    assert set(table.report[table.report.exchanged].form) == {
        "he", "she", " he", " she", "He", "She", " He", " She", "his", "her", " his", " her",
    }  # fmt: skip
    with pytest.raises(ValueError, match="boy, girl"):
        WordTokens(WordGroup([("he", "she"), ("boy", "girl")]), tokenizer)
