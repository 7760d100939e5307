"""HTML of other hands in the report's own dress: no script, nothing fetched."""

import re


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def without_addresses(body: str) -> str:
    """Links to the outside become their words, scripts and style sheets go, and bare addresses lose their scheme."""
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.S | re.I)
    body = re.sub(r"<link\b[^>]*>", "", body, flags=re.I)
    body = re.sub(r'<a\b[^>]*href="(?:https?:)?//[^"]*"[^>]*>(.*?)</a>', r"\1", body, flags=re.S | re.I)
    body = re.sub(
        r'<img\b[^>]*src="(?:https?:)?//[^"]*"[^>]*>', "(a picture that is not on this machine)", body, flags=re.I
    )
    return re.sub(r"\bhttps?://", "", body)
