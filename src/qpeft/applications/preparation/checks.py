"""What a user should know of a table before a model learns from it: one sentence for each finding, with the column's name."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from qpeft.applications.columns import Field, number

RARE = 20  # rows of a class, below which a part of the split holds two or three
GIVES_AWAY = 0.995  # balanced accuracy of a column alone
MIN_ROWS = 30
FEW = 5  # rows of a class, below which it is not asked what gives it away

Rows = Sequence[Mapping[str, str]]


def findings(rows: Rows, columns: Sequence[str], label: str) -> list[str]:
    """All findings about rows that have a label."""
    found = [*_few(rows), *_alike(rows, label), *_rare(rows, label), *_contradicting(rows, columns, label)]
    for column in columns:
        found += [*_identifier(rows, columns, column), *_constant(rows, column), *_gives_away(rows, column, label)]
    return found


def lost_texts(rows: Rows, fields: Sequence[Field]) -> list[str]:
    """Which columns have texts that are cut, and how many; one sentence per column.

    Args:
        rows: text of each column, by name.
        fields: the columns.
    """
    found = []
    for f in fields:
        longer = [length for row in rows if f.kind == "text" and 0 < f.max_text < (length := len(row[f.name]))]
        if longer:
            found.append(
                f"column {f.name}: {len(longer):,} of {len(rows):,} texts are cut to {f.max_text:,} characters; the longest has "
                f"{max(longer):,}"
            )
    return found


def _alike(rows: Rows, label: str) -> list[str]:
    """Labels that differ by case, blanks or punctuation."""
    alike: dict[str, list[str]] = defaultdict(list)
    for value in sorted({row[label] for row in rows}):
        alike["".join(letter for letter in value.casefold() if letter.isalnum()) or value].append(value)
    return [
        f"column {label}: the labels {' and '.join(map(repr, values))} differ by case, blanks or punctuation alone, and are "
        "different classes; if they are one, write them alike in the file"
        for values in alike.values()
        if len(values) > 1
    ]


def _few(rows: Rows) -> list[str]:
    return [f"{len(rows)} rows, too few to learn from or to measure anything"] if len(rows) < MIN_ROWS else []


def _contradicting(rows: Rows, columns: Sequence[str], label: str) -> list[str]:
    """Rows that say the same and have another label: no model can be right about all of them."""
    labels: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for row in rows:
        labels[tuple(row[column] for column in columns)][row[label]] += 1
    count = sum(counts.total() for counts in labels.values() if len(counts) > 1)
    return [f"column {label}: {count:,} of {len(rows):,} rows equal a row with another label"] if count else []


def _rare(rows: Rows, label: str) -> list[str]:
    counts = Counter(row[label] for row in rows)
    return [
        f"column {label}: the class {value!r} has {count} {'row' if count == 1 else 'rows'}, too few to be in every split or to "
        "measure anything"
        for value, count in counts.items()
        if count < RARE and len(rows) >= MIN_ROWS
    ]


def _identifier(rows: Rows, columns: Sequence[str], column: str) -> list[str]:
    """Another value in each row: rows that differ in it alone are not known as copies."""
    values = [row[column] for row in rows]
    single = all(value.isdecimal() or (number(value) is None and len(value.split()) == 1) for value in values)
    if len(columns) > 1 and single and len(rows) >= 10 and len(set(values)) == len(values):
        return [f"column {column}: another value in each row; if it is an identifier: --drop {column}"]
    return []


def _constant(rows: Rows, column: str) -> list[str]:
    [value, *others] = {row[column] for row in rows}
    return (
        [] if others else [f"column {column}: {repr(value[:40]) if value else 'empty'} in every row; --drop {column} shortens rows"]
    )


def _gives_away(rows: Rows, column: str, label: str) -> list[str]:
    """The column alone tells the label; classes of few rows are left out, which would hide it."""
    counts = Counter(row[label].casefold() for row in rows)
    rows = [row for row in rows if counts[row[label].casefold()] >= FEW]
    if len(rows) < MIN_ROWS or len({row[label].casefold() for row in rows}) < 2:
        return []
    numbers = [number(row[column]) for row in rows]
    labels = [row[label].casefold() for row in rows]
    groups = Counter(row[column] for row in rows)
    if 2 * len(groups) <= len(rows):
        right = _by_value([row[column] for row in rows], labels)
    elif None not in numbers and len(set(labels)) == 2:
        right = _by_threshold([n for n in numbers if n is not None], labels)
    else:
        right = _by_words([row[column] for row in rows], labels)
    if right < GIVES_AWAY:
        return []
    return [
        f"column {column} gives the label {label} away: alone it is right in {right:.1%} of the rows, balanced over the "
        f"classes. If it is known only after the outcome: --drop {column}"
    ]


def _balanced(right: Mapping[str, int], labels: Sequence[str]) -> float:
    counts = Counter(labels)
    return sum(right.get(value, 0) / count for value, count in counts.items()) / len(counts)


def _by_value(values: Sequence[str], labels: Sequence[str]) -> float:
    """Balanced accuracy of the commonest label of each other row with the same value."""
    cells: dict[str, Counter[str]] = defaultdict(Counter)
    for value, label in zip(values, labels, strict=True):
        cells[value][label] += 1
    right: Counter[str] = Counter()
    for value, label in zip(values, labels, strict=True):
        others = cells[value] - Counter([label])
        right[label] += bool(others) and others.most_common(1)[0][0] == label
    return _balanced(right, labels)


def _by_threshold(numbers: Sequence[float], labels: Sequence[str]) -> float:
    """The best balanced accuracy of two labels by one threshold."""
    one = labels[0]
    ones = labels.count(one)
    others = len(labels) - ones
    below, best = Counter[bool](), 0.0
    pairs = sorted(zip(numbers, (label == one for label in labels), strict=True))
    for (value, is_one), (following, _) in zip(pairs, [*pairs[1:], (float("inf"), False)], strict=True):
        below[is_one] += 1
        if following > value:
            rate = (below[True] / ones + 1 - below[False] / others) / 2
            best = max(best, rate, 1 - rate)
    return best


def _by_words(values: Sequence[str], labels: Sequence[str]) -> float:
    """Balanced accuracy of texts that name one label, and no other."""
    known = {value.casefold() for value in labels}
    right: Counter[str] = Counter()
    for text, label in zip(values, labels, strict=True):
        named = {name for name in known if name in text.casefold()}
        right[label] += named == {label.casefold()}
    return _balanced(right, labels)
