# SPDX-License-Identifier: MIT OR Apache-2.0
"""The bounds of figures, in bounds.toml."""

import os
import re
import tomllib

PATH = os.path.dirname(os.path.abspath(__file__)) + "/bounds.toml"


def load(path=PATH):
    with open(path, "rb") as file:
        found = tomllib.load(file)
    for name, bound in found.items():
        if (
            "figure" not in bound
            or ("at-least" in bound) == ("at-most" in bound)
            or ("last" in bound) != ("reason" in bound)
        ):
            raise SystemExit(f"{path}: {name} needs a figure, one of at-least and at-most, and last only with a reason")
    return found


def text(bound):
    return f"at least {bound['at-least']}" if "at-least" in bound else f"at most {bound['at-most']}"


def is_met(bound, value):
    return value >= bound["at-least"] if "at-least" in bound else value <= bound["at-most"]


def worst(bound, values):
    return min(values) if "at-least" in bound else max(values)


def update(values, path=PATH):
    """Puts the last values of missed bounds into the file, and returns what a person must do: a line for each bound."""
    found, to_do = load(path), []
    with open(path) as file:
        lines = file.read()
    for name, measured in values.items():
        bound = found[name]
        value = worst(bound, measured)
        missed = not is_met(bound, value)
        if missed and "last" in bound:
            lines = re.sub(
                rf"(?ms)(^\[{name}\]\n.*?^last = )[^\n]*",
                rf"\g<1>{value:.{0 if value >= 1000 else 2}f}",
                lines,
                count=1,
            )
        elif missed:
            to_do.append(f"{name}: {value:.2f} misses its bound, {text(bound)}: add last and reason")
        elif "last" in bound:
            to_do.append(f"{name}: {value:.2f} meets its bound, {text(bound)}: remove last and reason")
    with open(path, "w") as file:
        file.write(lines)
    return to_do
