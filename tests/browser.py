"""A browser without a network for the tests of the stepper's page: headless Chromium, driven by Playwright.

    with Browser() as browser:
        visit = browser.open(path, width=320)      # a file; nothing but the file may be fetched
        visit.press("f")
        visit.state()                              # {"view": "blocks", "direction": "backward", "step": 7}
        assert visit.problems == []

`missing()` says in one line why there is none here. CHROMIUM names the program, else it is looked for under its usual
names. What a page may not do is collected in Visit.problems: fetch, write an error to the console, raise, break its
own Content-Security-Policy, open a dialog.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALL = "apt-get install chromium; pip install 'tinyres[browser]'"

WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation",
    event => window.violations.push(event.violatedDirective + " " + event.blockedURI));
"""
# From the key to the end of layout, and on to the end of the next frame, in milliseconds.
REACTION = """async key => {
    const shown = () => new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    await shown();
    const target = document.activeElement || document.body, began = performance.now();
    target.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
    document.body.getBoundingClientRect();
    const laid = performance.now() - began;
    await shown();
    return [laid, performance.now() - began];
}"""
# The control that has the focus, as a short text; and whether it is drawn otherwise than without the focus.
FOCUSED = """() => {
    const now = document.activeElement;
    if (!now || now === document.body) return null;
    const looks = () => { const s = getComputedStyle(now);
        return [s.outline, s.boxShadow, s.borderColor, s.backgroundColor, s.strokeWidth, s.stroke].join(); };
    const name = now.id ? "#" + now.id : now.dataset.action ? now.dataset.action
        : now.dataset.step !== undefined ? "step " + now.dataset.step : now.tagName + " " + now.textContent.trim();
    const box = now.getBoundingClientRect(), focused = looks();
    now.blur();
    const seen = looks() !== focused;
    now.focus();
    return {name, seen, width: box.width, height: box.height};
}"""
# Of each text that is seen: its contrast (WCAG 2.2) with what lies under its middle, layer by layer.
CONTRASTS = """() => {
    document.styleSheets[0].insertRule("* { pointer-events: auto !important; transition: none !important }");
    const number = text => { const part = text.match(/[\\d.]+%?/g) || [];
        const [r, g, b, a = 1] = part.map(x => x.endsWith("%") ? parseFloat(x) / 100 : parseFloat(x));
        return text === "none" || text === "transparent" ? [0, 0, 0, 0] : [r, g, b, a]; };
    const over = (top, under) => top.slice(0, 3).map((x, i) => x * top[3] + under[i] * (1 - top[3])).concat(1);
    const light = rgb => { const [r, g, b] = rgb.slice(0, 3).map(x => { x /= 255;
        return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const svg = element => element instanceof SVGElement && element.tagName !== "svg";
    const shown = new Set(["rect", "circle", "ellipse", "polygon"]);
    const paint = element => { const style = getComputedStyle(element);
        if (!svg(element)) return number(style.backgroundColor);
        if (!shown.has(element.tagName)) return [0, 0, 0, 0];
        const fill = number(style.fill);
        return [fill[0], fill[1], fill[2], fill[3] * style.fillOpacity * style.opacity]; };
    const found = [], seen = new Set();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const owner = node.parentElement, style = getComputedStyle(owner);
        if (!node.data.trim() || !owner.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
        if (owner.closest("script, style, title, desc, option, :disabled, [aria-disabled=true]")) continue;
        owner.scrollIntoView({block: "center", inline: "center"});
        const range = document.createRange();
        range.selectNodeContents(node);
        const box = range.getBoundingClientRect();
        if (box.width < 2 || box.height < 2) continue;  // only for screen readers
        const x = box.left + box.width / 2, y = box.top + box.height / 2;
        const under = document.elementsFromPoint(x, y);
        if (!under.some(e => e === owner || e.contains(owner))) continue;  // hidden under another or cut off
        let ground = getComputedStyle(document.documentElement).colorScheme.includes("dark") ? [0, 0, 0, 1]
            : [255, 255, 255, 1];
        for (const element of under.reverse()) if (element.tagName !== "text") ground = over(paint(element), ground);
        const ink = number(svg(owner) ? style.fill : style.color);
        for (let e = owner; e; e = e.parentElement) ink[3] *= getComputedStyle(e).opacity;
        const [a, b] = [light(over(ink, ground)), light(ground)].sort((p, q) => q - p);
        const ratio = (a + 0.05) / (b + 0.05), text = node.data.trim().slice(0, 40);
        const where = `${owner.tagName}.${owner.getAttribute("class")}`;
        const key = text + ratio.toFixed(2);
        if (!seen.has(key)) found.push([ratio, text, style.fontSize, where]);
        seen.add(key);
    }
    return found;
}"""
# Elements that reach beyond the window to the right and are not in a box that scrolls or cuts.
TOO_WIDE = """() => [...document.body.querySelectorAll("*")].filter(element => {
    if (element.getBoundingClientRect().right <= innerWidth + 1 || !element.checkVisibility()) return false;
    for (let e = element.parentElement; e && e !== document.body; e = e.parentElement)
        if (getComputedStyle(e).overflowX !== "visible" && e.getBoundingClientRect().right <= innerWidth + 1)
            return false;
    return true;
}).map(e => e.tagName.toLowerCase() + (e.id ? "#" + e.id : "") + " " + e.textContent.trim().slice(0, 30))"""


