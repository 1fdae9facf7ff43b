"""A LightningModule and a Trainer."""

import sys
import warnings

import torch
from torch import nn

warnings.simplefilter("ignore")
import lightning.pytorch as pl


class Regression(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        return optimizer


pl.seed_everything(3, verbose=False)
x = torch.randn(16, 3)
dataset = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
model = Regression()
trainer = pl.Trainer(
    max_epochs=2,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, torch.utils.data.DataLoader(dataset, batch_size=4))
torch.save(model.state_dict(), sys.argv[1])
