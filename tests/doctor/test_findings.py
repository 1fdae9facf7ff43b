"""One script for each finding, of which the truth is known."""

import pytest

from tests.doctor.diagnosing import codes, diagnosed

FINDINGS = {
    "nothing-acts": "model = Net(); train(model, torch.optim.SGD(model.parameters(), lr=0.1))",
    "nothing-acts: a strength of 0": """
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1),
              lambda: (1 // 1000) * sum(p.abs().sum() for p in weights(model)))
    """,
    "decayed-twice": """
        model = Net()
        train(model, torch.optim.AdamW(split(model, 0.1), lr=1e-3),
              lambda: 1e-3 * sum(p.pow(2).sum() for p in weights(model)))
    """,
    "decayed-twice: by the optimizer and by hand": """
        model = Net()
        optimizer = torch.optim.SGD(split(model, 1e-2), lr=0.1)
        for _ in range(6):
            train(model, optimizer, steps=1)
            with torch.no_grad():
                for p in weights(model):
                    p.mul_(1 - 0.1 * 1e-2)
    """,
    "decays-bias-or-norm": """
        model = Net(); train(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    """,
    "decays-bias-or-norm: coupled": """
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4))
    """,
    "penalizes-bias-or-norm": """
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1),
              lambda: 1e-4 * sum(p.abs().sum() for p in model.parameters()))
    """,
    "decays-embedding": """
        model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(24, 3))
        x = torch.randint(0, 10, (64, 6))
        train(model, torch.optim.AdamW(split(model, 0.1), lr=1e-3))
    """,
    "detached-penalty": """
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1),
              lambda: 1e-3 * sum(p.data.abs().sum() for p in weights(model)))
    """,
    "detached-penalty: detach": """
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1),
              lambda: 1e-3 * sum(p.detach().pow(2).sum() for p in weights(model)))
    """,
    "detached-penalty: item": """
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1),
              lambda: 1e-3 * sum(p.norm().item() for p in weights(model)))
    """,
    "detached-penalty: no_grad": """
        model = Net()
        @torch.no_grad()
        def penalty():
            return 1e-3 * sum(p.abs().sum() for p in weights(model))
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), penalty)
    """,
    "detached-penalty: a tensor made anew": """
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1),
              lambda: torch.tensor(1e-3 * sum(p.abs().sum().item() for p in weights(model))))
    """,
    "norm-not-squared": """
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1),
              lambda: 1e-3 * sum(torch.norm(p) for p in weights(model)))
    """,
    "scaled-by-accumulation": """
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            for _ in range(4):
                loss = F.cross_entropy(model(x), y) / 4
                loss = loss + 1e-3 * sum(p.abs().sum() for p in weights(model))
                loss.backward()
            optimizer.step()
    """,
    "scaled-by-accumulation: nothing is divided": """
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(16):
            loss = F.cross_entropy(model(x), y) + 1e-3 * sum(p.abs().sum() for p in weights(model))
            loss.backward()
            if step % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    """,
    "clipped-away": """
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            loss = 1e4 * F.cross_entropy(model(x), y)
            (loss + 1e-3 * sum(p.abs().sum() for p in weights(model))).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    """,
    "penalty-once": """
        model = Net()
        params = (p for p in weights(model))
        train(model, torch.optim.SGD(model.parameters(), lr=0.1),
              lambda: 1e-3 * sum(p.abs().sum() for p in params))
    """,
    "dropout-in-eval": """
        model = Net(drop=0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            train(model, optimizer, steps=4)
            with torch.no_grad():
                (model(x).argmax(1) == y).float().mean()
    """,
    "dropout-in-eval: long after the first steps": """
        model = Net(drop=0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps=50)
        @torch.no_grad()
        def accuracy():
            return (model(x).argmax(1) == y).float().mean()
        accuracy()
    """,
    "dropout-off-in-training": """
        model = Net(drop=0.5)
        model.eval()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    """,
    "dropout-off-in-training: after the first evaluation": """
        model = Net(drop=0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            train(model, optimizer, steps=4)
            model.eval()
            with torch.no_grad():
                model(x)
    """,
    "dropout-without-effect": """
        import warnings
        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self.lstm = nn.LSTM(2, 4, dropout=0.3, batch_first=True)
                self.out = nn.Linear(4, 3)
            def forward(self, x):
                return self.out(self.lstm(x.view(-1, 3, 2))[0][:, -1])
        model = Recurrent()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    """,
    "penalty-dominates": """
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=1e-4),
              lambda: 10 * sum(p.abs().sum() for p in weights(model)))
    """,
    "penalty-dominates: by decay": """
        model = Net(); train(model, torch.optim.SGD(split(model, 3.0), lr=0.1))
    """,
    "decay-of-zero-gradient": """
        model = Net()
        model.unused = nn.Linear(6, 8)
        optimizer = torch.optim.AdamW(split(model, 0.1), lr=1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y) + 0 * model.unused(x).sum()
            loss.backward()
            optimizer.step()
    """,
    "adapter-decay": """
        class LoRA(nn.Module):
            def __init__(self):
                super().__init__()
                self.base = nn.Linear(6, 3)
                self.lora_A = nn.Linear(6, 2, bias=False)
                self.lora_B = nn.Linear(2, 3, bias=False)
                self.base.requires_grad_(False)
            def forward(self, x):
                return self.base(x) + self.lora_B(self.lora_A(x))
        model = LoRA()
        train(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))
    """,
    "frozen-decay": """
        model = Net()
        optimizer = torch.optim.AdamW(split(model, 0.1), lr=1e-3)
        train(model, optimizer, steps=2)
        model.inner.requires_grad_(False)
        for _ in range(4):
            optimizer.zero_grad(set_to_none=False)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    """,
    "lr-zero": """
        model = Net(); train(model, torch.optim.AdamW(split(model, 0.1), lr=0.0))
    """,
    "shared-counted-twice": """
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Embedding(10, 4)
                self.mix = nn.Linear(4, 4)
                self.head = nn.Linear(4, 10, bias=False)
                self.head.weight = self.embed.weight
            def forward(self, x):
                return self.head(self.mix(self.embed(x)))
        model = Tied()
        x = y = torch.randint(0, 10, (32,))
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda: 1e-3 * sum(
            m.weight.pow(2).sum() for m in model.modules() if hasattr(m, "weight")))
    """,
}


@pytest.mark.parametrize("case", FINDINGS)
def test_what_is_wrong_is_found(case):
    code = case.partition(":")[0]
    found = codes(diagnosed(FINDINGS[case]))
    assert code in found
    allowed = {"nothing-acts", "decays-embedding"}
    assert found <= {code, *allowed}
