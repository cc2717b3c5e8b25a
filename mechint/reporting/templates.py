"""What renders the report and the page."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from mechint.reporting import wording

# Functions of `wording` that templates use as filters.
FILTERS = (
    *("text", "code", "number", "measured", "measured_percent", "percent", "counted", "interval"),
    *("seconds", "byte_size", "enumeration", "plural"),
)


def environment(package: str, folder: str = "templates") -> Environment:
    """The templates in a package's folder: whatever no filter has made safe is escaped, a misspelt name is an error."""
    made = Environment(
        loader=PackageLoader(package, folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {name: getattr(wording, name) for name in FILTERS}
    return made
