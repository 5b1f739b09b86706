"""anomalib's engine on images held in memory; imported only when a peer is trained, because it needs anomalib."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from anomalib.callbacks import ModelCheckpoint
from anomalib.data import ImageBatch, ImageItem
from anomalib.engine import Engine
from anomalib.models.components import MemoryBankMixin
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from msad.models.base import AfterEpoch


def train(
    module: Any,
    images_NHWC: np.ndarray,
    epochs: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    after_epoch: AfterEpoch,
) -> None:
    """Train a model of anomalib by its own recipe: optimiser, losses, schedule and augmentation are what it ships.

    Its recipe's own number of passes, where it has one, comes before `epochs`. `after_epoch` hears of every pass but
    the last, after which some models still have to build their memory bank.
    """
    torch.manual_seed(seed)
    # Only a model that looks at validation images itself gets any: a tenth of the training images, all of them good.
    kind = type(module)
    looks = kind.on_validation_start not in (LightningModule.on_validation_start, MemoryBankMixin.on_validation_start)
    held_out = max(1, len(images_NHWC) // 10) if looks else 0
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            max_epochs=epochs,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            default_root_dir=folder,
            limit_val_batches=1.0 if held_out else 0,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            # It would write every epoch's weights to the disk: the best ones are kept elsewhere.
            callbacks=[ModelCheckpoint(dirpath=folder, every_n_epochs=0, every_n_train_steps=0), _After(after_epoch)],
        )
        engine.fit(model=module, datamodule=_Images(images_NHWC, batch_size, held_out))


class _Images(LightningDataModule):
    """Good images as anomalib's models expect them from a datamodule."""

    name, category = "msad", "good"

    def __init__(self, images_NHWC: np.ndarray, batch_size: int, held_out: int) -> None:
        super().__init__()
        self.train_batch_size = self.eval_batch_size = batch_size
        self._train, self._held_out = images_NHWC[: len(images_NHWC) - held_out], images_NHWC[-held_out or None :]

    def train_dataloader(self) -> DataLoader:
        return self._loader(self._train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self._held_out, shuffle=False)

    def _loader(self, images_NHWC: np.ndarray, shuffle: bool) -> DataLoader:
        collate = ImageBatch.collate
        return DataLoader(_Good(images_NHWC), self.train_batch_size, shuffle=shuffle, collate_fn=collate)


class _Good(Dataset):
    def __init__(self, images_NHWC: np.ndarray) -> None:
        self._images_NHWC = images_NHWC

    def __len__(self) -> int:
        return len(self._images_NHWC)

    def __getitem__(self, index: int) -> ImageItem:
        image_HWC = torch.from_numpy(np.array(self._images_NHWC[index]))
        image_CHW = image_HWC.permute(2, 0, 1).float().div(255)
        return ImageItem(image=image_CHW, gt_label=torch.tensor(0), gt_mask=torch.zeros(image_HWC.shape[:2]))


class _After(Callback):
    """Tells what an epoch came to, and stops where the listener says so."""

    def __init__(self, after_epoch: AfterEpoch) -> None:
        self._after_epoch = after_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch >= (trainer.max_epochs or 0):
            return
        training = {module: module.training for module in pl_module.modules()}
        loss = trainer.callback_metrics.get("train_loss")
        go_on = self._after_epoch(epoch, {} if loss is None else {"train_loss": float(loss)})
        for module, was in training.items():  # the listener has looked at maps
            module.training = was
        trainer.should_stop = trainer.should_stop or not go_on
