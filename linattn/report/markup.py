"""HTML that other programs wrote, made to fit the report: without scripts and without anything to
fetch.
"""

import re


def slug(text: str) -> str:
    """Turn a title into an anchor or a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def without_addresses(body: str) -> str:
    """Replace outside links by their text, remove scripts and style sheets, and strip the scheme of
    bare addresses.
    """
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.S | re.I)
    body = re.sub(r"<link\b[^>]*>", "", body, flags=re.I)
    body = re.sub(
        r'<a\b[^>]*href="(?:https?:)?//[^"]*"[^>]*>(.*?)</a>', r"\1", body, flags=re.S | re.I
    )
    body = re.sub(
        r'<img\b[^>]*src="(?:https?:)?//[^"]*"[^>]*>',
        "(a picture that is not on this machine)",
        body,
        flags=re.I,
    )
    return re.sub(r"\bhttps?://", "", body)
