"""Hugging Face's Trainer, the real one: λ under accumulation, attach and callback, resuming."""

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import StateError

pytestmark = pytest.mark.frameworks

STRENGTH = 1e-3


class Model(nn.Module):
    """A regression whose forward returns its loss, as the Trainer wants it."""

    accepts_loss_kwargs = True  # as the language models of transformers do

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 3)
        self.dropout = nn.Dropout(0.25)
        self.head = nn.Linear(3, 1)

    def forward(self, x=None, labels=None, num_items_in_batch=None):
        out = self.head(self.dropout(self.body(x)))
        return {"loss": (out - labels).square().mean(), "logits": out}


def data(rows=64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, generator=generator)
    y = torch.randn(rows, 1, generator=generator)
    return [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]


def arguments(folder, **options):
    from transformers import TrainingArguments

    defaults = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_steps": 4,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(output_dir=str(folder), **(defaults | options))


def weights(model):
    return torch.cat([model.body.weight.detach().flatten(), model.head.weight.detach().flatten()])


@pytest.fixture(scope="module")
def trainer_class():
    from transformers import Trainer

    class Silent(Trainer):
        """Its data's gradient is nothing, so that all that moves the weights is the penalty."""

        naive = False

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = 0.0 * model(**inputs)["loss"]
            if self.naive:  # as is often advised
                loss = loss + STRENGTH * sum(
                    p.abs().sum() for p in (model.body.weight, model.head.weight)
                )
            return loss

    return Silent


def reached(trainer_class, folder, plugins, naive=False):
    """Return λ as it reached the weights in one step of SGD, in units of the one asked for."""
    model = Model()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = trainer_class(
        model, arguments(folder, max_steps=1), train_dataset=data(), optimizers=(optimizer, None)
    )
    trainer.naive = naive
    with regplug.attach(model, optimizer, plugins):
        trainer.train()
    moved = (before - weights(model)) * before.sign()
    return (moved / (0.1 * STRENGTH)).tolist()


def test_with_accumulation_of_4_the_strength_arrives_once(trainer_class, tmp_path):
    assert reached(trainer_class, tmp_path, [f"l1({STRENGTH})"]) == pytest.approx([1.0] * 15, 1e-3)


def test_what_compute_loss_adds_arrives_four_times(trainer_class, tmp_path):
    # The reason for all this; should the Trainer change it, the README's sentence must go.
    assert reached(trainer_class, tmp_path, [], naive=True) == pytest.approx([4.0] * 15, 1e-3)


def train(folder, *, callback=None, attach=(), resume=None, **options):
    from transformers import Trainer

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    trainer = Trainer(
        model,
        arguments(folder, **options),
        train_dataset=data(),
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
        callbacks=[callback] if callback else [],
    )
    if attach:
        regplug.attach(model, optimizer, attach)
    trainer.train(resume_from_checkpoint=resume)
    return model


PLUGINS = ["l1(linear(0.2, 0, steps=4), delivery='proximal')", "dropout(linear(0.5, 0.1, steps=4))"]


def test_the_callback_does_what_attach_does(tmp_path):
    from regplug.integrations.transformers import RegplugCallback

    callback = RegplugCallback(PLUGINS)
    by_callback = train(tmp_path, callback=callback)
    by_hand = train(tmp_path, attach=PLUGINS)
    assert torch.equal(weights(by_callback), weights(by_hand))
    assert (weights(by_callback) == 0).any()
    assert callback.session.steps == 4
    assert by_callback.dropout.p == 0.25  # detached after training


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path):
    from regplug.integrations.transformers import RegplugCallback

    options = {"save_strategy": "steps", "save_steps": 2}
    whole = train(tmp_path / "whole", callback=RegplugCallback(PLUGINS), **options)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert torch.load(checkpoint / "regplug.pt", weights_only=True)["steps"] == 2
    elsewhere = tmp_path / "moved"
    checkpoint.rename(elsewhere)
    with pytest.raises(StateError, match="resume_from=folder"):
        train(tmp_path / "new", callback=RegplugCallback(PLUGINS), resume=str(elsewhere))
    callback = RegplugCallback(PLUGINS, resume_from=elsewhere)
    resumed = train(tmp_path / "new", callback=callback, resume=str(elsewhere))
    assert callback.session.steps == 4
    assert torch.equal(weights(resumed), weights(whole))
