"""Faults in the ways that people have of writing them, with λ where one is to be read."""

import pytest

from tests.doctor.diagnosing import codes, diagnosed

SCALED = "scaled-by-accumulation"

# What is to be found, and λ by the names of parameters.
FAULTS = {
    "nothing-acts: a decay that the optimizer ignores": (
        """
        class Mine(torch.optim.Optimizer):
            def __init__(self, params, lr=0.1, weight_decay=0.0):
                super().__init__(params, dict(lr=lr, weight_decay=weight_decay))
            @torch.no_grad()
            def step(self):
                for group in self.param_groups:
                    for p in group["params"]:
                        if p.grad is not None:
                            p.add_(p.grad, alpha=-group["lr"])
        model = Net()
        train(model, Mine(model.parameters(), weight_decay=1e-2))
        """,
        {},
    ),
    "decayed-twice: norms in a stack, and Adam": (
        """
        model = Net()
        train(model, torch.optim.Adam(split(model, 1e-2)),
              lambda: 1e-3 * torch.stack([p.norm() ** 2 for p in weights(model)]).sum())
        """,
        {"inner.weight": ("l2", 1e-3)},
    ),
    "decayed-twice: in the gradient, and by the optimizer": (
        """
        model = Net()
        optimizer = torch.optim.SGD(split(model, 1e-3), lr=0.1, momentum=0.9)
        for _ in range(6):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            for p in weights(model):
                p.grad.data.add_(p.data, alpha=1e-2)
            optimizer.step()
        """,
        {},
    ),
    "decays-bias-or-norm: a norm of one's own": (
        """
        class RMSNorm(nn.Module):
            def __init__(self, width):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(width))
            def forward(self, x):
                return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        model = nn.Sequential(nn.Linear(6, 8, bias=False), RMSNorm(8), nn.Linear(8, 3, bias=False))
        train(model, torch.optim.AdamW(model.parameters(), weight_decay=0.1))
        """,
        {},
    ),
    "decays-bias-or-norm: one optimizer of two": (
        """
        first, second = Net(), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        one, other = torch.optim.AdamW(split(first, 0.1)), torch.optim.AdamW(second.parameters())
        for _ in range(5):
            one.zero_grad()
            other.zero_grad()
            (F.cross_entropy(first(x), y) + F.cross_entropy(second(x), y)).backward()
            one.step()
            other.step()
        """,
        {},
    ),
    "penalizes-bias-or-norm: added up in a tensor": (
        """
        def penalty():
            total = torch.tensor(0.0, requires_grad=True)
            for name, p in model.named_parameters():
                total = total + torch.norm(p, 1)
            return 1e-3 * total
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), penalty)
        """,
        {"inner.weight": ("l1", 1e-3), "inner.bias": ("l1", 1e-3)},
    ),
    "decays-embedding: a bag": (
        """
        class Bag(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.out = nn.EmbeddingBag(20, 8), nn.Linear(8, 3)
            def forward(self, x):
                return self.out(self.embed(x))
        model, x = Bag(), torch.randint(0, 20, (64, 5))
        train(model, torch.optim.AdamW(split(model, 0.1)))
        """,
        {},
    ),
    "detached-penalty: the state dict": (
        """
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda: 1e-3 * sum(
            v.abs().sum() for k, v in model.state_dict().items() if "weight" in k))
        """,
        {},
    ),
    "detached-penalty: a tensor of a list": (
        """
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda: 1e-3 * torch.tensor(
            [p.detach().pow(2).sum() for p in weights(model)]).sum())
        """,
        {},
    ),
    "detached-penalty: NumPy": (
        """
        import numpy as np
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda: 1e-3 * float(
            sum(np.abs(p.detach().numpy()).sum() for p in weights(model))))
        """,
        {},
    ),
    "detached-penalty: NumPy's number": (
        """
        import numpy as np
        model = Net()
        train(model, torch.optim.Adam(model.parameters()), lambda: 1e-3 * sum(
            np.linalg.norm(p.data.cpu().numpy()) ** 2 for p in weights(model)))
        """,
        {},
    ),
    "detached-penalty: from NumPy": (
        """
        import numpy as np
        model = Net()
        def penalty():
            total = sum(np.square(p.detach().numpy()).sum() for p in weights(model))
            return 1e-3 * torch.from_numpy(np.array(total))
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), penalty)
        """,
        {},
    ),
    "norm-not-squared: LBFGS": (
        """
        model = Net()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss = loss + 1e-3 * sum(p.norm(p="fro") for p in weights(model))
            loss.backward()
            return loss
        for _ in range(4):
            optimizer.step(closure)
        """,
        {"inner.weight": ("norm", 1e-3)},
    ),
    "norm-not-squared: the discriminator of a GAN": (
        """
        netG = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6))
        netD = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(), nn.Linear(8, 1))
        optG, optD = torch.optim.Adam(netG.parameters()), torch.optim.Adam(netD.parameters())
        for _ in range(5):
            fake = netG(torch.randn(64, 2))
            optD.zero_grad()
            loss = F.softplus(-netD(x)).mean() + F.softplus(netD(fake.detach())).mean()
            (loss + 1e-3 * sum(torch.linalg.norm(p) for p in weights(netD))).backward()
            optD.step()
            optG.zero_grad()
            F.softplus(-netD(fake)).mean().backward()
            optG.step()
        """,
        {"0.weight": ("norm", 1e-3)},
    ),
    f"{SCALED}: the penalty added in place": (
        """
        model = Net()
        optimizer = torch.optim.AdamW(split(model, 0.0))
        for step in range(40):
            loss = F.cross_entropy(model(x), y) / 8
            loss += 1e-3 * sum(p.pow(2).sum() for p in weights(model))
            loss.backward()
            if (step + 1) % 8 == 0:
                optimizer.step()
                optimizer.zero_grad()
        """,
        {"inner.weight": ("l2", 8e-3)},
    ),
    f"{SCALED}: a loss scale and autocast": (
        """
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        for step in range(16):
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x), y) / 4
            loss = loss + 1e-3 * sum(p.abs().sum() for p in weights(model))
            scaler.scale(loss).backward()
            if step % 4 == 3:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        """,
        {"inner.weight": ("l1", 4e-3)},
    ),
    "penalty-once: a filter": (
        """
        model = Net()
        params = filter(lambda p: p.ndim > 1, model.parameters())
        train(model, torch.optim.SGD(model.parameters(), lr=0.1),
              lambda: 1e-3 * sum(p.pow(2).sum() for p in params))
        """,
        {"inner.weight": ("l2", 1e-3)},
    ),
    "dropout-in-eval: attention": (
        """
        class Attends(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 3)
                self.mix = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)
            def forward(self, x):
                h = self.first(x.view(-1, 3, 2))
                return self.last((h + self.mix(h, h, h, need_weights=False)[0]).mean(1))
        model = Attends()
        optimizer = torch.optim.AdamW(split(model, 0.0))
        for _ in range(2):
            train(model, optimizer, steps=3)
            with torch.inference_mode():
                model(x)
        """,
        {},
    ),
    "dropout-off-in-training: a function that is told not to": (
        """
        class Own(Net):
            def forward(self, x):
                return self.outer(F.dropout(F.relu(self.inner(x)), 0.4, training=False))
        model = Own()
        model.dropout = nn.Identity()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
        """,
        {},
    ),
    "adapter-decay: factors by single letters": (
        """
        class LoRALinear(nn.Module):
            def __init__(self, base, rank=2):
                super().__init__()
                self.base = base.requires_grad_(False)
                self.A = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
                self.B = nn.Parameter(torch.zeros(base.out_features, rank))
            def forward(self, x):
                return self.base(x) + x @ self.A.T @ self.B.T
        model = nn.Sequential(LoRALinear(nn.Linear(6, 8)), nn.ReLU(), LoRALinear(nn.Linear(8, 3)))
        params = [p for p in model.parameters() if p.requires_grad]
        train(model, torch.optim.AdamW(params, weight_decay=0.1))
        """,
        {},
    ),
    "lr-zero: a division without a rest": (
        """
        model = Net()
        optimizer = torch.optim.AdamW(split(model, 0.1), lr=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step // 1000)
        for _ in range(6):
            train(model, optimizer, steps=1)
            schedule.step()
        """,
        {},
    ),
    "shared-counted-twice: with duplicates": (
        """
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.mix = nn.Embedding(12, 6), nn.Linear(6, 6)
                self.head = nn.Linear(6, 12, bias=False)
                self.head.weight = self.embed.weight
            def forward(self, x):
                return self.head(F.relu(self.mix(self.embed(x))))
        model = Tied()
        x = y = torch.randint(0, 12, (40,))
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda: 1e-3 * sum(
            p.pow(2).sum() for n, p in model.named_parameters(remove_duplicate=False)
            if p.ndim > 1))
        """,
        {"embed.weight": ("l2", 2e-3), "mix.weight": ("l2", 1e-3)},
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_found_however_it_is_written(case):
    text, strengths = FAULTS[case]
    reports = diagnosed(text)
    code = case.partition(":")[0]
    assert code in codes(reports)
    assert codes(reports, "error", "warning") <= {code}
    found = {
        name: {p.kind: p.strength for p in group.penalties}
        for report in reports
        for group in report.groups
        for name in group.parameters
        if group.penalties
    }
    for name, (kind, strength) in strengths.items():
        assert found[name] == {kind: pytest.approx(strength, rel=1e-5)}


def test_a_clipped_penalty_is_told_as_it_is_left():
    scope = {}
    (report,) = diagnosed(
        """
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler, left = torch.amp.GradScaler("cpu", init_scale=1024.0), []
        for _ in range(7):
            optimizer.zero_grad()
            loss = 1e3 * F.cross_entropy(model(x), y)
            loss = loss + 1e-2 * sum(p.pow(2).sum() for p in weights(model))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            left.append(1 / (float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)) + 1e-6))
            scaler.step(optimizer)
            scaler.update()
        """,
        scope=scope,
    )
    assert codes([report]) == {"clipped-away"}
    (strength,) = {p.strength for group in report.groups for p in group.penalties}
    assert strength == pytest.approx(1e-2 * sorted(scope["left"])[3], rel=1e-5)
