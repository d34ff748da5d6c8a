"""The ids of parametrised tests."""

import re


def label(value):
    """Return the text of a value without addresses in memory, which differ between processes that share the tests.

    Of a dict the names and the texts of the values are taken: the repr of a rule is a page long.
    """
    if isinstance(value, dict):
        return "-".join(f"{name}={label(each)}" for name, each in value.items())
    return re.sub(r" at 0x\w+", "", str(value))


def text_or_none(value):
    """Return a string as it is and nothing for other values, so that pytest numbers the cases."""
    return value if isinstance(value, str) else ""
