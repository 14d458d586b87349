"""Reads stories out of plain text books, to train on."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

NOT_A_STORY = re.compile(
    r"(contents|preface|introduction|dedication|list of|illustrat|transcriber|preparer|notes?\b)",
    re.IGNORECASE,
)
NOTES_TO_THE_END = re.compile(r"(notes and references|oyez-oyez)", re.IGNORECASE)
FOOTNOTE = re.compile(r"\[(footnote|transcriber|greek|illustration)[^\]]*\]", re.IGNORECASE)
FOOTNOTE_MARK = re.compile(r" ?[\[(]\d{1,3}[\])]")
ORNAMENT = re.compile(r"[_*#|=\\{}<>^~]")


def read_stories(folder: Path) -> list[str]:
    """All stories of the folder's .txt files, in the order of their names.

    A blank line separates paragraphs. Raises SystemExit if there is no story.
    """
    stories: list[str] = []
    for path in sorted(folder.glob("*.txt")):
        if path.name.lower() != "readme.txt":
            stories += split_stories(path.read_text(encoding="utf-8"))
    if not stories:
        raise SystemExit(f"{folder}: no story found in its .txt files")
    return stories


def split_stories(text: str) -> list[str]:
    """Split a book at its headings, and keep parts with 600 or more characters of prose."""
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n", text)]
    stories: list[list[str]] = [[]]
    keep, position = True, 0
    for paragraph in paragraphs:
        position += len(paragraph)
        if NOTES_TO_THE_END.match(paragraph) and position > len(text) // 2:
            break
        if is_heading(paragraph):
            keep = not NOT_A_STORY.match(paragraph)
            stories.append([])
        elif keep and is_prose(paragraph):
            stories[-1].append(clean(paragraph))
    joined = ("\n\n".join(paragraphs) for paragraphs in stories)
    return [story for story in joined if len(story) >= 600]


def is_heading(paragraph: str) -> bool:
    """A short line that does not end like a sentence, or one without lower-case letters."""
    if len(paragraph) > 90 or "\n" in paragraph:
        return False
    letters = [c for c in paragraph if c.isalpha()]
    if not letters:
        return False
    return all(c.isupper() for c in letters) or (
        paragraph[0].isalnum() and paragraph[-1] not in ".,;:!?’”\"'-)_"
    )


def is_prose(paragraph: str) -> bool:
    """Not a table of contents, a list of sources, a line of stars or a line of capitals."""
    if re.match(
        r"[_\[(]*(\d+\b|source|parallel|remark|illustrat|by\b|translated)", paragraph, re.I
    ):
        return False
    letters = sum(c.isalpha() for c in paragraph)
    capitals = sum(c.isupper() for c in paragraph)
    return letters > 0.6 * len(paragraph) and capitals < 0.2 * letters


def clean(paragraph: str) -> str:
    """The paragraph on one line, without footnotes and emphasis, with typographic punctuation."""
    text = FOOTNOTE_MARK.sub("", FOOTNOTE.sub("", paragraph))
    text = " ".join(ORNAMENT.sub("", text).split()).replace("--", "—").replace(" — ", "—")
    text = re.sub(r"(^|[\s(—‘])\"", r"\1“", text).replace('"', "”")
    return re.sub(r"(^|[\s(—“])'", r"\1‘", text).replace("'", "’")


def hold_out(
    stories: list[str], stretch: int = 8_000, every: int = 30
) -> tuple[list[str], list[str]]:
    """Split into (training, held out) documents: one stretch of 8,000 characters in 30 is held out.

    Stretches end with a paragraph, so no sentence is in both.
    """
    training: list[str] = []
    held_out: list[str] = []
    position = 0
    for story in stories:
        marked: list[tuple[bool, str]] = []
        for paragraph in story.split("\n\n"):
            marked.append((position // stretch % every == every - 1, paragraph))
            position += len(paragraph)
        for is_held_out, group in itertools.groupby(marked, key=lambda m: m[0]):
            document = "\n\n".join(paragraph for _, paragraph in group)
            (held_out if is_held_out else training).append(document)
    return training, held_out
