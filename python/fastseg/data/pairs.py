# SPDX-License-Identifier: BSD-3-Clause
"""Which labels belong to which image: by name, never by the mere order of two folders."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Hashable, Sequence

from fastseg.data.images import bare_name, image_paths
from fastseg.data.volumes import is_image_folder
from fastseg.errors import InputError

# Words that programs and people put before or behind a common name.
_WORDS = (
    "annotations?|cp_masks|ground_truth|gt|images?|img|im|inst|instances?|labels?|manual|masks?|original|raw|scan|seg|segmentation|"
    "target|truth"
)
# What names the image itself; any other word behind such a one's common name names labels.
_OF_IMAGES = ("", "image", "img", "im", "original", "raw", "scan")
_BEHIND = re.compile(rf"[\s_.-]+({_WORDS})$")
_BEFORE = re.compile(rf"^({_WORDS})[\s_.-]+")
_CHANNEL_OF_NNUNET = re.compile(r"_0000$")

_MOST_NAMED = 5


def pair_by_name(images: Sequence[str], others: Sequence[str], what: str = "labels") -> list[str]:
    """The one of ``others`` that belongs to each of ``images``.

    By the first of these rules that pairs any: equal names; names without words such as ``_mask`` and ``img_``, or
    nnU-Net's ``_0000``; all numbers in the names; the last number. Case and suffix do not count. InputError where an
    image or one of the others is left over, or two would be the same.
    """
    if len(images) == len(others) == 1:
        return list(others)
    for rule in (_stem, _without_words, _numbers, _last_number):
        found = _paired(images, others, rule, what)
        if found is not None:
            return found
    raise InputError(
        f"{what} such as {others[0]} have no name in common with images such as {images[0]}: name them alike, or list "
        "them in a CSV file of raw,labels and give it as pairs"
    )


def file_by_file(image: str, other: str, what: str = "labels") -> list[tuple[str, str]]:
    """A file with the other; of two folders (or patterns) each image with the other of its name."""
    folders = [is_image_folder(path) for path in (image, other)]
    if not any(folders):
        return [(image, other)]
    if not all(folders):
        raise InputError(f"{image} and the {what} {other} must be two files or two folders")
    images = image_paths(image)
    return list(zip(images, pair_by_name(images, image_paths(other), what), strict=True))


def side_by_side(paths: Sequence[str]) -> list[tuple[str, str]] | None:
    """Images with their labels out of one folder, as ``a_image.png`` with ``a_mask.png``, or ``a.png`` with
    ``a_mask.png``; None where no two names tell of that. InputError where a name has more than one label, or two files
    do not say which of them holds the labels."""
    groups: dict[str, dict[str, str]] = {}
    for path in paths:
        base = bare_name(path).lower()
        match = re.fullmatch(r"(.+?)[\s_.-]+([a-z]{2,})", base)
        stem, word = (match[1], match[2]) if match else (base, "")
        groups.setdefault(stem, {})[word] = path
    several = {stem: words for stem, words in groups.items() if len(words) > 1}
    pairs = []
    for words in several.values():
        images = [word for word in words if word in _OF_IMAGES]
        known = len(images) == 1 and len(words) == 2
        if known and (images != [""] or all(_BEHIND.fullmatch(f"_{word}") for word in words if word)):
            pairs.append((words[images[0]], next(path for word, path in words.items() if word != images[0])))
            continue
        raise InputError(
            f"{_some([*words.values()])} seem to be an image and its labels side by side, and their names do not say "
            "which is which: move the labels into a folder of their own, or give data.train patterns, as in {raw: "
            "'cells/*_image.png', labels: 'cells/*_mask.png'}"
        )
    return pairs or None


def pairs_of_csv(path: str, images: Sequence[str], what: str = "labels") -> list[str]:
    """Of a CSV file with the columns ``raw`` and ``what`` the file that belongs to each of ``images``. Paths in it are
    relative to its folder."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"pairs {path} cannot be read: {error}") from error
    if not rows or not {"raw", what} <= {*rows[0]}:
        raise InputError(f"pairs {path} must have a first line that names the columns raw and {what}")
    stated = {
        os.path.abspath(os.path.join(folder, row["raw"] or "")): os.path.join(folder, row[what] or "")
        for row in rows
    }
    missing = [image for image in images if os.path.abspath(image) not in stated]
    if missing:
        raise InputError(f"pairs {path} has no line for {_some(missing)}")
    return [stated[os.path.abspath(image)] for image in images]


def _paired(
    images: Sequence[str], others: Sequence[str], rule: Callable[[str], Hashable], what: str
) -> list[str] | None:
    """None where the rule pairs nothing, or does not tell the names apart."""
    keys = [[rule(_base(path)) for path in paths] for paths in (images, others)]
    common = {*keys[0]} & {*keys[1]} - {None}
    if not common or any(len({*some}) < len(some) for some in keys):
        return None
    of_key = dict(zip(keys[1], others, strict=True))
    known = [(path, key) for path, key in zip(images, keys[0], strict=True) if key in common]
    alone = [path for path, key in zip(images, keys[0], strict=True) if key not in common]
    left = [path for path, key in zip(others, keys[1], strict=True) if key not in common]
    if alone or left:
        lines = [f"{_some(alone)}: no {what} of that name"] if alone else []
        lines += [f"{_some(left)}: no image of that name"] if left else []
        found = [f"{os.path.basename(path)} with {os.path.basename(of_key[key])}" for path, key in known]
        lines.append(f"paired are {_some(found)}")
        raise InputError(
            f"images and {what} do not pair up: {'; '.join(lines)}; move away what is left over, or list the pairs "
            "in a CSV file and give it as pairs"
        )
    return [of_key[key] for key in keys[0]]


def _base(path: str) -> str:
    return bare_name(path).lower()


def _stem(base: str) -> Hashable:
    return base


def _without_words(base: str) -> Hashable:
    """The name until no known word is left at either end."""
    base = _CHANNEL_OF_NNUNET.sub("", base)
    while (shorter := _BEHIND.sub("", _BEFORE.sub("", base))) != base:
        base = shorter
    return base


def _numbers(base: str) -> Hashable:
    return tuple(int(digits) for digits in re.findall(r"\d+", base)) or None


def _last_number(base: str) -> Hashable:
    numbers = re.findall(r"\d+", base)
    return int(numbers[-1]) if numbers else None


def _some(paths: Sequence[str]) -> str:
    more = len(paths) - _MOST_NAMED
    return ", ".join(paths[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
