"""A page of the report as a browser sees it, and what must hold for every page."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Collect what a browser shows: title, language, pictures, anchors, links, cells."""

    VOID = ("img", "meta", "link", "br", "hr", "input", "source", "wbr", "col")
    FETCHED = ("src", "srcset", "poster", "data", "action")

    def __init__(self, text: str):
        super().__init__()
        self.text, self.title, self.lang = "", "", None
        self.alts, self.links, self.sources, self.ids = [], [], [], set()
        self.tags, self.open, self.rows = [], [], []
        self.feed(text)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in values:
            assert values["id"] not in self.ids, f"two elements with id {values['id']}"
            self.ids.add(values["id"])
        if tag == "html":
            self.lang = values.get("lang")
        if tag == "img":
            self.alts.append(values.get("alt"))
        if tag == "a":
            self.links.append(values.get("href"))
        self.sources += [value for key, value in attributes if key in self.FETCHED]
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td") and self.rows:
            self.rows[-1].append({"text": "", "best": False})
        if tag == "strong" and self.rows and self.rows[-1] and "tr" in self.open:
            self.rows[-1][-1]["best"] = True

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        assert self.open, f"</{tag}> without <{tag}>"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += "" if "style" in self.open else data
        if self.open and self.open[-1] == "title":
            self.title += data
        if "tr" in self.open and self.rows and self.rows[-1]:
            self.rows[-1][-1]["text"] += data


ADDRESS = re.compile(r"https?:|url\(|@import|//[a-z0-9-]+\.[a-z]{2}")


def check(text: str) -> Page:
    """Assert what holds for every page, and return the page."""
    page = Page(text)
    assert page.title.strip()
    assert page.lang == "en"
    assert page.alts or "img" not in page.tags
    assert all(alt and alt.strip() for alt in page.alts), page.alts
    assert "script" not in page.tags
    assert "link" not in page.tags
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not ADDRESS.search(without_pictures)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    anchors = [link for link in page.links if link.startswith("#")]
    assert len(anchors) > 2
    assert all(anchor[1:] in page.ids for anchor in anchors)
    assert "#content" in anchors  # the skip link
    return page
