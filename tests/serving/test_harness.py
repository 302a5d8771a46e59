"""lm-eval judges base and adapter through the endpoint, on a task made from a local file."""

import json
from pathlib import Path

import pytest
import torch

from qlora_gui.models import base as bases
from qlora_gui.runs.store import Run
from tests.serving import harness
from tests.serving.conftest import KEY, Served

ROWS = [
    {"question": "What colour is the sky by day?", "answer": "blue", "wrong": "a kettle"},
    {"question": "How many legs does a cat have?", "answer": "four", "wrong": "seven"},
    {"question": "Where is order A-17?", "answer": "on its way", "wrong": "in the sea"},
]
_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: {target}
{more}
metadata: {{version: 1}}
"""


def write_task(folder: Path, name: str, kind: str, target: str, more: str) -> None:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = _TASK.format(name=name, kind=kind, target=target, rows=rows, more=more)
    (folder / f"{name}.yaml").write_text(task)


@pytest.mark.slow
def test_lm_eval_generates_through_the_chat(served: Served, tmp_path: Path) -> None:
    more = (
        'generation_kwargs: {max_gen_toks: 12, until: ["\\n\\n"], temperature: 0}\nmetric_list: [{metric: exact_match}]'
    )
    write_task(tmp_path, "local_chat", "generate_until", '"{{answer}}"', more)
    url = f"{served.url}/chat/completions"
    found = harness.evaluate(tmp_path, "local-chat-completions", url, "bloom-all", KEY, "local_chat")
    assert 0 <= found["results"]["local_chat"]["exact_match,none"] <= 1 and len(found["samples"]) == len(ROWS)
    for sample in found["samples"]:
        answer = served.client.chat.completions.create(
            model="bloom-all",
            messages=[{"role": "user", "content": sample["doc"]["question"]}],
            temperature=0,
            max_tokens=12,
            stop=["\n\n"],
        )
        assert sample["resps"][0][0] == answer.choices[0].message.content


@pytest.mark.slow
def test_lm_eval_reads_log_probabilities_of_choices(
    served: Served, bloom: Path, bloom_runs: dict[str, Run], tmp_path: Path
) -> None:
    more = 'doc_to_choice: "{{[answer, wrong]}}"\nmetric_list: [{metric: acc}]'
    write_task(tmp_path, "local_choice", "multiple_choice", "0", more)
    found = harness.evaluate(
        *(tmp_path, "local-completions", f"{served.url}/completions", "base", KEY, "local_choice"), tokenizer=str(bloom)
    )
    model = bases.load_model(str(bloom), "nf4", True, torch.device("cpu"), torch.float32)
    tokenizer = bases.load_tokenizer(str(bloom), or_first=True)
    for sample in found["samples"]:
        for number, choice in enumerate((sample["doc"]["answer"], sample["doc"]["wrong"])):
            prompt = tokenizer(sample["doc"]["question"]).input_ids
            ids = tokenizer(f"{sample['doc']['question']} {choice}").input_ids
            with torch.no_grad():
                logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            wanted = sum(float(logs[place - 1, ids[place]]) for place in range(len(prompt), len(ids)))
            assert float(sample["filtered_resps"][number][0]) == pytest.approx(wanted, abs=5e-3)
