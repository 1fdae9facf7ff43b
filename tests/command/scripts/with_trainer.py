"""A classifier of transformers, trained by its Trainer."""

import sys

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

torch.manual_seed(0)
config = BertConfig(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=8,
)
model = BertForSequenceClassification(config)
dataset = [
    {"input_ids": torch.randint(0, 30, (6,)), "labels": torch.tensor(i % 2)} for i in range(32)
]
args = TrainingArguments(
    output_dir="out",
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,
    max_steps=4,
    report_to="none",
    use_cpu=True,
    disable_tqdm=True,
    save_strategy="no",
    logging_strategy="no",
    dataloader_pin_memory=False,
)
trainer = Trainer(model, args, train_dataset=dataset)
trainer.train()
torch.save(model.state_dict(), sys.argv[1])
