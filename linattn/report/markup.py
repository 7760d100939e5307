"""Make HTML that other programs wrote fit the report: no scripts, and nothing to fetch."""

import re

REPLACEMENTS = (
    (re.compile(r"<script\b.*?</script>", re.S | re.I), ""),
    (re.compile(r"<link\b[^>]*>", re.I), ""),
    (re.compile(r'<a\b[^>]*href="(?:https?:)?//[^"]*"[^>]*>(.*?)</a>', re.S | re.I), r"\1"),
    (
        re.compile(r'<img\b[^>]*src="(?:https?:)?//[^"]*"[^>]*>', re.I),
        "(a picture that is not on this machine)",
    ),
    (re.compile(r"\bhttps?://"), ""),
)


def slug(text: str) -> str:
    """Turn a title into an anchor or a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def without_addresses(body: str) -> str:
    """Remove scripts, style sheets and every address; a link leaves its text."""
    for pattern, replacement in REPLACEMENTS:
        body = pattern.sub(replacement, body)
    return body
