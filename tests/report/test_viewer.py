# SPDX-License-Identifier: BSD-3-Clause
"""fastseg view: the page read back, slice by slice; napari stood in for."""

from __future__ import annotations

import base64
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as imageio
import numpy as np
import pytest

from fastseg.commands import view
from fastseg.data.volumes import Volume, open_volume
from fastseg.report import viewer
from fastseg.report.viewer import Scene, coloured, reduced_slice, render_viewer
from tests.project import fastseg, make_project


def stored(path: Path, array: np.ndarray, axes: str | None = None) -> Volume:
    np.save(path, array)
    return open_volume(str(path), axes)


class Balanced(HTMLParser):
    """Whether each element is closed, and what is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "input", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def pictures_of(page: str) -> list[list[dict]]:
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]


def image_in(address: str) -> np.ndarray:
    return imageio.imread(base64.b64decode(address.removeprefix("data:image/png;base64,")), extension=".png")


def test_the_page_shows_each_slice_with_what_is_in_it(tmp_path: Path) -> None:
    raw = np.arange(6 * 20 * 30).reshape(6, 20, 30).astype("u2")
    ids = np.zeros((6, 20, 30), "u1")
    for z in range(6):
        ids[z, 5:15, 2 + z : 12 + z] = z + 1
    scene = Scene(
        "</script><b>", stored(tmp_path / "a.npy", raw), {"<labels>": stored(tmp_path / "b.npy", ids)}
    )
    page = render_viewer([scene, scene], "run & run")
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert not parser.fetched
    assert "http" not in page
    first, second = pictures_of(page)
    assert first == second
    assert [picture["title"] for picture in first] == [f"z = {z}" for z in range(6)]
    for z, picture in enumerate(first):
        grey, overlay = (image_in(picture["layers"][name]) for name in "01")
        assert grey.shape == (20, 30)
        assert np.array_equal(overlay[:, :, 3] > 0, ids[z] > 0)
        assert overlay[5, 5 + z, 3] == 255  # the outline
        assert overlay[9, 6 + z, 3] == 70  # within


def test_large_volumes_are_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "MOST_SIDE", 16)
    monkeypatch.setattr(viewer, "MOST_SLICES", 5)
    monkeypatch.setattr(viewer, "_STRIP_VOXELS", 200)
    rng = np.random.default_rng(0)
    for height, width in ((40, 64), (61, 47), (3, 50), (50, 3)):
        raw = rng.integers(0, 255, (12, height, width)).astype("u1")
        volume = stored(tmp_path / "a.npy", raw)
        step = -(-max(height, width) // 16)
        found = reduced_slice(volume, 7, mean=True)[0]
        if min(height, width) >= step:
            h, w = height // step, width // step
            expected = raw[7, : h * step, : w * step].reshape(h, step, w, step).mean((1, 3))
            assert np.allclose(found[:h], expected, atol=1e-3)
        ids = reduced_slice(volume, 7, mean=False)[0]
        assert np.array_equal(ids, raw[7, ::step, ::step])
        (pictures,) = pictures_of(render_viewer([Scene("a", volume, {"b": volume})], "run"))
        assert [p["title"] for p in pictures] == [f"z = {z}" for z in (1, 3, 6, 8, 10)]
        assert max(image_in(pictures[0]["layers"]["0"]).shape) <= 17


def test_each_id_has_a_colour_and_classes_are_ids() -> None:
    ids = np.arange(1, 9).repeat(9).reshape(8, 9)
    pixels = coloured(ids)
    assert len(np.unique(pixels[:, 4, :3], axis=0)) == 8
    channels = np.zeros((3, 2, 2), "u1")
    channels[1, 0, 0] = channels[2, 0, 0] = channels[2, 1, 1] = 1
    assert viewer.ids_of(channels).tolist() == [[2, 0], [0, 3]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    assert fastseg("train", make_project(folder), "train.steps=1").returncode == 0
    return folder


def test_the_command(trained: Path) -> None:
    target = trained / "run/view.html"
    assert fastseg("view", trained / "run", "--page").returncode == 0
    (pictures,) = pictures_of(target.read_text())
    assert {*pictures[0]["layers"]} == {"0", "1"}  # nothing is predicted yet
    assert [p["title"] for p in pictures] == [f"z = {z}" for z in range(12, 24)]
    assert fastseg("predict", trained / "run").returncode == 0
    done = fastseg("view", trained / "run", "--page")
    assert done.stdout == f"wrote {target}: open it in a browser\n"
    (pictures,) = pictures_of(target.read_text())
    assert {*pictures[0]["layers"]} == {"0", "1", "2"}
    raw = f"{trained}/phantoms.h5:/raw"
    other = fastseg(
        "view", trained / "run", "--raw", raw, "--segmented", f"{trained}/phantoms.h5:/somata", "--page"
    )
    assert other.returncode == 0, other.stderr
    (pictures,) = pictures_of(target.read_text())
    assert len(pictures) == 24
    for name in ("cell_2.npy", "cell_10.npy"):
        for folder in ("images", "found"):
            (trained / folder).mkdir(exist_ok=True)
            np.save(trained / folder / name, np.ones((1, 3, len(name)), "u1"))
    folders = ("--raw", trained / "images", "--segmented", trained / "found")
    assert fastseg("view", trained / "run", *folders, "--page").returncode == 0
    assert re.findall("<h2>(.*?)</h2>", target.read_text()) == ["cell_2.npy", "cell_10.npy"]
    one = fastseg("view", trained / "run", "--raw", trained / "images", "--segmented", trained / "small.npy")
    assert "must be two files or two folders" in one.stderr
    assert "go together" in fastseg("view", trained / "run", "--raw", raw).stderr
    np.save(trained / "small.npy", np.zeros((2, 3, 4), "u1"))
    refused = fastseg("view", trained / "run", "--raw", raw, "--segmented", trained / "small.npy")
    assert "must have the shape of" in refused.stderr


def test_napari_gets_volumes_that_are_read_as_they_are_shown(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[tuple[str, str, view.Lazy]] = []

    class Viewer:
        def __init__(self, title: str) -> None:
            pass

        def add_image(self, array: view.Lazy, name: str, scale: tuple[float, ...]) -> None:
            added.append(("image", name, array))

        def add_labels(self, array: view.Lazy, name: str, scale: tuple[float, ...]) -> None:
            added.append(("labels", name, array))

    ran: list[bool] = []
    monkeypatch.setitem(sys.modules, "napari", SimpleNamespace(Viewer=Viewer, run=lambda: ran.append(True)))
    monkeypatch.setattr(view, "has_napari", lambda: True)
    raw = f"{trained}/phantoms.h5:/raw"
    assert view.view_run(str(trained / "run"), raw, f"{trained}/phantoms.h5:/somata") == []
    assert ran
    assert [kind for kind, *_ in added] == ["image", "labels"]
    whole, lazy = open_volume(raw)[:][0], added[0][2]
    assert (lazy.shape, lazy.dtype, lazy.size) == (whole.shape, whole.dtype, whole.size)
    for key in (
        (3,),
        3,
        (slice(2, 9, 3), slice(None), 5),
        (..., 7),
        (-1, slice(4, None)),
        np.s_[:, 1, 2],
        (slice(5, 2),),
    ):
        assert np.array_equal(lazy[key], whole[key])
    assert np.array_equal(np.asarray(lazy), whole)