def program() -> str | None:
    """Where Chromium is: CHROMIUM, or the first of its usual names that is on the path."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def missing() -> str:
    """Why pages cannot be opened here, or an empty text."""
    lacking = [] if program() else ["Chromium"]
    lacking += [] if importlib.util.find_spec("playwright") else ["Playwright"]
    return f"{' and '.join(lacking)} not installed, so the page was not opened: {INSTALL}" if lacking else ""


class Visit:
    """A page that is open in a window of its own."""

    def __init__(self, page: Any, address: str):
        self.page, self.address = page, address
        self._heard: list[str] = []
        page.on("console", lambda message: message.type in ("error", "warning") and self._heard.append(
            f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: self._heard.append(f"raised: {error}"))
        page.on("request", self._fetched)
        page.on("dialog", lambda dialog: (self._heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def _fetched(self, request: Any) -> None:
        # A document that an <iframe srcdoc> holds comes from nowhere.
        if request.url.partition("#")[0] not in (self.address, "about:srcdoc"):
            self._heard.append(f"fetched: {request.url}")

    @property
    def problems(self) -> list[str]:
        """All that the page did so far and may not do."""
        violations = [text for frame in self.page.frames for text in frame.evaluate("window.violations")]
        return self._heard + [f"against its policy: {text}" for text in violations]

    def close(self) -> None:
        self.page.context.close()

    def state(self) -> dict[str, Any]:
        """Of <body>: view, direction, and step as a number."""
        data = self.page.evaluate("({...document.body.dataset})")
        return {"view": data["view"], "direction": data["direction"], "step": int(data["step"])}

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def go(self, step: int) -> None:
        """Straight to a step of the current view, counted from 0."""
        self.page.evaluate("step => window.stepper.go(step)", step)

    def act(self, action: str) -> None:
        """Click the button of an action, once it can be."""
        self.page.click(f'button[data-action="{action}"]', timeout=5000)

    def texts(self, selector: str) -> list[str]:
        """Of each element that is seen: its text as it is seen."""
        return self.page.evaluate("""selector => [...document.querySelectorAll(selector)]
            .filter(e => e.checkVisibility()).map(e => e.innerText ?? e.textContent)""", selector)

    def text(self, selector: str) -> str:
        """Of the one element that is seen; of several or none an AssertionError."""
        found = self.texts(selector)
        assert len(found) == 1, f"{selector}: {len(found)} elements are seen"
        return found[0]

    def floats(self, selector: str, name: str) -> list[float]:
        """The data-NAME of each element, in the order of the document, as numbers to the last bit."""
        values = self.page.evaluate("""([selector, name]) => [...document.querySelectorAll(selector)]
            .map(e => e.getAttribute("data-" + name))""", [selector, name])
        return [float(value) for value in values]

    def tab_order(self, most: int = 400) -> list[dict[str, Any]]:
        """What Tab reaches from the top of the page, until it leaves it or comes round."""
        self.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        order: list[dict[str, Any]] = []
        for _ in range(most):
            self.press("Tab")
            found = self.page.evaluate(FOCUSED)
            if found is None or (order and found["name"] == order[0]["name"]):
                return order
            order.append(found)
        raise AssertionError(f"Tab came to no end: {[one['name'] for one in order[-5:]]}")

    def reaction(self, key: str = "n") -> tuple[float, float]:
        """Milliseconds from a key to the end of layout, and to the end of the next frame."""
        laid, painted = self.page.evaluate(REACTION, key)
        return laid, painted

    def contrasts(self) -> list[tuple[float, str, str, str]]:
        """Of each text that is seen: contrast, the text, its size, its element. It scrolls the page."""
        return [tuple(row) for row in self.page.evaluate(CONTRASTS)]

    def too_wide(self) -> list[str]:
        """What makes the page scroll sideways: empty where nothing does."""
        wide = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        return self.page.evaluate(TOO_WIDE) or ([f"{wide[0]} > {wide[1]}"] if wide[0] > wide[1] else [])


class Browser:
    """Chromium, until the end of the `with` block. Each page has a context of its own: no storage is shared."""

    def __enter__(self) -> Browser:
        from playwright.sync_api import sync_playwright

        self._driver = sync_playwright().start()
        try:
            # Without its sandbox, which root and most containers cannot have. What it opens is our own.
            self._chromium = self._driver.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        except BaseException:
            self._driver.stop()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self._chromium.close()
        self._driver.stop()

    @property
    def version(self) -> str:
        return f"Chromium {self._chromium.version}"

    def open(self, path: Path, *, hash: str = "", width: int = 1280, height: int = 800, dark: bool = False,
             **options: Any) -> Visit:
        """Open a file in a window of this size. options: of Playwright's new_context, as reduced_motion="reduce"."""
        context = self._chromium.new_context(viewport={"width": width, "height": height},
                                             color_scheme="dark" if dark else "light", **options)
        context.set_offline(True)
        context.add_init_script(WATCH)
        address = path.resolve().as_uri()
        visit = Visit(context.new_page(), address)
        visit.page.goto(address + hash)
        return visit
