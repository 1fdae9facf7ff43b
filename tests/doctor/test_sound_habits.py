"""Sound scripts in which something looks like a fault, or like a penalty, and is none."""

import pytest

from tests.doctor.diagnosing import codes, diagnosed

TIED = """
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.norm = nn.Embedding(12, 8), nn.LayerNorm(8)
                self.mix = nn.Linear(8, 8)
                self.head = nn.Linear(8, 12, bias=False)
                self.head.weight = self.embed.weight
            def forward(self, x):
                return self.head(self.norm(F.gelu(self.mix(self.embed(x)))))
"""

SOUND = {
    "a momentum encoder with dropout": """
        import copy
        class Contrast(nn.Module):
            def __init__(self):
                super().__init__()
                self.q = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 4))
                self.k = copy.deepcopy(self.q).requires_grad_(False)
            def forward(self, x):
                q = F.normalize(self.q(x), dim=1)
                with torch.no_grad():
                    for a, b in zip(self.k.parameters(), self.q.parameters()):
                        a.mul_(0.99).add_(b, alpha=0.01)
                    k = F.normalize(self.k(x), dim=1)
                return q @ k.T / 0.2
        model, y = Contrast(), torch.arange(64)
        train(model, torch.optim.SGD(split(model.q, 1e-4), lr=0.1, momentum=0.9))
    """,
    "a teacher with dropout that a trainer calls": """
        import copy
        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.student = Net(0.2)
                self.teacher = copy.deepcopy(self.student).requires_grad_(False)
            def loss(self, x, y):
                with torch.no_grad():
                    target = self.teacher(x).softmax(1)
                out = self.student(x)
                return F.cross_entropy(out, y) + F.mse_loss(out.softmax(1), target)
        model = Both()
        optimizer = torch.optim.AdamW(split(model.student, 0.05))
        for _ in range(6):
            optimizer.zero_grad()
            model.loss(x, y).backward()
            optimizer.step()
    """,
    "targets by the model itself, with dropout": """
        model = Net(0.2)
        optimizer = torch.optim.AdamW(split(model, 0.05))
        for _ in range(6):
            with torch.no_grad():
                target = model(x).softmax(1)
            optimizer.zero_grad()
            out = model(x + 0.1 * torch.randn_like(x))
            loss = F.kl_div(out.log_softmax(1), target, reduction="batchmean")
            loss = loss + F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
    """,
    "SAM by hand": """
        model = Net(0.1)
        optimizer = torch.optim.SGD(split(model, 1e-3), lr=0.1, momentum=0.9)
        for _ in range(8):
            F.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                norm = torch.norm(torch.stack([p.grad.norm() for p in model.parameters()]))
                moved = [0.05 * p.grad / norm for p in model.parameters()]
                for p, e in zip(model.parameters(), moved):
                    p.add_(e)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                for p, e in zip(model.parameters(), moved):
                    p.sub_(e)
            optimizer.step()
            optimizer.zero_grad()
    """,
    "weights of one norm, and decay": """
        model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0, weight_decay=1e-5)
        for _ in range(10):
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1 / p.norm())
            train(model, optimizer, steps=1)
    """,
    "a loss scale by hand": """
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(6):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss = loss + 1e-3 * sum(p.abs().sum() for p in weights(model))
            (1024 * loss).backward()
            for p in model.parameters():
                p.grad.div_(1024)
            optimizer.step()
    """,
    "rows of a largest norm": """
        model = Net()
        optimizer = torch.optim.SGD(split(model, 1e-4), lr=0.5)
        for _ in range(8):
            train(model, optimizer, steps=1)
            with torch.no_grad():
                for p in weights(model):
                    p.copy_(torch.renorm(p, 2, 0, 1.0))
    """,
    "a pruning mask": """
        model = Net()
        masks = [(torch.rand_like(p) > 0.5).float() for p in weights(model)]
        optimizer = torch.optim.AdamW(split(model, 0.01))
        for _ in range(8):
            train(model, optimizer, lambda: 1e-5 * sum(p.abs().sum() for p in weights(model)), 1)
            with torch.no_grad():
                for p, mask in zip(weights(model), masks):
                    p.mul_(mask)
    """,
    "a WGAN, its weights cut off": """
        netG = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6))
        netD = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
        optG, optD = (torch.optim.RMSprop(net.parameters(), lr=5e-5) for net in (netG, netD))
        for _ in range(4):
            for _ in range(3):
                optD.zero_grad()
                (netD(netG(torch.randn(64, 2)).detach()).mean() - netD(x).mean()).backward()
                optD.step()
                for p in netD.parameters():
                    p.data.clamp_(-0.01, 0.01)
            optG.zero_grad()
            (-netD(netG(torch.randn(64, 2))).mean()).backward()
            optG.step()
    """,
    "histograms by NumPy, and a number that grows in the loss": """
        import numpy as np
        model = Net()
        optimizer = torch.optim.AdamW(split(model, 0.1))
        for step in range(8):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y) + (0.5 + 0.01 * step)
            for p in model.parameters():
                np.histogram(p.detach().numpy())
            loss.backward()
            optimizer.step()
    """,
    "norms that are logged, and a constant in the loss": """
        model = Net()
        optimizer = torch.optim.SGD(split(model, 0.1), lr=1e-7)
        for _ in range(8):
            optimizer.zero_grad()
            norm = sum(p.norm().item() for p in model.parameters())
            loss = F.cross_entropy(model(x), y) + 0.5
            loss.backward()
            optimizer.step()
    """,
    "a frozen teacher with functional dropout": """
        class Teacher(Net):
            def forward(self, x):
                return self.outer(F.dropout(F.relu(self.inner(x)), 0.3, self.training))
        teacher, model = Teacher().eval(), Net(0.2)
        optimizer = torch.optim.AdamW(split(model, 0.1))
        for _ in range(3):
            model.train()
            for _ in range(4):
                optimizer.zero_grad()
                target = teacher(x).softmax(1).detach()
                F.kl_div(model(x).log_softmax(1), target, reduction="batchmean").backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                model(x)
    """,
    "Monte Carlo dropout at the end": """
        model = Net(0.3)
        optimizer = torch.optim.AdamW(split(model, 0.1))
        for _ in range(2):
            model.train()
            train(model, optimizer, steps=5)
            model.eval()
            with torch.no_grad():
                model(x)
        model.train()
        with torch.no_grad():
            torch.stack([model(x) for _ in range(5)]).std(0)
    """,
    "an encoder with warm-up, clipping, accumulation and a moving average": """
        import copy
        class Encoder(nn.Module):
            def __init__(self):
                super().__init__()
                layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
                self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 3)
                self.layers = nn.TransformerEncoder(layer, 2)
            def forward(self, x):
                return self.last(self.layers(self.first(x.view(-1, 3, 2))).mean(1))
        model = Encoder()
        average = copy.deepcopy(model).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(split(model, 0.1), betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 5))
        for _ in range(2):
            model.train()
            for step in range(12):
                (F.cross_entropy(model(x), y) / 4).backward()
                if step % 4 == 3:
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                    with torch.no_grad():
                        for a, b in zip(average.parameters(), model.parameters()):
                            a.lerp_(b, 0.01)
            model.eval()
            with torch.inference_mode():
                model(x)
                average(x)
    """,
    "Muon for matrices, AdamW for the rest": """
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        if hasattr(torch.optim, "Muon"):
            matrices = torch.optim.Muon(weights(model), lr=0.01, weight_decay=0.1)
        else:
            matrices = torch.optim.SGD(weights(model), lr=0.01, weight_decay=0.1)
        rest = torch.optim.AdamW([p for p in model.parameters() if p.ndim < 2], weight_decay=0.0)
        for _ in range(5):
            matrices.zero_grad()
            rest.zero_grad()
            F.cross_entropy(model(x), y).backward()
            matrices.step()
            rest.step()
    """,
    "norms on the weights' parametrization": """
        normed = nn.utils.parametrizations.weight_norm
        model = nn.Sequential(normed(nn.Linear(6, 8)), nn.ReLU(), normed(nn.Linear(8, 3)))
        train(model, torch.optim.AdamW(split(model, 0.01)))
    """,
    "elastic weight consolidation": """
        model = Net()
        start = [p.detach().clone() for p in model.parameters()]
        fisher = [torch.rand_like(p) for p in model.parameters()]
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda: 0.1 * sum(
            (f * (p - s).pow(2)).sum() for f, p, s in zip(fisher, model.parameters(), start)))
    """,
    "uncertain weights of two losses": """
        model, s = Net(), nn.Parameter(torch.zeros(2))
        optimizer = torch.optim.Adam([*model.parameters(), s])
        for _ in range(6):
            optimizer.zero_grad()
            first, second = F.cross_entropy(model(x), y), model(x).pow(2).mean()
            ((-s[0]).exp() * first + s[0] + (-s[1]).exp() * second + s[1]).backward()
            optimizer.step()
    """,
    "a schedule that comes to its end": """
        model = Net()
        optimizer = torch.optim.AdamW(split(model, 0.1), lr=1e-2)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, 10)
        for _ in range(10):
            train(model, optimizer, steps=1)
            schedule.step()
    """,
    "a learnable temperature and a class token": """
        class Tokens(Net):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.tensor(1.0))
                self.token = nn.Parameter(torch.zeros(1, 6))
                self.act = nn.PReLU()
            def forward(self, x):
                return super().forward(self.act(x) + self.token) * self.scale.exp()
        model = Tokens()
        train(model, torch.optim.AdamW(split(model, 0.1)))
    """,
    "tied weights, and a list of names without decay": f"""{TIED}
        model = Tied()
        x = y = torch.randint(0, 12, (40,))
        named = list(model.named_parameters())
        spared = [p for n, p in named if n.endswith("bias") or "norm" in n]
        others = [p for n, p in named if not (n.endswith("bias") or "norm" in n)]
        train(model, torch.optim.AdamW([
            {{"params": others}}, {{"params": spared, "weight_decay": 0.0}},
        ]), lambda: 1e-4 * sum(p.abs().sum() for p in model.parameters() if p.ndim > 1))
    """,
}


@pytest.mark.parametrize("case", SOUND)
def test_what_only_looks_like_a_fault_is_left_in_peace(case):
    reports = diagnosed(SOUND[case])
    assert reports
    assert codes(reports, "error", "warning") == set()


def test_a_part_that_is_evaluated_by_a_trainer_with_dropout_on_is_found():
    (report,) = diagnosed("""
        class Module(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = Net(0.2)
            def training_step(self):
                return F.cross_entropy(self.net(x), y)
        model = Module()
        optimizer = torch.optim.AdamW(split(model, 0.05))
        for step in range(9):
            optimizer.zero_grad()
            model.training_step().backward()
            optimizer.step()
            if step % 3 == 2:
                with torch.no_grad():
                    model.net(x)
    """)
    assert codes([report], "warning") == {"dropout-in-eval"}
