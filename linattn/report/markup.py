"""Make HTML that other programs wrote fit the report: nothing runs, and nothing is fetched.

nh3, a parser made for it, keeps the tags and attributes named here. Cells, Markdown and result
files may come from anywhere: someone else's run is read in a browser too. Every page also carries a
Content-Security-Policy (reports/template/base.html.j2).
"""

import re

import nh3

TEXT = "p div span br hr pre code kbd samp sub sup b i em strong small blockquote q abbr var del"
LISTS = "ul ol li dl dt dd"
TABLES = "table caption colgroup col thead tbody tfoot tr th td"
TAGS = {*TEXT.split(), *LISTS.split(), *TABLES.split(), *["h1", "h2", "h3", "h4", "h5", "h6"]}
TAGS |= {"a", "img", "figure", "figcaption"}
EMPTIED = {"script", "style", "template", "noscript", "iframe", "object", "svg", "math", "title"}
ATTRIBUTES = {
    "*": {"class", "id", "title", "style", "role", "aria-label", "tabindex", "data-label", "lang"},
    "a": {"href"},
    "img": {"src", "alt", "width", "height"},
    "ol": {"start"},
    "th": {"scope", "colspan", "rowspan"},
    "td": {"colspan", "rowspan"},
    "col": {"span"},
}
STYLES = {"text-align", "width", "max-width", "height"}
PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+")
# a place on this page, or a file beside it; no scheme and no host
PLACE = re.compile(r"(?!//)[\w./-]*(#[^\s]*)?")
FAR_PICTURE = re.compile(r'<img\b[^>]*src="(?:https?:)?//[^"]*"[^>]*>', re.I)
ADDRESS = re.compile(r"\bhttps?://")


def slug(text: str) -> str:
    """Turn a title into an anchor or a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def harmless(body: str) -> str:
    """Return HTML in which nothing runs and nothing is fetched; a link elsewhere leaves its text.

    Args:
        body: HTML, well formed or not.
    """
    body = FAR_PICTURE.sub("(a picture that is not on this machine)", body)
    return nh3.clean(
        ADDRESS.sub("", body),
        tags=TAGS,
        clean_content_tags=EMPTIED,
        attributes=ATTRIBUTES,
        attribute_filter=_attribute,
        url_schemes={"data"},
        filter_style_properties=STYLES,
        link_rel=None,
        strip_comments=True,
    )


def _attribute(tag: str, name: str, value: str) -> str | None:
    """Return an attribute's value, or None where it would lead out of the page."""
    if name == "src":
        return value if PICTURE.fullmatch(value) else None
    if name == "href":
        return value if PLACE.fullmatch(value) else None
    return value
