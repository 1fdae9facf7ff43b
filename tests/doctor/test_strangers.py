"""Scripts as strangers write them, each with what is, or is not, to be found."""

import pytest

from tests.doctor.diagnosing import codes, diagnosed

FOUND = {
    "adapter-decay": """
        class Low(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.randn(3, 6), requires_grad=False)
                self.lora_down = nn.Linear(6, 2, bias=False)
                self.lora_up = nn.Linear(2, 3, bias=False)
            def forward(self, x):
                return x @ self.weight.t() + self.lora_up(self.lora_down(x))
        model = Low()
        train(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    """,
    "clipped-away": """
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            loss = 1e4 * F.cross_entropy(model(x), y)
            (loss + 1e-3 * sum(p.abs().sum() for p in weights(model))).backward()
            nn.utils.clip_grad_value_(model.parameters(), 0.01)
            optimizer.step()
    """,
    "detached-penalty": """
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda: 1e-3 * torch.tensor(
            sum(p.abs().sum().item() for p in weights(model)), requires_grad=True))
    """,
    "penalty-dominates": """
        model = Net()
        train(model, torch.optim.SGD(split(model, 50.0), lr=1e-3))
    """,
    "dropout-in-eval": """
        class Own(Net):
            def forward(self, x):
                return self.outer(F.dropout(F.relu(self.norm(self.inner(x))), 0.5))
        model = Own()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            model.train(); train(model, optimizer, steps=3); model.eval()
            with torch.no_grad():
                model(x)
    """,
    "dropout-without-effect": """
        class Own(Net):
            def forward(self, x):
                return self.outer(F.relu(self.norm(self.inner(x))))
        model = Own(0.5)
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    """,
    "lr-zero": """
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=4)
        for _ in range(12):
            train(model, optimizer, steps=1)
            schedule.step()
    """,
}

SOUND = {
    "frozen on the way, without a gradient left": """
        model = Net()
        optimizer = torch.optim.AdamW(split(model, 0.05), lr=1e-3)
        train(model, optimizer, steps=4)
        model.inner.requires_grad_(False)
        train(model, optimizer, steps=4)
    """,
    "noise on the gradients of few weights": """
        model = nn.Linear(6, 2)
        y = y % 2
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(8):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            for p in model.parameters():
                p.grad += 0.01 * torch.randn_like(p)
            optimizer.step()
    """,
    "functional dropout that is off in evaluation": """
        class Own(Net):
            def forward(self, x):
                return self.outer(F.dropout(self.inner(x), 0.5, training=self.training))
        model = Own()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            model.train(); train(model, optimizer, steps=3); model.eval()
            with torch.no_grad():
                model(x)
    """,
}


@pytest.mark.parametrize("code", FOUND)
def test_what_strangers_write_wrong_is_found(code):
    assert code in codes(diagnosed(FOUND[code]))


@pytest.mark.parametrize("title", SOUND)
def test_what_strangers_write_well_is_not(title):
    assert codes(diagnosed(SOUND[title]), "warning", "error") == set()
