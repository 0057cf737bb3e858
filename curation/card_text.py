"""Words for a card: text from films made harmless for Markdown, licences as the Hub spells them."""

from __future__ import annotations

import re

HUB_LICENCES = frozenset(
    [f"cc-by{kind}-{version}" for kind in ("", "-sa", "-nc", "-nc-sa", "-nd", "-nc-nd") for version in ("3.0", "4.0")]
    + ["cc-by-2.0", "cc-by-2.5", "cc-by-nc-2.0", "cc-by-nc-sa-2.0", "cc0-1.0", "apache-2.0", "mit", "unlicense", "odbl"]
)
"""Licences that have an id on the Hub, of those that films and annotations may carry."""
LONGEST = 300
"""Characters of a text from a film that a card shows."""
LINKS = re.compile(r"://|@|www\.|(?i:\b(?:mailto|xmpp|data|javascript|vbscript|ftp|https?):)|[^\W\d_]\.[^\W\d_]{2,}")
"""What some reader of Markdown makes a link of by itself."""
ESCAPES = str.maketrans(
    {mark: f"\\{mark}" for mark in "[]`*_~#|!"}
    | {mark: f"&#{ord(mark)};" for mark in "\\$:"}
    | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
)
"""Mark-up by what stands for it; entities where a reader would take even the escape for a formula or an emoji's name."""
IN_CODE = str.maketrans({"`": "'", "|": "%7C", "<": "%3C", ">": "%3E"})


def cell(text: str | None, longest: int = LONGEST) -> str:
    """Text from a film as one harmless table cell or list item of Markdown.

    It gives no line break, HTML, link, image, formula, heading or table in any usual dialect; what a dialect would make a link
    of by itself becomes code. Control characters and marks that turn the direction of writing are left out.

    Args:
        text: anything; None and nothing become "not stated".
        longest: characters that are shown.
    """
    plain = " ".join("".join(mark if mark.isprintable() else " " for mark in text or "").split())
    if not plain:
        return "not stated"
    if len(plain) > longest:
        plain = f"{plain[:longest].rstrip()}…"
    if LINKS.search(plain):
        return f"`{plain.translate(IN_CODE)}`"
    return re.sub(r"^(?:[-+=]|(\d+)(?=[.)]))", _escaped_start, plain.translate(ESCAPES))


def _escaped_start(found: re.Match[str]) -> str:
    """The start of a line that would begin a list or a heading."""
    return f"{found[1]}\\" if found[1] else f"\\{found[0]}"


def hub_licence(text: str | None) -> str | None:
    """The Hub's id of a licence (``CC BY-NC 4.0`` gives ``cc-by-nc-4.0``); None where it has none."""
    name = re.sub(r"[\s_-]+", "-", (text or "").strip().lower())
    return name if name in HUB_LICENCES else None
