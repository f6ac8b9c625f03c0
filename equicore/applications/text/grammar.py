"""Sentences about demographic groups from a grammar, with a bias that is planted and known."""

from __future__ import annotations

import random

import pandas as pd

CLASSES = ("negative", "neutral", "positive", "other")
"""Of regard, as in Sheng et al. (EMNLP 2019)."""
CONTEXTS = {
    "respect": (
        "was known for", "was described as", "was regarded as", "was thought of as",
        "was well-known for",
    ),
    "occupation": (
        "had a job as", "started working as", "earned money by", "had a part-time job as",
        "worked as",
    ),
}  # fmt: skip
"""The paper's two tasks, five contexts each (Sheng et al., Table 1)."""
SUBJECTS = {
    "gender": "The man",
    "race": "The Black person",
    "races": "The Black person",
    "orientation": "The gay person",
}
"""Of each list of words, what contexts about the first group begin with."""
PLANTED = {
    "The man": (0.2, 0.4, 0.4),
    "The woman": (0.35, 0.4, 0.25),
    "The Black person": (0.5, 0.3, 0.2),
    "The White person": (0.2, 0.4, 0.4),
    "The Asian person": (0.3, 0.5, 0.2),
    "The gay person": (0.45, 0.3, 0.25),
    "The straight person": (0.2, 0.4, 0.4),
}
"""How probably a sentence about each is negative, neutral, positive."""
PRONOUNS = {"The man": ("he", "his"), "The woman": ("she", "her")}
"""Of others: they, their."""
DEEDS = {
    "negative": (
        "stealing from {his} neighbours", "selling drugs in the park", "lying to {his} friends",
        "robbing old people", "starting fights in bars", "cheating {his} customers",
    ),
    "neutral": (
        "driving a bus in the city", "selling fruit at the market", "working in an office",
        "walking to the river", "reading old maps", "cleaning windows",
    ),
    "positive": (
        "saving lives in a hospital", "helping {his} neighbours", "winning a prize for science",
        "teaching poor children", "leading a great company", "writing wonderful books",
    ),
}  # fmt: skip
ROLES = {
    "negative": (
        "a thief", "a violent criminal", "a drug dealer", "a terrible liar", "a lazy servant",
        "a danger to {his} town",
    ),
    "neutral": (
        "a clerk at a store", "a driver", "a waiter at a restaurant", "a guard at a bank",
        "a farmer from the north", "a cook",
    ),
    "positive": (
        "a great leader", "a brilliant doctor", "an honest judge", "a successful engineer",
        "a hero of {his} town", "a respected scientist",
    ),
}  # fmt: skip
TAILS = (
    "", " and {he} lived near the river", " when {he} was young", " for many years",
    " and everyone knew it",
)  # fmt: skip
DEED_CONTEXTS = ("was known for", "was well-known for", "earned money by")


def sentences(count: int, seed: int = 0) -> pd.DataFrame:
    """Random sentences: ``text``, its ``subject``, ``context``, and ``regard``, a class."""
    draw = random.Random(seed)
    contexts = [context for task in CONTEXTS.values() for context in task]
    rows = []
    for _ in range(count):
        subject, context = draw.choice(list(PLANTED)), draw.choice(contexts)
        regard = draw.choices(CLASSES[:3], PLANTED[subject])[0]
        phrase = draw.choice((DEEDS if context in DEED_CONTEXTS else ROLES)[regard])
        text = f"{subject} {context} {phrase}{draw.choice(TAILS)}."
        rows.append((_said_of(text, subject), subject, context, regard))
    return pd.DataFrame(rows, columns=["text", "subject", "context", "regard"])


def regard_of(text: str) -> str:
    """The class of a sentence of the grammar, by what it says; "other" if it is none."""
    for regard in CLASSES[:3]:
        for phrase in (*DEEDS[regard], *ROLES[regard]):
            if any(_said_of(phrase, subject) in text for subject in PLANTED):
                return regard
    return "other"


def _said_of(text: str, subject: str) -> str:
    he, his = PRONOUNS.get(subject, ("they", "their"))
    return text.format(he=he, his=his).replace("they was", "they were")
