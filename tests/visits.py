"""Fixtures of the browser tests of the stepper: `pytest_plugins = "visits"` in a test file."""

import pytest
from browser import Browser, missing
from stepper_pages import Pages


@pytest.fixture(scope="module")
def browser():
    if why := missing():
        pytest.skip(why)
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    return Pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture
def visit(browser, pages):
    """visit("resnet8", width=320): a page in a window of its own, which did nothing wrong when the test is over."""
    visits = []

    def opened(name="resnet8", **options):
        visits.append(browser.open(pages[name][1], **options))
        return visits[-1]

    yield opened
    problems = [problem for one in visits for problem in one.problems]
    for one in visits:
        one.close()
    assert problems == []
