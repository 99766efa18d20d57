"""Numbers with their nouns."""


def format_count(count: int, noun: str) -> str:
    """ "1 case", "3 cases"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
