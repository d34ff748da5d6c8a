"""What cases are called."""

import re


def label(value):
    """Its text, without the addresses in it, which differ between the processes that share the tests out."""
    if isinstance(value, dict):  # each value's str: the repr of a rule is a page long, and has addresses too
        return "-".join(f"{name}={label(each)}" for name, each in value.items())
    return re.sub(r" at 0x\w+", "", str(value))
