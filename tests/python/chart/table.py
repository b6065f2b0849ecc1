"""The table of the chart's values in deploy/README.md, made of the comments of values.yaml."""

import re

import yaml
from objects import need

START, END = "<!-- values: made by tests/chart --write -->\n", "<!-- end of values -->\n"


def table(text):
    """A row for each value: its path, default and description."""
    values, rows, path, words = yaml.safe_load(text), [], [], None
    for line in text.splitlines():
        key = re.match(r"( *)([A-Za-z]+):", line)
        if line.strip().startswith("# -- "):
            words = line.strip().removeprefix("# -- ")
        elif key and not line.startswith(" " * (2 * len(path) + 4)):
            path = [*path[: len(key[1]) // 2], key[2]]
            value = values
            for name in path:
                value = value[name]
            if words is not None:
                rows.append(f"| `{'.'.join(path)}` | {shown(value)} | {words} |\n")
                words = None
            else:
                need(isinstance(value, dict) and value, f"values.yaml: {'.'.join(path)} is not described")
    described = len(rows)
    need(described > 50, f"values.yaml: only {described} values are described")
    return "| value | default | meaning |\n|---|---|---|\n" + "".join(rows)


def shown(value):
    if value in ("", None) or value == [] or value == {}:
        return ""
    if isinstance(value, str) and "\n" in value:
        return "see `values.yaml`"
    if isinstance(value, list):
        value = ", ".join(value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def readme_with(readme, rows):
    """The page with its table replaced."""
    need(readme.count(START) == 1 and readme.count(END) == 1, "deploy/README.md: has no place for the values")
    before, rest = readme.split(START)
    return before + START + "\n" + rows + "\n" + END + rest.split(END)[1]
