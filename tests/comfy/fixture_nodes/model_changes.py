"""placeholder"""

CHANGES = {}


class TestModelChange:
    pass
