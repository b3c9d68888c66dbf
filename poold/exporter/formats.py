"""Chooses the exposition format that a scraper gets. Pure. Every Accept header has a format.

prometheus_client can read the header too, and then takes the first format that the library knows.
The library overlooks weights and upper case, and writes the version of the header into the answer.
A version that is no number makes the library raise ValueError. So the exporter passes one of the
two formats by its proper name, and never a header.
"""

import re
from enum import StrEnum

_OPENMETRICS = "application/openmetrics-text"
# The exposition is valid in each of these versions. A header without a version takes any.
_OPENMETRICS_VERSIONS = ("", "1.0.0")
_TEXT_VERSIONS = ("", "0.0.4", "1.0.0")
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


class Format(StrEnum):
    """A format, by the name that prometheus_client knows."""

    TEXT = "text/plain; version=0.0.4"
    OPENMETRICS = f"{_OPENMETRICS}; version=1.0.0"


def negotiated(accept: str) -> Format:
    """Return the format that an Accept header prefers (RFC 9110, 12.5.1).

    OpenMetrics is chosen where the header names OpenMetrics with no less weight than text. Text is
    chosen otherwise, also where the header wants neither, because an error would tell a scraper
    nothing.
    """
    text = openmetrics = 0.0
    for part in accept.split(","):
        kind, version, weight = _media_range(part)
        if kind == _OPENMETRICS and version in _OPENMETRICS_VERSIONS:
            openmetrics = max(openmetrics, weight)
        elif kind in ("*/*", "text/*") or (kind == "text/plain" and version in _TEXT_VERSIONS):
            text = max(text, weight)
    return Format.OPENMETRICS if openmetrics > 0 and openmetrics >= text else Format.TEXT


def _media_range(part: str) -> tuple[str, str, float]:
    """Return type, version ("" for none) and weight of one part of an Accept header.

    A malformed weight is 0.
    """
    kind, *parameters = part.split(";")
    values = {name.strip().lower(): value.strip().strip('"') for name, _, value in (each.partition("=") for each in parameters)}
    weight = values.get("q", "1")
    return kind.strip().lower(), values.get("version", ""), float(weight) if _WEIGHT.fullmatch(weight) else 0.0
