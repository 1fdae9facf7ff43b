"""Plugins that a command line or a configuration names, by the parsers that people use."""

import argparse
import json

import pytest
import torch
import yaml
from torch import nn

import regplug
from regplug.errors import SpecError
from tests.house.pages import page

pytestmark = pytest.mark.frameworks


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(4, 1)

    def forward(self, x=None, labels=None):
        return {"loss": 0.0 * (self.head(x) - labels).square().mean()}


SHOWN = [block.text for block in page("trainers.md").blocks if block.language == "yaml"]
ROWS = [{"x": torch.ones(4), "labels": torch.zeros(1)}] * 4


# --- Hugging Face's parser ---------------------------------------------------------------------


def parsed(*command):
    from transformers import HfArgumentParser, TrainingArguments

    from regplug.integrations.transformers import RegplugArguments

    parser = HfArgumentParser((TrainingArguments, RegplugArguments))
    return parser.parse_args_into_dataclasses(list(command))


def test_a_flag_names_the_plugins_of_a_trainer(tmp_path):
    from transformers import Trainer

    from regplug.integrations.transformers import RegplugCallback

    args, plugins = parsed(
        *("--regplug", "l2(0.5)", "weight_decay(0.0)"),
        *("--output_dir", str(tmp_path), "--max_steps", "1", "--learning_rate", "0.1"),
        *("--use_cpu", "--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "True"),
        *("--remove_unused_columns", "False", "--dataloader_pin_memory", "False"),
    )
    assert plugins.regplug == ["l2(0.5)", "weight_decay(0.0)"]
    model = Model()
    before = model.head.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    callback = RegplugCallback.from_args(plugins)
    trainer = Trainer(
        model, args, train_dataset=ROWS, optimizers=(optimizer, schedule), callbacks=[callback]
    )
    trainer.train()
    # λ·Σw² moves w by lr·2λ·w.
    torch.testing.assert_close(model.head.weight, before * (1 - 0.1 * 2 * 0.5))
    assert callback.session.steps == 1


def test_without_the_flag_there_is_no_plugin(tmp_path):
    from regplug.integrations.transformers import RegplugCallback

    _, plugins = parsed("--output_dir", str(tmp_path))
    assert RegplugCallback.from_args(plugins).plugins == []


def test_other_parsers_serve_as_well():
    from regplug.integrations.transformers import RegplugCallback

    parser = argparse.ArgumentParser()
    parser.add_argument("--regplug")
    parser.add_argument("--resume_from_checkpoint")
    args = parser.parse_args(["--regplug", "l1(1e-5)", "--resume_from_checkpoint", "old"])
    callback = RegplugCallback.from_args(args)
    assert callback.plugins == ["l1(1e-5)"]
    assert callback.resume_from == "old"
    assert RegplugCallback.from_args({"regplug": ("l1(1e-5)", "l2(1e-5)")}).plugins == [
        "l1(1e-5)",
        "l2(1e-5)",
    ]


@pytest.mark.parametrize("args", [argparse.Namespace(), {"regplug": 3}, {"regplug": [1e-5]}])
def test_what_names_no_plugin_is_told(args):
    from regplug.integrations.transformers import RegplugCallback

    with pytest.raises(SpecError, match="regplug"):
        RegplugCallback.from_args(args)


# --- Lightning's -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # Lightning's
def test_lightnings_command_line_makes_the_callback(tmp_path, monkeypatch):
    from lightning.pytorch import LightningModule
    from lightning.pytorch.cli import LightningCLI

    class Module(LightningModule):
        def __init__(self, rate: float = 0.1):
            super().__init__()
            self.rate, self.head = rate, nn.Linear(4, 1)

        def training_step(self, batch, _):
            return 0.0 * self.head(batch).square().mean()

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(2, 4), batch_size=2)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.rate)

    config = {
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(tmp_path),
            "callbacks": yaml.safe_load(SHOWN[0])["trainer"]["callbacks"],
        }
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))  # which YAML is, too
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py", "--config", str(tmp_path / "config.yaml")])
    cli = LightningCLI(Module, run=False, save_config_callback=None, seed_everything_default=0)
    before = cli.model.head.weight.detach().clone()
    cli.trainer.fit(cli.model)
    # Of the two plugins that the page shows, weight decay is w ← (1 − lr·0.1)·w.
    after = (before - 0.1 * 1e-5 * before.sign()) * (1 - 0.1 * 0.1)
    torch.testing.assert_close(cli.model.head.weight, after, atol=1e-6, rtol=1e-6)


# --- Hydra's and OmegaConf's -------------------------------------------------------------------


def test_specs_of_a_configuration_are_plain_strings(tmp_path):
    from hydra import compose, initialize_config_dir

    (tmp_path / "config.yaml").write_text(SHOWN[1], encoding="utf-8")
    with initialize_config_dir(str(tmp_path), version_base=None):
        config = compose("config", overrides=["penalty=0.25"])
    model = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(2, 2), nn.Dropout())})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, config.plugins) as session:
        assert session.metrics()["l1/strength"] == 0.25
        assert session.metrics()["dropout/rate"] == 0.5


# --- trackers ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what MLflow stands on
def test_metrics_go_to_mlflow_by_accelerate(tmp_path, monkeypatch):
    import mlflow
    from accelerate import Accelerator

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    accelerator = Accelerator(cpu=True, log_with="mlflow")
    accelerator.init_trackers("run")
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    with regplug.attach(model, optimizer, ["l2(0.5)"], accelerator=accelerator) as session:
        accelerator.backward(0.0 * model(torch.ones(1, 2)).sum())
        optimizer.step()
        metrics = session.metrics()
        accelerator.log(metrics, step=session.steps)
    accelerator.end_training()
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert {k: v for k, v in run.data.metrics.items() if k.startswith("l2/")} == metrics
