"""A chart as SVG of few lines: one element a line, text as text, whole numbers for coordinates, nothing of the moment it is drawn.

So the same figures give the same bytes, and figures that differ change the elements that show them and no other.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

Point = tuple[float, float]

STEPS = (1, 2, 5)
STYLE = (
    "text{font:12px 'DejaVu Sans',Verdana,sans-serif;fill:#1f2937}.title{font-size:15px}.end{text-anchor:end}.middle{text-anchor:middle}"
    ".grid{stroke:#e5e7eb}.axis{stroke:#1f2937}.thin{stroke:#1f2937;stroke-width:1}polyline{fill:none;stroke-linejoin:round}"
)


@dataclass(frozen=True, slots=True)
class Look:
    """How a server is drawn: its colour, the width of its line, and the dashes of it ("" for none)."""

    color: str
    width: float
    dash: str = ""

    def stroke(self) -> str:
        """Return the attributes of its line."""
        dash = f' stroke-dasharray="{self.dash}"' if self.dash else ""
        return f'stroke="{self.color}" stroke-width="{self.width:g}"{dash}'


@dataclass(frozen=True, slots=True)
class Axis:
    """What one side of a panel stands for: its title, the values that are written beside it, and where between 0 and 1 a value lies."""

    title: str
    ticks: tuple[float, ...]
    place: Callable[[float], float]
    label: Callable[[float], str] = "{:,g}".format


def linear(title: str, ticks: Sequence[float]) -> Axis:
    """Return an axis from 0 to its last tick."""
    return Axis(title, tuple(ticks), lambda value: value / ticks[-1], "{:,.0f}".format)


def logarithmic(title: str, values: Iterable[float], *, least: float, most: float) -> Axis:
    """Return an axis in steps of 1, 2, 5, 10, …, from `least` to `most` or as far beyond as the values go."""
    known = [value for value in values if value > 0]
    low, high = min([least, *known]), max([most, *known])
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    steps = [step * 10.0**power for power in powers for step in STEPS]
    first = max(step for step in steps if step <= low * (1 + 1e-9))
    last = min(step for step in steps if step >= high * (1 - 1e-9) and step > first)
    ticks = tuple(step for step in steps if first <= step <= last)
    return Axis(title, ticks, lambda value: math.log(value / first) / math.log(last / first), "{:,.6g}".format)


def rounded(most: float) -> list[float]:
    """Return the ticks of a linear axis that reaches at least so far: five or fewer, in steps of 1, 2 or 5."""
    power = 10.0 ** math.floor(math.log10((most or 1) / 5))
    step = next(step * power for step in (*STEPS, 10) if step * power * 5 >= most)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


class Drawing:
    """A page on which charts are drawn, element by element."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
            f"<style>{STYLE}</style>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        ]
        self.text(width / 2, 24, title, "title middle")

    def add(self, element: str) -> None:
        """Draw an element on top of what is there."""
        self._lines.append(element)

    def text(self, x: float, y: float, words: str, style: str = "") -> None:
        """Write something that begins, ends (`end`) or has its middle (`middle`) at a place."""
        self.add(f'<text x="{x:.0f}" y="{y:.0f}"{_class(style)}>{escape(words, quote=False)}</text>')

    def rule(self, start: Point, end: Point, style: str) -> None:
        """Draw a straight line."""
        self.add(f'<line x1="{start[0]:.0f}" y1="{start[1]:.0f}" x2="{end[0]:.0f}" y2="{end[1]:.0f}"{_class(style)}/>')

    def legend(self, x: float, y: float, entries: Iterable[tuple[str, Look]]) -> None:
        """Write what each line is, one below the other from a place on."""
        for name, look in entries:
            self.add(f'<path d="M{x:.0f} {y - 4:.0f}h28" {look.stroke()}/>')
            self.text(x + 36, y, name)
            y += 20

    def write(self, file: Path) -> None:
        """Write the page to a file."""
        file.write_text("\n".join([*self._lines, "</svg>"]) + "\n")


@dataclass(frozen=True, slots=True)
class Panel:
    """A rectangle of a drawing whose sides are axes."""

    drawing: Drawing
    left: float
    top: float
    width: float
    height: float
    x: Axis
    y: Axis

    def at(self, point: Point) -> Point:
        """Return where on the page a pair of values lies."""
        return self.left + self.width * self.x.place(point[0]), self.top + self.height * (1 - self.y.place(point[1]))

    def frame(self) -> None:
        """Draw the axes, with their values and titles."""
        bottom, right = self.top + self.height, self.left + self.width
        for value in self.x.ticks:
            across = self.left + self.width * self.x.place(value)
            self.drawing.rule((across, self.top), (across, bottom), "grid")
            self.drawing.text(across, bottom + 17, self.x.label(value), "middle")
        for value in self.y.ticks:
            down = bottom - self.height * self.y.place(value)
            self.drawing.rule((self.left, down), (right, down), "grid")
            self.drawing.text(self.left - 8, down + 4, self.y.label(value), "end")
        self.drawing.rule((self.left, bottom), (right, bottom), "axis")
        self.drawing.rule((self.left, self.top), (self.left, bottom), "axis")
        self.drawing.text(self.left + self.width / 2, bottom + 38, self.x.title, "middle")
        middle = self.top + self.height / 2
        self.drawing.add(f'<text class="middle" transform="translate({self.left - 52:.0f} {middle:.0f})rotate(-90)">{self.y.title}</text>')

    def line(self, points: Iterable[Point], look: Look) -> None:
        """Draw a line through pairs of values."""
        places = " ".join(f"{x:.0f},{y:.0f}" for x, y in map(self.at, points))
        self.drawing.add(f'<polyline points="{places}" {look.stroke()}/>')

    def mark(self, point: Point, low: float, high: float, look: Look) -> None:
        """Draw a value as a dot with its spread."""
        x, y = self.at(point)
        self.drawing.add(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="{look.color}"/>')
        self.drawing.rule(self.at((point[0], low)), self.at((point[0], high)), "thin")


def _class(style: str) -> str:
    return f' class="{style}"' if style else ""
