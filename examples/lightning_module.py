# SPDX-License-Identifier: BSD-3-Clause
"""masked_weighted_bce in Lightning, with a pseudo-weight that is ramped up.

MaskedWeightedBCE is the criterion of a LightningModule. With `across_ranks=True` it would be the loss of the global
batch under Lightning's DDP. Prints the losses of the labelled and pseudo-labelled voxels after training. Needs
`pip install lightning`.
"""

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import fastseg
from fastseg.nets import UNet


class Segmentation(lightning.LightningModule):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.network = UNet(2, width=4, pooling=[2, 2])
        self.criterion = fastseg.nn.MaskedWeightedBCE(pseudo_weight=0.0, normalize="terms")
        self.steps = steps

    def training_step(self, batch, _):
        image, target, mask = batch
        self.criterion.pseudo_weight = 0.5 * min(1.0, 2 * self.global_step / self.steps)
        loss = self.criterion(self.network(image), target, mask)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


def disks(images: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy disks; the left half is labelled, the right half has pseudo-labels, of which every tenth is wrong."""
    draw = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    centre = 8 + 16 * torch.rand(images, 2, 1, 1, generator=draw)
    truth = (y - centre[:, :1]) ** 2 + (x - centre[:, 1:]) ** 2 < 49
    image = truth.float() + 0.5 * torch.randn(truth.shape, generator=draw)
    mask = torch.where(x < 16, 1, 2).to(torch.uint8).expand_as(truth)
    wrong = (torch.rand(truth.shape, generator=draw) < 0.1) & (mask == 2)
    return image, truth ^ wrong, mask


def main(steps: int = 40) -> dict[str, float]:
    lightning.seed_everything(0, verbose=False)
    image, target, mask = disks(4 * steps)
    module = Segmentation(steps)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(image, target, mask), batch_size=4))
    with torch.no_grad():
        logits = module.network.eval()(image[:16])
        terms = fastseg.masked_weighted_bce_terms(logits, target[:16], mask[:16])
    return {"labelled": terms.labelled.item(), "pseudo": terms.pseudo.item()}


if __name__ == "__main__":
    print(main())
