"""Scripts in which nothing is wrong: no warning of any of them."""

import pytest

from tests.doctor.diagnosing import codes, diagnosed

SOUND = {
    "plain SGD": "model = Net(); train(model, torch.optim.SGD(model.parameters(), lr=0.1))",
    "Adam with dropout": "model = Net(0.2); train(model, torch.optim.Adam(model.parameters()))",
    "AdamW with groups": "model = Net(); train(model, torch.optim.AdamW(split(model, 0.1)))",
    "SGD with momentum and groups": """
        model = Net()
        train(model, torch.optim.SGD(split(model, 5e-4), lr=0.1, momentum=0.9, nesterov=True))
    """,
    "L1 in the loss": """
        model = Net()
        train(model, torch.optim.Adam(model.parameters()),
              lambda: 1e-4 * sum(p.abs().sum() for p in weights(model)))
    """,
    "L2 in the loss": """
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1),
              lambda: 0.5 * 1e-4 * sum((p**2).sum() for p in weights(model)))
    """,
    "elastic net": """
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda: sum(
            1e-4 * p.abs().sum() + 1e-4 * p.pow(2).sum() for p in weights(model)))
    """,
    "L1 beside decay": """
        model = Net()
        train(model, torch.optim.AdamW(split(model, 0.1)),
              lambda: 1e-4 * sum(p.abs().sum() for p in weights(model)))
    """,
    "L2-SP": """
        model = Net()
        start = [p.detach().clone() for p in weights(model)]
        train(model, torch.optim.AdamW(split(model, 0.0)), lambda: 1e-2 * sum(
            (p - a).pow(2).sum() for p, a in zip(weights(model), start)))
    """,
    "accumulation, the whole loss divided": """
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            for _ in range(4):
                loss = F.cross_entropy(model(x), y)
                loss = loss + 1e-3 * sum(p.abs().sum() for p in weights(model))
                (loss / 4).backward()
            optimizer.step()
    """,
    "accumulation, the penalty once": """
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            for _ in range(4):
                (F.cross_entropy(model(x), y) / 4).backward()
            (1e-3 * sum(p.abs().sum() for p in weights(model))).backward()
            optimizer.step()
    """,
    "a loss scale": """
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
                loss = loss + 1e-3 * sum(p.pow(2).sum() for p in weights(model))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    """,
    "clipping that rarely clips": """
        model = Net()
        optimizer = torch.optim.SGD(split(model, 1e-4), lr=0.1)
        for _ in range(8):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            (loss + 1e-4 * sum(p.abs().sum() for p in weights(model))).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    """,
    "evaluation between epochs": """
        model = Net(0.3)
        optimizer = torch.optim.AdamW(split(model, 0.01))
        for _ in range(4):
            model.train()
            train(model, optimizer, steps=4)
            model.eval()
            with torch.no_grad():
                model(x)
    """,
    "warm-up from a learning rate of 0": """
        model = Net()
        optimizer = torch.optim.AdamW(split(model, 0.1), lr=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 4))
        for _ in range(8):
            train(model, optimizer, steps=1)
            schedule.step()
    """,
    "a one-cycle schedule": """
        model = Net()
        optimizer = torch.optim.SGD(split(model, 1e-4), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
        for _ in range(12):
            train(model, optimizer, steps=1)
            schedule.step()
    """,
    "frozen layers": """
        model = Net()
        model.inner.requires_grad_(False)
        train(model, torch.optim.AdamW(split(model, 0.1)))
    """,
    "LBFGS": """
        model = Net()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)
        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss = loss + 1e-3 * sum(p.pow(2).sum() for p in weights(model))
            loss.backward()
            return loss
        for _ in range(4):
            optimizer.step(closure)
    """,
    "Adam with a closure": """
        model = Net()
        optimizer = torch.optim.Adam(split(model, 0.0))
        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss = loss + 1e-3 * sum(p.pow(2).sum() for p in weights(model))
            loss.backward()
            return loss
        for _ in range(4):
            optimizer.step(closure)
    """,
    "a GAN": """
        netG, netD = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Sequential(
            nn.Linear(6, 8), nn.LeakyReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
        optG, optD = torch.optim.Adam(netG.parameters()), torch.optim.Adam(netD.parameters())
        for _ in range(6):
            optD.zero_grad()
            F.softplus(-netD(x)).mean().backward()
            fake = netG(torch.randn(64, 2))
            F.softplus(netD(fake.detach())).mean().backward()
            optD.step()
            optG.zero_grad()
            F.softplus(-netD(fake)).mean().backward()
            optG.step()
    """,
    "a generator with dropout, whose fakes need no gradient": """
        netG = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 6))
        netD = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(), nn.Linear(8, 1))
        optG, optD = torch.optim.Adam(netG.parameters()), torch.optim.Adam(netD.parameters())
        for _ in range(6):
            optD.zero_grad()
            with torch.no_grad():
                fake = netG(torch.randn(64, 2))
            (F.softplus(-netD(x)).mean() + F.softplus(netD(fake)).mean()).backward()
            optD.step()
            optG.zero_grad()
            F.softplus(-netD(netG(torch.randn(64, 2)))).mean().backward()
            optG.step()
    """,
    "group lasso": """
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1),
              lambda: 1e-4 * sum(p.norm(dim=1).sum() for p in weights(model)))
    """,
    "a penalty of activations": """
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(split(model, 1e-4), lr=0.1)
        for _ in range(6):
            optimizer.zero_grad()
            hidden = model[1](model[0](x))
            (F.cross_entropy(model[2](hidden), y) + 1e-3 * hidden.abs().mean()).backward()
            optimizer.step()
    """,
    "a gradient penalty": """
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(split(model, 1e-4), lr=0.1)
        for _ in range(6):
            optimizer.zero_grad()
            x.requires_grad_(True)
            out = model(x)
            (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            (out.mean() + 0.1 * (g.norm(dim=1) - 1).pow(2).mean()).backward()
            optimizer.step()
    """,
    "a penalty in every fourth step": """
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(12):
            train(model, optimizer, lambda: 1e-3 * sum(p.abs().sum() for p in weights(model))
                  if step % 4 == 0 else 0.0, steps=1)
    """,
    "tied weights, counted once": """
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Embedding(10, 4)
                self.head = nn.Linear(4, 10, bias=False)
                self.head.weight = self.embed.weight
            def forward(self, x):
                return self.head(self.embed(x))
        model = Tied()
        x = y = torch.randint(0, 10, (32,))
        train(model, torch.optim.SGD(model.parameters(), lr=0.1),
              lambda: 1e-3 * sum(p.pow(2).sum() for p in model.parameters()))
    """,
    "norms that are logged": """
        model = Net()
        optimizer = torch.optim.AdamW(split(model, 0.1))
        for _ in range(6):
            train(model, optimizer, steps=1)
            total = sum(p.detach().norm().item() for p in model.parameters())
            grads = sum(p.grad.norm().item() for p in model.parameters())
    """,
    "decay by hand": """
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(8):
            train(model, optimizer, steps=1)
            with torch.no_grad():
                for p in weights(model):
                    p.mul_(1 - 0.1 * 1e-3)
    """,
    "a moving average of the weights": """
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
        model = Net(0.1)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
        optimizer = torch.optim.AdamW(split(model, 0.1))
        for _ in range(6):
            train(model, optimizer, steps=1)
            average.update_parameters(model)
    """,
}


@pytest.mark.parametrize("case", SOUND)
def test_what_is_sound_is_left_in_peace(case):
    reports = diagnosed(SOUND[case])
    assert reports
    assert codes(reports, "error", "warning") == set()
