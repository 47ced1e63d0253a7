# SPDX-License-Identifier: BSD-3-Clause
"""How each peer loads patches of HDF5 or Zarr volumes, by its own documentation.

`PEERS[name](files, patch, batch, workers)` gives an endless iterator of batches: raw float32 in the first place,
labels in the second, both flipped at random along every axis. ImportError: not installed; ValueError: does not read
this format. Each runs in a process of its own.
"""

import numpy as np

RAW, LABEL = "raw", "label"


def open_array(path, key):
    if path.endswith(".h5"):
        import h5py

        return h5py.File(path, "r")[key]
    import zarr

    return zarr.open_group(path, mode="r")[key]


def endless(make_loader):
    while True:
        yield from make_loader()


class WholeVolume:
    """A reader for TorchIO's images, which may go to a process that is spawned."""

    def __init__(self, key):
        self.key = key

    def __call__(self, path):
        import torch

        volume = np.asarray(open_array(str(path), self.key)[:])[None]
        return torch.from_numpy(volume.astype(np.float32) if self.key == RAW else volume), None


def monai(files, patch, batch, workers, lazy=True):
    """A reading transform of our own that crops while it reads, as MONAI's readers read whole volumes; then its flips.

    Files stay open in each worker.
    """
    from monai.data import DataLoader, Dataset
    from monai.transforms import Compose, MapTransform, RandFlipd, Randomizable, ScaleIntensityRanged

    class ReadCropd(Randomizable, MapTransform):
        def __init__(self):
            super().__init__(keys=(RAW, LABEL))
            self.arrays = {}

        def __call__(self, data):
            path = data["path"]
            if path not in self.arrays:
                self.arrays[path] = {key: open_array(path, key) for key in self.keys}
            arrays = self.arrays[path]
            starts = [self.R.randint(n - p + 1) for n, p in zip(arrays[RAW].shape, patch, strict=True)]
            box = tuple(slice(s, s + p) for s, p in zip(starts, patch, strict=True))
            return {key: np.asarray(arrays[key][box])[None] for key in self.keys}

    flips = [RandFlipd(keys=(RAW, LABEL), prob=0.5, spatial_axis=axis) for axis in range(3)]
    scale = ScaleIntensityRanged(keys=RAW, a_min=0, a_max=255, b_min=0, b_max=1)
    transform = Compose([ReadCropd(), *flips, scale], lazy=lazy)
    dataset = Dataset([{"path": path} for path in files] * 512, transform)
    loader = DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=workers, persistent_workers=True)
    return ((b[RAW], b[LABEL]) for b in endless(lambda: loader))


def torchio(files, patch, batch, workers, samples_per_volume=10):
    """Its queue, with the lengths of its example: 10 patches of each volume that is read, 300 in the queue.

    Volumes are flipped whole and not scaled.
    """
    import torchio as tio

    subjects = tio.SubjectsDataset(
        [
            tio.Subject(
                raw=tio.ScalarImage(path, reader=WholeVolume(RAW), verify_path=False),
                label=tio.LabelMap(path, reader=WholeVolume(LABEL), verify_path=False),
            )
            for path in files
        ]
        * 8,
        transform=tio.RandomFlip(axes=(0, 1, 2)),
    )
    queue = tio.Queue(subjects, 300, samples_per_volume, tio.data.UniformSampler(patch), num_workers=workers)
    loader = tio.SubjectsLoader(queue, batch_size=batch, num_workers=0)
    return ((b["raw"][tio.DATA], b["label"][tio.DATA]) for b in endless(lambda: loader))


def pytorch_3dunet(files, patch, batch, workers):
    """Its lazy HDF5 dataset, over patches in a grid of half a patch, in shuffled order."""
    if not files[0].endswith(".h5"):
        raise ValueError("HDF5 alone")
    from pytorch3dunet.datasets.hdf5 import LazyHDF5Dataset
    from torch.utils.data import ConcatDataset, DataLoader

    tensor = {"name": "ToTensor", "expand_dims": True}
    config = {
        "raw": [{"name": "Standardize"}, {"name": "RandomFlip"}, tensor],
        "label": [{"name": "RandomFlip"}, tensor],
    }
    slices = {"name": "SliceBuilder", "patch_shape": list(patch), "stride_shape": [p // 2 for p in patch]}
    datasets = [
        LazyHDF5Dataset(path, "train", dict(slices), config, raw_internal_path=RAW, label_internal_path=LABEL)
        for path in files
    ]
    loader = DataLoader(ConcatDataset(datasets), batch_size=batch, num_workers=workers, shuffle=True)
    return endless(lambda: loader)


def torch_em(files, patch, batch, workers):
    """Its default loader, with its default normalisation and flips along every axis."""
    import torch_em as peer
    from torch_em.transform import get_augmentations

    flips = ["RandomHorizontalFlip3D", "RandomVerticalFlip3D", "RandomDepthicalFlip3D"]
    loader = peer.default_segmentation_loader(
        files,
        RAW,
        files,
        LABEL,
        batch_size=batch,
        patch_shape=tuple(patch),
        ndim=3,
        is_seg_dataset=True,
        transform=get_augmentations(3, transforms=flips),
        n_samples=512,
        num_workers=workers,
        shuffle=True,
        persistent_workers=True,
    )
    return endless(lambda: loader)


PEERS = {
    "MONAI": lambda *job: monai(*job, lazy=False),
    "MONAI, lazy transforms": monai,
    "TorchIO": torchio,
    "TorchIO, 60 patches of a volume": lambda *job: torchio(*job, samples_per_volume=60),
    "pytorch-3dunet": pytorch_3dunet,
    "torch-em": torch_em,
}
PACKAGES = {"MONAI": "monai", "TorchIO": "torchio", "pytorch-3dunet": "pytorch3dunet", "torch-em": "torch_em"}


def version(name):
    from importlib.metadata import version

    return version(PACKAGES[name.split(",")[0]])
