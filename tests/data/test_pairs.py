# SPDX-License-Identifier: BSD-3-Clause
"""Images and labels that belong together by name, and those that nobody can pair."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastseg.data.pairs import pair_by_name, pairs_of_csv
from fastseg.errors import InputError

PAIRS = {
    "one stem": (["im/b.png", "im/a.tif"], ["m/a.png", "m/b.png"], ["m/b.png", "m/a.png"]),
    "a suffix": (["a.png", "b.png"], ["b_mask.png", "a_mask.png"], ["a_mask.png", "b_mask.png"]),
    "cellpose": (["a_img.tif", "b_img.tif"], ["b_img_cp_masks.tif", "a_img_cp_masks.tif"], [1, 0]),
    "a prefix": (["raw_x.tif", "raw_y.tif"], ["labels-y.tif", "labels-x.tif"], [1, 0]),
    "nnU-Net": (["c_01_0000.nii.gz", "c_02_0000.nii.gz"], ["c_02.nii.gz", "c_01.nii.gz"], [1, 0]),
    "numbers": (["img2.png", "img10.png"], ["seg-010.png", "seg-002.png"], [1, 0]),
    "the last number": (["2024_z1.png", "2024_z2.png"], ["mask_z2.png", "mask_z1.png"], [1, 0]),
    "letter case": (["A.PNG", "B.PNG"], ["b.png", "a.png"], [1, 0]),
    "signs of patterns": (["[1] a*.png", "b?.png"], ["b?_seg.png", "[1] a*_seg.png"], [1, 0]),
    "dots in names": (["a.1.ome.tif", "a.2.ome.tif"], ["a.2.png", "a.1.png"], [1, 0]),
    "one of each": (["tissue.png"], ["drawn by hand.png"], [0]),
}


@pytest.mark.parametrize("case", PAIRS)
def test_names_that_belong_together(case: str) -> None:
    images, others, expected = PAIRS[case]
    assert pair_by_name(images, others) == [others[e] if isinstance(e, int) else e for e in expected]


@pytest.mark.parametrize(
    ("images", "others", "message"),
    [
        (
            ["a.png", "b.png"],
            ["a_mask.png", "c_mask.png"],
            "b.png: no labels of .* c_mask.png: no image .* paired are a.png with a_mask.png",
        ),
        (["a.png", "b.png"], ["a.png"], "b.png: no labels of that name; paired are a.png with a.png; move"),
        (["a.png"], ["a.png", "b.png"], "b.png: no image of that name"),
        (["x.png", "y.png"], ["left.png", "right.png"], "left.png have no name in common .* CSV"),
        (["a1_2.png", "a3_2.png"], ["b_2.png", "c_2.png"], "no name in common"),
    ],
)
def test_what_is_left_over_is_named(images: list[str], others: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pair_by_name(images, others)


def test_pairs_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text('\ufeffraw,labels\nx.png,right.png\n"y, 2.png",left.png\n', "utf-8")
    images = [f"{tmp_path}/y, 2.png", f"{tmp_path}/x.png"]
    path = str(tmp_path / "pairs.csv")
    assert pairs_of_csv(path, images) == [f"{tmp_path}/left.png", f"{tmp_path}/right.png"]
    with pytest.raises(InputError, match=r"has no line for .*z.png"):
        pairs_of_csv(path, [f"{tmp_path}/z.png"])
    with pytest.raises(InputError, match=r"must have a first line that names the columns raw and mask"):
        pairs_of_csv(path, images, "mask")
