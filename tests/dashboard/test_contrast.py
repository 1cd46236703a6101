"""Colours of both themes have the contrast that WCAG 2.2 asks for (level AA): 4.5 for text, 3 for lines and borders."""

import re
from importlib.resources import files

import pytest

STATIC = files("fromscratch.dashboard") / "static"
APP, PLAYGROUND = ((STATIC / name).read_text("utf-8") for name in ("app.css", "playground.css"))
TEXT, LINES = 4.5, 3.0

Colour = tuple[float, float, float]


def theme(name: str) -> dict[str, Colour]:
    """The colours of a theme by name."""
    begin = {"light": ":root {", "dark": ':root[data-theme="dark"] {', "system": ':root:not([data-theme="light"]) {'}
    block = APP.partition(begin[name])[2].partition("}")[0]
    found = re.findall(r"--([\w-]+): #(\w+);", block)
    wide = {key: "".join(2 * digit for digit in value) if len(value) == 3 else value for key, value in found}
    return {key: tuple(int(value[at : at + 2], 16) / 255 for at in (0, 2, 4)) for key, value in wide.items()}  # type: ignore[misc]


def luminance(colour: Colour) -> float:
    parts = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def contrast(one: Colour, other: Colour) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    first, second, third = (share * a + (1 - share) * b for a, b in zip(one, other, strict=True))
    return first, second, third


def test_the_formula_is_that_of_wcag() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast((0x77 / 255,) * 3, (1, 1, 1)) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_lines_and_borders_can_be_seen(name: str) -> None:
    colours = theme(name)
    pairs = {(text, back): TEXT for text in ("ink", "dim", "accent", "bad", "warn") for back in ("surface", "back")}
    pairs |= {("good", "surface"): TEXT, ("accent", "accent-soft"): TEXT, ("ink", "accent-soft"): TEXT}
    pairs |= {(line, "surface"): LINES for line in ("edge", *(f"c{number}" for number in range(8)))}
    found = {pair: contrast(*(colours[one] for one in pair)) for pair in pairs}
    assert {pair: ratio for pair, ratio in found.items() if ratio < pairs[pair]} == {}
    levels = re.findall(
        r"\.level-\d \{ background: color-mix\(in srgb, var\(--(\w+)\) (\d+)%, transparent\)", PLAYGROUND
    )
    shades = [mixed(colours[colour], colours["surface"], int(share) / 100) for colour, share in levels]
    assert len(shades) == 5 and min(contrast(colours["ink"], shade) for shade in shades) >= TEXT


def test_the_dark_theme_is_the_same_by_choice_and_by_system() -> None:
    assert theme("dark") == theme("system") and theme("dark").keys() == theme("light").keys()
