"""LLaMA-Factory's own supervised fine-tuning, in its own environment: `python llamafactory_sft.py JOB.json`."""

import json
from pathlib import Path
from typing import Any

from llamafactory.train.tuner import run_exp
from meter import Meter, read_job, training_arguments


def write_data(job: dict[str, Any], folder: Path) -> None:
    """The conversations in LLaMA-Factory's sharegpt form, with the file that describes them."""
    (folder / "rows.json").write_text(json.dumps([{"messages": row} for row in job["conversations"]]))
    about = {
        "file_name": "rows.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    }
    (folder / "dataset_info.json").write_text(json.dumps({"rows": about}))


def main() -> None:
    job, meter = read_job(), Meter()
    folder = Path(job["out"])
    write_data(job, folder)
    settings = training_arguments(job) | {
        "model_name_or_path": job["base"],
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "quantization_bit": 4,
        "double_quantization": True,
        "lora_rank": job["rank"],
        "lora_alpha": job["alpha"],
        "lora_target": "all",
        "lora_dropout": 0.0,
        "disable_gradient_checkpointing": True,
        "template": "chatml",
        "cutoff_len": job["max_length"],
        "packing": False,
        "dataset_dir": job["out"],
        "dataset": "rows",
        "overwrite_cache": True,
        "plot_loss": False,
    }
    run_exp(settings, callbacks=[meter])  # saves the adapter itself
    meter.write(job)


if __name__ == "__main__":
    main()
