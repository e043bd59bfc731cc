"""Show which classes are confused: a grid of their two parts, matrices and pairs, for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diptych.evaluation.confusion import Matrix, Part, confusion_matrix, factorise, most_confused, whole

MOST_VALUES = 12


def grid(zero_shot: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Accuracy by both parts of the class names, if each class combines two parts; None otherwise.

    The part with more values runs across, worst first.
    """
    parts = _parts(zero_shot)
    if parts is None:
        return None
    across, down = sorted(parts, key=lambda part: -len(part.names))
    sums: dict[tuple[int, int], list[int]] = {}
    sources: dict[tuple[int, int], set[int]] = {}
    for number, result in enumerate(zero_shot.values()):
        for each, pictures, right in result["per_class"]:
            cell = int(across.of_class[each]), int(down.of_class[each])
            known = sums.setdefault(cell, [0, 0])
            known[0], known[1] = known[0] + pictures, known[1] + right
            sources.setdefault(cell, set()).add(number)
    order = sorted(range(len(across.names)), key=lambda column: _share(sums, column))
    return {
        "across": [across.names[column] for column in order],
        "down": list(down.names),
        "cells": [
            {
                "x": order.index(column),
                "y": row,
                "share": right / pictures,
                "title": f"{across.names[column]} / {down.names[row]}: {right} of {pictures}",
                "is_marked": 0 not in sources[column, row],
            }
            for (column, row), (pictures, right) in sums.items()
        ],
        "marked": " and ".join(list(zero_shot)[1:]),
    }


def confusion(zero_shot: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Confusion matrices of the classes, or of each part of their names, and the pairs confused most often."""
    results = _same_classes(zero_shot)
    if not results:
        return None
    class_names = results[0]["classes"]
    parts = _parts(zero_shot)
    pairs = [(class_names[shown], class_names[said], number) for shown, said, number in most_confused(results)]
    if parts is None:
        matrices = [confusion_matrix(results, whole(class_names))]
        return {"matrices": _drawn(matrices), "pairs": pairs, "errors": None}
    matrices = [confusion_matrix(results, part, MOST_VALUES) for part in parts]
    return {"matrices": _drawn(matrices), "pairs": pairs, "errors": _errors_by_part(results, parts)}


def _errors_by_part(results: Sequence[Mapping[str, Any]], parts: tuple[Part, Part]) -> dict[str, Any]:
    counts = {"first": 0, "second": 0, "both": 0}
    for result in results:
        for shown, said, number in result["confusions"]:
            first, second = (part.of_class[shown] != part.of_class[said] for part in parts)
            counts["both" if first and second else "first" if first else "second"] += number
    first, second = ("/".join(part.names[:3]) + "/…" for part in parts)
    return {**counts, "all": sum(counts.values()), "first_name": first, "second_name": second}


def _parts(zero_shot: Mapping[str, Mapping[str, Any]]) -> tuple[Part, Part] | None:
    results = _same_classes(zero_shot)
    return factorise(results[0]["classes"]) if results else None


def _same_classes(zero_shot: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    results = list(zero_shot.values())
    return [result for result in results if result["classes"] == results[0]["classes"]]


def _share(sums: Mapping[tuple[int, int], Sequence[int]], column: int) -> float:
    pictures, right = (sum(known[which] for cell, known in sums.items() if cell[0] == column) for which in (0, 1))
    return right / pictures if pictures else 2.0


def _drawn(matrices: Sequence[Matrix]) -> list[dict[str, Any]]:
    return [
        {"rows": matrix.rows, "columns": matrix.columns, "cells": list(_cells(matrix))}
        for matrix in matrices
        if matrix.rows
    ]


def _cells(matrix: Matrix) -> Iterator[dict[str, Any]]:
    rows = matrix.counts.sum(axis=1)
    for row, column in zip(*matrix.counts.nonzero(), strict=True):
        count = int(matrix.counts[row, column])
        yield {
            "x": int(column),
            "y": int(row),
            "count": count,
            "share": count / int(rows[row]),
            "is_right": row == column,
            "title": f"{matrix.rows[row]} taken for {matrix.columns[column]}: {count} of {rows[row]}",
        }
