"""A stream that says it is a terminal, and its text without the layout."""

import io


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def squeezed(text: str) -> str:
    return " ".join(text.split())
