# SPDX-License-Identifier: BSD-3-Clause
"""A page that scrolls through slices, with what was drawn and found in them: one file, nothing fetched."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from fastseg.data.volumes import Volume
from fastseg.report.pictures import grey_png, outline, png_uri

# Of a page that a browser opens at once: slices, and pixels to a side.
MOST_SLICES, MOST_SIDE = 40, 480
_STRIP_VOXELS = 1 << 24

_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:1.5rem;background:#fff;color:#222}"
    ".stack{position:relative;display:inline-block;line-height:0;background:#000}"
    ".stack img{image-rendering:pixelated;width:100%}.stack .over{position:absolute;left:0;top:0}"
    "input[type=range]{width:480px;max-width:90vw}label{margin-right:1rem}h2{font-size:1.1rem}"
)

_SCRIPT = """
for (const part of document.querySelectorAll("section")) {
  const pictures = JSON.parse(part.querySelector("script").textContent);
  const slider = part.querySelector("input[type=range]"), place = part.querySelector("output");
  const show = () => {
    const now = pictures[slider.value];
    place.textContent = now.title;
    for (const [name, address] of Object.entries(now.layers)) {
      const image = part.querySelector(`img[data-layer="${name}"]`);
      image.src = address;
    }
  };
  slider.addEventListener("input", show);
  part.querySelector(".stack").addEventListener("wheel", (event) => {
    event.preventDefault();
    slider.value = Number(slider.value) + Math.sign(event.deltaY);
    show();
  }, {passive: false});
  for (const box of part.querySelectorAll("input[type=checkbox]"))
    box.addEventListener("change", () => {
      part.querySelector(`img[data-layer="${box.value}"]`).hidden = !box.checked;
    });
  show();
}
"""


@dataclass(frozen=True)
class Scene:
    """An image and, by name, volumes of ids of its shape; several channels of these are the ids 1, 2, ..."""

    title: str
    image: Volume
    ids: Mapping[str, Volume] = field(default_factory=dict)


def render_viewer(scenes: Sequence[Scene], name: str) -> str:
    """The HTML: at most 40 slices of each scene, evenly spaced along z, reduced to 480 pixels a side."""
    body = "\n".join(_section(scene) for scene in scenes)
    head = f'<meta charset="utf-8"><title>{escape(name)}: fastseg view</title><style>{_STYLE}</style>'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n<h1>{escape(name)}</h1>\n{body}\n'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _section(scene: Scene) -> str:
    pictures = list(_pictures(scene))
    depth, height, width = scene.image.shape
    y, x = (scene.image.voxel_size or (1.0, 1.0, 1.0))[1:]
    boxes = "".join(
        f'<label><input type="checkbox" value="{i}" checked> {escape(name)}</label>'
        for i, name in enumerate(scene.ids, 1)
    )
    over = "".join(
        f'<img class="over" data-layer="{i}" alt="" style="height:100%">'
        for i in range(1, len(scene.ids) + 1)
    )
    across = max(min(MOST_SIDE, MOST_SIDE * width * x / (height * y)), 240)
    shape = f"aspect-ratio:{width * x:g}/{height * y:g};height:100%"
    left = f", {len(pictures)} of {depth} slices" if len(pictures) < depth else ""
    alone = " hidden" * (len(pictures) == 1)
    # A "<" within a script could end it.
    data = json.dumps(pictures).replace("<", "\\u003c")
    return (
        f"<section><h2>{escape(scene.title)}{left}</h2>"
        f'<div class="stack" style="width:{across:.0f}px"><img data-layer="0" alt="" style="{shape}">{over}</div>'
        f'<p{alone}><input type="range" min="0" max="{len(pictures) - 1}" value="{len(pictures) // 2}"> '
        f'<output></output></p><p>{boxes}</p><script type="application/json">{data}</script></section>'
    )


def _pictures(scene: Scene) -> Iterator[dict[str, object]]:
    depth = scene.image.shape[0]
    for place in range(min(depth, MOST_SLICES)):
        z = (2 * place + 1) * depth // (2 * min(depth, MOST_SLICES))
        layers = {"0": grey_png(reduced_slice(scene.image, z, mean=True)[:3])}
        for number, volume in enumerate(scene.ids.values(), 1):
            layers[str(number)] = png_uri(coloured(ids_of(reduced_slice(volume, z, mean=False))))
        yield {"title": f"z = {z + scene.image.origin[0]}", "layers": layers}


def reduced_slice(volume: Volume, z: int, *, mean: bool) -> np.ndarray:
    """Slice ``z`` (C, h, w) with every n-th voxel, or the mean of n x n, so that no side is longer than a page shows.
    It is read in strips: memory does not depend on how large it is."""
    _, height, width = volume.shape
    step = -(-max(height, width) // MOST_SIDE)
    rows = step * max(1, _STRIP_VOXELS // (step * width))
    strips = []
    for first in range(0, height, rows):
        strip = volume[z : z + 1, first : first + rows][:, 0]
        if mean and step > 1 and min(strip.shape[1:]) >= step:
            c, h, w = strip.shape[0], strip.shape[1] // step, strip.shape[2] // step
            whole = strip[:, : h * step, : w * step].reshape(c, h, step, w, step)
            strips.append(whole.mean((2, 4), dtype=np.float32))
        else:
            most = [n // step if mean and n >= step else -(-n // step) for n in strip.shape[1:]]
            strips.append(strip[:, ::step, ::step][:, : most[0], : most[1]])
    return np.concatenate(strips, 1)


def ids_of(channels: np.ndarray) -> np.ndarray:
    """(C, h, w) as one image of ids: of several channels the first that is not 0, counted from 1."""
    if len(channels) == 1:
        return channels[0]
    return np.where((channels != 0).any(0), (channels != 0).argmax(0) + 1, 0)


def coloured(ids: np.ndarray) -> np.ndarray:
    """RGBA (h, w, 4): each id in a colour of its own, faint within and strong at its outline."""
    pixels = np.zeros((*ids.shape, 4), np.uint8)
    for value in np.unique(ids[ids != 0]).tolist():
        inside = ids == value
        colour = [
            round(255 * part) for part in colorsys.hsv_to_rgb((0.08 + (value - 1) * 0.618034) % 1, 0.85, 1.0)
        ]
        pixels[inside] = (*colour, 70)
        pixels[outline(inside)] = (*colour, 255)
    return pixels
