"""A small GAN with two optimizers, all at the top of the file."""

import sys

import torch
import torch.nn as nn

torch.manual_seed(999)
nz, ndata, steps = 4, 2, 6


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.Linear(nz, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, ndata)
        )

    def forward(self, input):
        return self.main(input)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.Linear(ndata, 16), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(16, 1), nn.Sigmoid()
        )

    def forward(self, input):
        return self.main(input).view(-1)


netG = Generator()
netD = Discriminator()
criterion = nn.BCELoss()
optimizerD = torch.optim.Adam(netD.parameters(), lr=0.01, betas=(0.5, 0.999))
optimizerG = torch.optim.Adam(netG.parameters(), lr=0.01, betas=(0.5, 0.999))

for step in range(steps):
    # (1) the discriminator: maximize log(D(x)) + log(1 - D(G(z)))
    netD.zero_grad()
    real = torch.randn(8, ndata) * 0.1 + 1
    errD_real = criterion(netD(real), torch.ones(8))
    errD_real.backward()
    fake = netG(torch.randn(8, nz))
    errD_fake = criterion(netD(fake.detach()), torch.zeros(8))
    errD_fake.backward()
    optimizerD.step()
    # (2) the generator: maximize log(D(G(z)))
    netG.zero_grad()
    errG = criterion(netD(fake), torch.ones(8))
    errG.backward()
    optimizerG.step()
    print(
        f"[{step}/{steps}] Loss_D: {(errD_real + errD_fake).item():.4f} Loss_G: {errG.item():.4f}"
    )

if len(sys.argv) > 1:
    torch.save({"G": netG.state_dict(), "D": netD.state_dict()}, sys.argv[1])
