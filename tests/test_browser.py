"""The browser of the page's tests: what a page may not do is noticed, and width, contrast and focus are measured."""

import re

import pytest
from browser import missing

pytest_plugins = "visits"


@pytest.mark.parametrize("body, problem", [
    ("<script>fetch('https://a.example/')</script>", "fetched|against its policy"),
    ("<img src=b.png alt=''>", "fetched: file://"),
    ("<script>console.error('no')</script>", "console error: no"),
    ("<script>null.x</script>", "raised: Cannot read"),
    ("<script>alert('name')</script>", "dialog: name"),
    ("<p style='color: red'>", "against its policy: style-src-attr inline"),
])
def test_the_browser_notices(body, problem, browser, tmp_path):
    path = tmp_path / "a.html"
    policy = "" if "style" not in body else "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'\">"
    path.write_text(f"<!DOCTYPE html><html lang=en>{policy}<title>a</title><body>{body}")
    seen = browser.open(path)
    seen.page.wait_for_timeout(100)
    assert re.search(problem, "\n".join(seen.problems)), seen.problems
    seen.close()


def test_the_browser_measures_width_contrast_and_focus(browser, tmp_path):
    path = tmp_path / "a.html"
    path.write_text("""<!DOCTYPE html><html lang=en><title>a</title><style>.g { color: #999 } #a:focus { outline: none }
        .wide { width: 900px } .box { overflow: auto; width: 200px }</style><body><p class=g>grey</p><p>black</p>
        <svg width=100 height=50><rect width=100 height=50 fill="#222"/><text x=10 y=20 fill="#333">dark</text></svg>
        <button id=a>a</button><button id=b>b</button><div class=wide>wide</div>
        <div class=box><div class=wide>scrolls</div></div>""")
    seen = browser.open(path, width=320)
    assert [(one["name"], one["seen"]) for one in seen.tab_order()][:2] == [("#a", False), ("#b", True)]
    assert seen.too_wide() == ["div wide"]
    contrast = {text: ratio for ratio, text, *_ in seen.contrasts()}
    assert contrast["grey"] == pytest.approx(2.85, abs=0.01)  # as WCAG's own formula has it for #999 on #fff
    assert contrast["black"] == pytest.approx(21) and contrast["dark"] < 1.5
    seen.close()


def test_without_chromium_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing().startswith("Chromium") and "apt-get install chromium" in missing()
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "chrome"))
    assert "Chromium" not in missing().partition(",")[0]
