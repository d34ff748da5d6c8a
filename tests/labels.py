"""What cases are called."""

import re


def label(value):
    """Its text, without the addresses in it, which differ between the processes that share the tests out."""
    return re.sub(r" at 0x\w+", "", str(value))
