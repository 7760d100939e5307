"""HTML that others wrote runs nothing and fetches nothing, in the page and in a browser."""

import http.server
import re
import shutil
import subprocess
import threading

import nbformat
import pytest

from linattn.report import notebook, render
from linattn.report.markup import harmless

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
RUN = "document.title='RUN'"
PAYLOADS = {
    "a script": f"<script>{RUN}</script>",
    "a script in a script": f"<scr<script></script>ipt>{RUN}</scr<script></script>ipt>",
    "a script in capitals": f"<SCRIPT/x>{RUN}</SCRIPT>",
    "a picture's error": f'<img src=x onerror="{RUN}">',
    "a picture's error without quotes": f"<img src=x onerror={RUN}>",
    "a drawing's load": f'<svg onload="{RUN}"><animate onbegin="{RUN}" attributeName=x></svg>',
    "a focus": f'<input autofocus onfocus="{RUN}">',
    "an opened detail": f'<details open ontoggle="{RUN}"><summary>x</summary></details>',
    "a link to a script": f'<a id="link" href="javascript:{RUN}">x</a>',
    "a link to a script, hidden": f'<a id="link" href="java&#x0a;script:{RUN}">x</a>',
    "a link to data": '<a id="link" href="data:text/html,<script>1</script>">x</a>',
    "a frame": '<iframe src="//HOST/frame"></iframe>',
    "a frame of its own": f'<iframe srcdoc="<script>parent.{RUN}</script>"></iframe>',
    "an object": '<object data="//HOST/object"></object><embed src="//HOST/embed">',
    "a form": '<form action="//HOST/form"><input name=a><button id="link">x</button></form>',
    "a refresh": '<meta http-equiv="refresh" content="0;url=http://HOST/refresh">',
    "a base": '<base href="http://HOST/"><img src="base.png">',
    "a style that imports": "<style>@import url(//HOST/style);</style>",
    "a style that fetches": '<p style="background:url(http://HOST/background)">x</p>',
    "a sheet": '<link rel="stylesheet" href="//HOST/sheet">',
    "a sheet without quotes": "<link rel=stylesheet href=//HOST/sheet>",
    "a far picture": '<img src="//HOST/picture.png">',
    "a far picture without quotes": "<img src=//HOST/picture.png>",
    "a far picture in a set": '<img srcset="//HOST/set.png 1x">',
    "a film": '<video poster="//HOST/poster" src="//HOST/film" autoplay></video>',
    "a prefetch": '<link rel="prefetch" href="//HOST/prefetch">',
    "a title that ends": f"</title><script>{RUN}</script>",
    "a comment that ends": f"<!--><script>{RUN}</script>-->",
    "another language": f"<math><mtext><style><img src=x onerror={RUN}></style></mtext></math>",
    "an attribute that ends": f'<img alt="a><script>{RUN}</script>" src="//HOST/x">',
}
DANGER = r"(?i)<(script|iframe|svg|math|object|embed|form|input|meta|base|link|style|video)\b"
PICTURE = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_a_payload_is_gone_from_the_html(payload):
    body = harmless(f"<p>before</p>{payload}<p>after</p>")
    assert "before" in body
    assert "after" in body or "--" in payload
    assert not re.search(DANGER, body)
    assert not re.search(r"(?i)<[^>]*\bon\w+\s*=", body)
    assert not re.search(r"(?i)(src|href|style)=\"[^\"]*(HOST|javascript|url\()", body)


def test_what_a_report_needs_stays():
    body = (
        '<h2 id="a-title">Title<a class="anchor-link" href="#a-title">¶</a></h2>'
        f'<figure><img src="{PICTURE}" alt="A picture" width="540" height="20"></figure>'
        '<table><tbody><tr><th scope="row">row</th><td data-label="Error" '
        'style="text-align:right">1.5</td></tr></tbody></table>'
        '<div class="scroll" role="region" aria-label="A table" tabindex="0">x</div>'
        '<a href="pages/clear.html#numbers">a page</a>'
    )
    kept = harmless(body)
    for tag in re.findall(r"<[^>]+>", body):
        name, values = tag.strip("</>").split(" ")[0], re.findall(r'[\w-]+="[^"]*"', tag)
        assert f"<{name}" in kept or f"</{name}" in kept
        assert all(value in kept for value in values), tag
    assert harmless("<a href='//elsewhere/x'>its text</a>").count("its text") == 1


def page_of(tmp_path, kind):
    """Render a notebook whose cells hold all payloads, as the report's page of it."""
    book = nbformat.v4.new_notebook()
    for payload in PAYLOADS.values():
        if kind == "Markdown":
            book.cells.append(nbformat.v4.new_markdown_cell(payload))
        else:
            output = nbformat.v4.new_output("display_data", {"text/html": payload})
            book.cells.append(nbformat.v4.new_code_cell("1", outputs=[output]))
    path = tmp_path / "book.ipynb"
    nbformat.write(book, path)
    body, chapters, style = notebook.notebook_body(path)
    values = {"title": "QUIET", "body": body, "chapters": chapters, "code_style": style}
    return render.render("notebook.html.j2", **values)


class Counting(http.server.BaseHTTPRequestHandler):
    """Count what a browser asks for."""

    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(404)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def host():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    Counting.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def seen(path, tmp_path):
    """Open a page in a browser of its own, and return its title in the end."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/u",
    ]
    command += ["--virtual-time-budget=3000", "--dump-dom", f"file://{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return re.search(r"<title>(.*?)</title>", done.stdout).group(1)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed here")
@pytest.mark.parametrize("kind", ["Markdown", "HTML"])
def test_payloads_do_nothing_in_a_browser(tmp_path, host, kind):
    path = tmp_path / "page.html"
    path.write_text(page_of(tmp_path, kind).replace("HOST", host))
    assert seen(path, tmp_path) == "QUIET"
    assert Counting.asked == []


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed here")
def test_the_policy_holds_where_the_parser_would_fail(tmp_path, host):
    """Without the parser the policy alone stops scripts, frames, styles and pictures."""
    inner = {word: text for word, text in PAYLOADS.items() if word != "a refresh"}
    page = page_of(tmp_path, "HTML").replace(
        '<main id="content" class="notebook">', f"<main>{''.join(inner.values())}"
    )
    path = tmp_path / "page.html"
    path.write_text(page.replace("HOST", host))
    assert seen(path, tmp_path) == "QUIET"
    assert Counting.asked == []


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed here")
def test_these_payloads_are_alive_without_parser_and_policy(tmp_path, host):
    """A browser that ran none of them in any page would prove nothing."""
    path = tmp_path / "page.html"
    inner = [text for word, text in PAYLOADS.items() if word != "a refresh"]  # it leaves the page
    path.write_text(f"<title>QUIET</title>{''.join(inner)}".replace("HOST", host))
    assert seen(path, tmp_path) == "RUN"
    assert len(set(Counting.asked)) > 3
