"""Markup to plain text: HTML, reStructuredText, POD, and tokenised prose."""

from __future__ import annotations

import html
import re

_DROP = re.compile(
    r"<(script|style|head|nav|svg|form|button|footer|iframe)\b.*?</\1\s*>|<!--.*?-->", re.S | re.I
)
_PRE = re.compile(r"<pre\b[^>]*>(.*?)</pre\s*>", re.S | re.I)
_HEADING = re.compile(r"<h[1-6]\b[^>]*>(.*?)</h[1-6]\s*>", re.S | re.I)
_ITEM = re.compile(r"<li\b[^>]*>", re.I)
_CELL = re.compile(r"</t[dh]\s*>\s*<t[dh]\b[^>]*>", re.I)
_BLOCK = re.compile(
    r"</?(?:p|div|ul|ol|dl|dt|dd|table|tr|blockquote|section|article|br|hr|li|tbody|thead"
    r"|body|html|center|main|header)\b[^>]*>",
    re.I,
)
_TAG = re.compile(r"<[^>]+>")


def from_html(page: str) -> str:
    """Return the readable text of an HTML page, keeping code blocks' line breaks."""
    page = _DROP.sub(" ", page)
    blocks: list[str] = []

    def keep(match: re.Match[str]) -> str:
        code = html.unescape(_TAG.sub("", match.group(1))).strip("\n")
        blocks.append(code)
        return f"<p>\x00{len(blocks) - 1}\x00</p>"

    page = _PRE.sub(keep, page)
    page = re.sub(r"\s+", " ", page)
    page = _HEADING.sub(lambda m: f"\n\n{_TAG.sub('', m.group(1)).strip()}\n\n", page)
    page = _CELL.sub(" | ", page)
    page = _ITEM.sub("\n- ", page)
    page = _BLOCK.sub("\n", page)
    text = html.unescape(_TAG.sub("", page))
    text = re.sub(r"[ \t\xa0]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    text = re.sub(r"\n- \n+", "\n- ", text)
    text = re.sub("\x00(\\d+)\x00", lambda m: "\n" + blocks[int(m.group(1))] + "\n", text)
    return tidy(text.replace("\xb6", ""))


def from_rst(source: str) -> str:
    """Return reStructuredText or asciidoc without its inline roles and directive noise."""
    text = re.sub(
        r"^\.\. (?:index|toctree|_|\|)[^\n]*\n(?:[ \t]+[^\n]*\n|\n)*", "\n", source, flags=re.M
    )
    text = re.sub(
        r"^\.\. (?:SPDX|Copyright|This|-\*-)[^\n]*\n(?:[ \t]+[^\n]*\n)*", "", text, flags=re.M
    )
    text = re.sub(r":[\w:+.-]+:`~?!?([^`<]+?)(?:\s*<[^`>]*>)?`", r"\1", text)
    text = re.sub(r"`([^`<]+?)\s*<[^`>]*>`__?", r"\1", text)
    text = re.sub(r"``([^`\n]+)``", r"\1", text)
    text = re.sub(r"\*\*([^*\n]+)\*\*", r"\1", text)
    text = re.sub(r"^([=\-~^\"'#*+])\1{3,}$", "", text, flags=re.M)
    return tidy(text)


def from_pod(source: str) -> str:
    """Return Perl's POD without its commands and formatting codes."""
    text = re.sub(r"^=(?:head\d|item) +", "", source, flags=re.M)
    text = re.sub(r"^=\w+[^\n]*$", "", text, flags=re.M)
    text = re.sub(r"\b[LC]<<+ (.*?) >>+", r"\1", text)
    for _ in range(2):
        text = re.sub(r"\b[BICFXLSE]<(?:[^<>|]*\|)?([^<>]*)>", r"\1", text)
    return tidy(text)


def detokenised(text: str) -> str:
    """Join the punctuation that a tokenised corpus sets apart with spaces."""
    text = re.sub(r"\s+([.,;:!?%)\]}])", r"\1", text)
    text = re.sub(r"([(\[{$#])\s+", r"\1", text)
    text = re.sub(r"\s+(n't|'s|'re|'ve|'ll|'d|'m|n’t|’s)\b", r"\1", text)
    text = re.sub(r"(\w) (-|–|/|'|’) (?=\w)", r"\1\2", text)
    text = re.sub(r"``\s*|\s*''", '"', text)
    return re.sub(r'(^|\s)" ([^"]{1,300}?) "', r'\1"\2"', text)


def tidy(text: str) -> str:
    """Strip trailing blanks and runs of empty lines."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufffd", "")
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def unwrapped(text: str) -> str:
    """Join the hard-wrapped lines of every paragraph into one line."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(re.sub(r"\s*\n\s*", " ", p).strip() for p in paragraphs if p.strip())


_COMMON = frozenset(
    [
        "the",
        "of",
        "and",
        "to",
        "in",
        "is",
        "a",
        "for",
        "that",
        "with",
        "as",
        "on",
        "are",
        "by",
        "was",
        "it",
        "from",
        "at",
        "an",
        "be",
    ]
)


def is_english(text: str) -> bool:
    """Tell whether a text's words are those of English prose."""
    words = text[:2000].lower().split()
    return len(words) >= 20 and sum(w in _COMMON for w in words) / len(words) > 0.16
