"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = (0,)) -> str:
    """A table whose columns of numbers are aligned on the right.

    Args:
        head (Sequence[str]): The titles of the columns.
        rows (Iterable[Sequence[str]]): The cells of each row.
        text (Sequence[int]): The columns that are not numbers. Defaults to the first.
    """
    ruler = ['---' if column in text else '---:' for column in range(len(head))]
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, ruler, *rows))
