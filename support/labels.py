"""What the numbers in a label map mean.

A label map holds class ids 0 ... C-1, in the order of the data set's class names, and IGNORE where nobody has said what a
pixel shows. Labels are copied or picked, never blended: between class 1 and class 3 there is no class 2.
"""

from __future__ import annotations

IGNORE = 255  # pixels with this label neither train nor count


def is_background(name: str) -> bool:
    return name.casefold() == "background"


def road_class(classes: list[str]) -> int | None:
    """The id of the class that is the road, by its name, or of the one class besides background. None if there is none."""
    if len(classes) == 2 and is_background(classes[0]):
        return 1
    return next((classes.index(name) for name in ("road", "lane") if name in classes), None)


def only_road(classes: list[str]) -> int | None:
    """`road_class` where the only other class is all that is not road; else None."""
    return road_class(classes) if len(classes) == 2 else None
