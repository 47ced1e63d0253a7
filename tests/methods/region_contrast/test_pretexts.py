# SPDX-License-Identifier: BSD-3-Clause
"""The pretext tasks by themselves: whose assignment it is, and what is hidden."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastseg.data.augment import Augmentation
from fastseg.data.buffers import Batch
from fastseg.data.views import draw_views
from fastseg.methods.config import config_type
from fastseg.methods.region_contrast.network import MaskedNetwork, RegionNetwork
from fastseg.methods.region_contrast.pretexts import MaskedPretext, RegionsPretext
from fastseg.train.config import Config
from fastseg.train.ranks import Ranks

PATCH = (1, 16, 16)


def config_of(**section: object) -> Config:
    return config_type()(
        method="region_contrast",
        output="run",
        data={"train": [{"raw": "a.npy"}], "patch": [16, 16]},
        network={"width": 2, "pooling": [2]},
        region_contrast={"regions": 4, "embedding": 3, "shift": 3, "mask_size": 4, **section},
    )


def batch_of(images: int = 3) -> Batch:
    rng = np.random.default_rng(0)
    raw = torch.from_numpy(rng.random((images, 1, 1, 22, 22), np.float32))
    one = torch.ones(images, 1)
    none = torch.zeros(images, 1, 1, 22, 22, dtype=torch.uint8)
    return Batch(raw, none, none, 0 * one, one, np.ones((images, 3)), 0, range(images))


class Parity(RegionNetwork):
    """Region 0 to 3 by where a voxel lies in squares of two, sure of it whatever the image; or by the image's grey."""

    by_grey = False

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.by_grey:
            region = (image * 4).clamp(0, 3).long()[:, 0]
        else:
            y, x = torch.meshgrid(*(torch.arange(n) % 2 for n in image.shape[-2:]), indexing="ij")
            region = (2 * y + x).expand(len(image), 1, *image.shape[-2:])
        logits = torch.nn.functional.one_hot(region, 4).movedim(-1, 1) * 20.0
        return logits[:, :3].clone(), logits


@pytest.mark.parametrize("assignment", ["shared", "own"])
def test_a_place_in_the_grid_of_upsampling_is_a_region_of_its_own_view_alone(assignment: str) -> None:
    config = config_of(assignment=assignment)
    views = draw_views(batch_of(), Augmentation(), PATCH, 0)
    network, pretext = Parity(config, 1), RegionsPretext(config, Ranks())
    image = torch.cat([view.image for view in views])
    halves = [slice(0, 3), slice(3, 6)]

    def sure(by_grey: bool) -> float:
        """The mean largest share of a voxel in a region."""
        network.by_grey = by_grey
        _, logits = network(torch.cat([view.clean for view in views]) if by_grey else image)
        first, second = pretext._regions(views, logits, halves)
        assert torch.equal(first, second) == (assignment == "shared" or by_grey)
        return float(first.softmax(1).amax(1).mean())

    assert sure(by_grey=True) > 0.99  # both views see it
    assert (sure(by_grey=False) > 0.99) == (assignment == "own")


def test_as_many_blocks_are_hidden_everywhere_and_they_alone_count() -> None:
    config = config_of(pretext="masked", mask_share=0.5)
    pretext, network, batch = MaskedPretext(config, Ranks()), MaskedNetwork(config, 1), batch_of()
    views = draw_views(batch, Augmentation(), PATCH, 0)
    hidden = pretext._draw(batch, views[0].image)
    assert hidden.flatten(1).sum(1).tolist() == [8 * 16] * 3
    blocks = hidden.reshape(3, 4, 4, 4, 4)
    assert (blocks.amax((2, 4)) == blocks.amin((2, 4))).all()
    assert len({tuple(row.flatten().tolist()) for row in hidden}) == 3
    found = pretext.outcome(network, views, batch)
    assert found.image is not None
    assert found.restored is not None
    assert torch.equal(found.image[~hidden], views[0].image[~hidden])
    for sample, where in zip(found.image, hidden, strict=True):
        assert len(sample[where].unique()) == 1  # of what is hidden nothing is left
    truth = (found.restored - views[0].image).square()[hidden].mean()
    torch.testing.assert_close(found.loss.detach(), truth)
