# SPDX-License-Identifier: BSD-3-Clause
"""masked_weighted_bce in a MONAI training loop.

MONAI's transforms, loader, network and inferer; every 4th slice of a phantom is annotated, and the loss looks at those
alone. Prints the Dice of the whole phantom, between the slices too. Needs `pip install monai`.
"""

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet
from monai.transforms import Compose, RandFlipd, RandSpatialCropd, ScaleIntensityd, ToTensord
from monai.utils import set_determinism

import fastseg
from fastseg.data.phantoms import make_phantom

PATCH = (8, 48, 48)


def main(steps: int = 60) -> dict[str, float]:
    set_determinism(0)
    phantom = make_phantom((24, 64, 64), seed=1)
    mask = np.zeros(phantom.raw.shape, np.uint8)
    mask[::4] = 1  # 0 ignored, 1 labelled
    volume = {
        "raw": phantom.raw[None].astype(np.float32),
        "label": (phantom.instances > 0)[None].astype(np.uint8),
        "mask": mask[None],
    }
    keys = ("raw", "label", "mask")
    transform = Compose(
        [
            ScaleIntensityd("raw"),
            RandSpatialCropd(keys, PATCH, random_size=False),
            RandFlipd(keys, 0.5, spatial_axis=2),
            ToTensord(keys, track_meta=False),
        ]
    )
    loader = DataLoader(Dataset([volume] * 2 * steps, transform), batch_size=2)
    network = UNet(3, 1, 1, channels=(8, 16, 32), strides=(2, 2))
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    for batch in loader:
        logits = network(batch["raw"])
        loss = fastseg.masked_weighted_bce(logits, batch["label"], batch["mask"], normalize="weight")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    raw = ScaleIntensityd("raw")(volume)["raw"][None]
    with torch.no_grad():
        found = sliding_window_inference(torch.as_tensor(raw), (16, 64, 64), 1, network.eval())[0] > 0
    truth = torch.as_tensor(volume["label"]) > 0
    return {"loss": loss.item(), "dice": (2 * (found & truth).sum() / (found.sum() + truth.sum())).item()}


if __name__ == "__main__":
    print(main())
