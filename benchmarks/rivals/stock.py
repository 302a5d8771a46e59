"""transformers' Trainer and TRL's SFTTrainer on the 4-bit base, as their guides show: `python stock.py JOB.json`."""

from typing import Any

import torch
from datasets import Dataset
from meter import Meter, read_job, training_arguments
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)


def load(job: dict[str, Any]) -> Any:
    dtype = torch.bfloat16 if job["dtype"] == "bf16" else torch.float32
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return AutoModelForCausalLM.from_pretrained(
        job["base"], quantization_config=quantization, dtype=dtype, device_map={"": "cpu"}
    )


def lora(job: dict[str, Any]) -> LoraConfig:
    return LoraConfig(
        r=job["rank"], lora_alpha=job["alpha"], lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def with_trainer(job: dict[str, Any], tokenizer: Any, meter: Meter) -> Trainer:
    """Rows padded to the longest of their batch."""
    model = prepare_model_for_kbit_training(load(job), use_gradient_checkpointing=False)
    model.config.use_cache = False
    return Trainer(
        model=get_peft_model(model, lora(job)),
        args=TrainingArguments(**training_arguments(job), gradient_checkpointing=False),
        train_dataset=Dataset.from_list(job["rows"]),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[meter],
    )


def with_trl(job: dict[str, Any], tokenizer: Any, meter: Meter) -> Trainer:
    """The same tokens, padded, or packed as TRL packs by default (best fit, without attention across examples)."""
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"input_ids": row["input_ids"], "completion_mask": [int(label != -100) for label in row["labels"]]}
        for row in job["rows"]
    ]
    arguments = SFTConfig(
        **training_arguments(job),
        gradient_checkpointing=False,
        max_length=job["max_length"],
        packing=job["packed"],
        completion_only_loss=True,
        dataloader_pin_memory=False,
    )
    return SFTTrainer(
        model=load(job),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora(job),
        callbacks=[meter],
    )


def main() -> None:
    job, meter = read_job(), Meter()
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    trainer = (with_trl if job["tool"] == "trl" else with_trainer)(job, tokenizer, meter)
    trainer.train()
    trainer.model.save_pretrained(job["out"])
    meter.write(job)


if __name__ == "__main__":
    main()
