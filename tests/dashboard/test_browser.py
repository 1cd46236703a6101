"""The pages in a real browser: no error, no request to another machine, at two sizes and in two themes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dashboard.conftest import Watched


@pytest.mark.parametrize("phone", [False, True])
@pytest.mark.parametrize("dark", [False, True])
def test_the_first_page(
    watched: Callable[..., Watched], serve: Callable[[Path], str], runs: Path, phone: bool, dark: bool
) -> None:
    page = watched(serve(runs), phone=phone, dark=dark).open("/")
    assert page.locator("#runs tbody tr").count() == 3
    page.get_by_role("searchbox").fill("dropout")
    assert page.locator("#runs tbody tr:visible").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing is cut off at the side
    page.get_by_label("Light or dark theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == ("light" if dark else "dark")
    page.wait_for_selector("#live[data-state=on]")
