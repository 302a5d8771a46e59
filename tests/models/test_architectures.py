"""Architectures beside Llama and BLOOM, each as a small random model held against plain transformers and PEFT."""

import inspect
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from qlora_gui.cli import main
from qlora_gui.config import RunConfig, make
from qlora_gui.data import collate, tokenization
from qlora_gui.data.tokenization import IGNORED
from qlora_gui.errors import UserError
from qlora_gui.models import attention, causality, chunked_loss, context, lora, lora_targets, norms, supported
from qlora_gui.models import base as bases
from qlora_gui.simulation import __main__
from qlora_gui.training import setup
from tests.conftest import TINY

CPU = torch.device("cpu")
WORDS, WINDOW, PAD = 320, 24, 1
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": PAD,
}
LOCAL_AND_GLOBAL = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
GPT = {
    "vocab_size": WORDS,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("MistralConfig", SIZES | {"sliding_window": WINDOW}),
    "gemma3": ("Gemma3TextConfig", SIZES | LOCAL_AND_GLOBAL | {"head_dim": 16}),
    "gpt_oss": (
        "GptOssConfig",
        SIZES | LOCAL_AND_GLOBAL | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": WORDS,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "max_position_embeddings": 512,
            "resid_dropout": 0.0,
            "embed_dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
    "qwen3_5": ("Qwen3_5TextConfig", SIZES | DELTA | {"head_dim": 16}),
    "cohere": ("CohereConfig", SIZES | {"use_qk_norm": True}),
    "gemma3-vision": (
        "Gemma3Config",
        {
            "text_config": SIZES | LOCAL_AND_GLOBAL | {"head_dim": 16},
            "vision_config": VISION | {"image_size": 28, "patch_size": 14},
            "mm_tokens_per_image": 4,
            **dict.fromkeys(["boi_token_index", "eoi_token_index", "image_token_index"], 318),
        },
    ),
    "qwen3_5-vision": (
        "Qwen3_5Config",
        {
            "text_config": SIZES | DELTA | {"head_dim": 16},
            "vision_config": {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64}
            | {"out_hidden_size": 64, "num_position_embeddings": 16},
            **dict.fromkeys(["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"], 318),
        },
    ),
    "qwen2_vl": (
        "Qwen2VLConfig",
        {
            "text_config": SIZES
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
            "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
            **dict.fromkeys(["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"], 318),
        },
    ),
    "mixtral": ("MixtralConfig", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek": (
        "DeepseekV3Config",
        SIZES
        | {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16}
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
        | {"n_group": 2, "topk_group": 1, "num_key_value_heads": 4},
    ),
    "mamba2": (
        "Mamba2Config",
        {"vocab_size": WORDS, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "num_heads": 8}
        | {"head_dim": 16, "n_groups": 1, "chunk_size": 32, "expand": 2, "bos_token_id": 0, "eos_token_id": 0}
        | {"pad_token_id": PAD, "use_bias": True},
    ),
    "phi": ("PhiConfig", SIZES | {"num_key_value_heads": 4, "embd_pdrop": 0.0, "resid_pdrop": 0.0}),
    "gptj": ("GPTJConfig", GPT | {"rotary_dim": 8, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt2": ("GPT2Config", GPT | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
}


def published_class(config: PreTrainedConfig) -> Any:
    """The class whose weights are on the hub: of a base that sees, the one that sees."""
    kind = type(config)
    seeing = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return seeing[kind] if kind in seeing else transformers.MODEL_FOR_CAUSAL_LM_MAPPING[kind]


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds a kind once; its weights are strong enough for layers to matter."""
    made: dict[str, Path] = {}

    def build(kind: str) -> Path:
        if kind not in made:
            name, settings = KINDS[kind]
            config: PreTrainedConfig = getattr(transformers, name)(**settings)
            torch.manual_seed(0)
            model = published_class(config)(config)
            with torch.no_grad():
                for name, part in model.named_parameters():
                    if part.ndim > 1:
                        part.normal_(0, 0.5 if "emb" in name or "wte" in name else 1.6 / part.shape[-1] ** 0.5)
                    else:
                        part.add_(torch.randn(part.shape) * 0.1)
            made[kind] = tmp_path_factory.mktemp("kinds") / kind
            model.save_pretrained(made[kind])
        return made[kind]

    return build


def rows(*lengths: int, beginning: int = 8) -> list[collate.Row]:
    """Rows of random tokens that begin alike; what follows the beginning is learned."""
    chance = random.Random(0)
    alike = [chance.randrange(2, WORDS) for _ in range(beginning)]
    found: list[collate.Row] = []
    for length in lengths:
        own = [chance.randrange(2, WORDS) for _ in range(length - beginning)]
        found.append({"input_ids": alike + own, "labels": [IGNORED] * (beginning + 2) + own[2:]})
    return found


def ours(base: Path, **knobs: object) -> Any:
    """A base prepared as for a run in fp32, with its adapter stirred."""
    config = config_of(**knobs)
    model = bases.load_model(str(base), "nf4", True, CPU, torch.float32)
    lora.prepare(model, config)
    wrapped = lora.attach(model, config)
    chunked_loss.install(wrapped.get_base_model())
    stir(wrapped)
    return wrapped.train()


def plain(base: Path, auto: Any = AutoModelForCausalLM) -> Any:
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = auto.from_pretrained(
        str(base), quantization_config=quantization, dtype=torch.float32, device_map="cpu", use_safetensors=True
    )
    for part in model.modules():
        if isinstance(part, bnb.nn.Linear4bit):
            part.support_avx512bf16_for_cpu = False
    return model.eval()


def stock(base: Path, like: Any, auto: Any = AutoModelForCausalLM) -> Any:
    """Plain transformers and PEFT, with the trained numbers of `like`."""
    model = plain(base, auto)
    model.requires_grad_(False)
    wrapped = get_peft_model(model, like.peft_config["default"])
    values = dict(like.named_parameters())
    with torch.no_grad():
        for name, part in wrapped.named_parameters():
            if part.requires_grad:
                part.copy_(values[name])
    return wrapped.train()


def config_of(**knobs: object) -> RunConfig:
    return make(TINY | {"dropout": 0} | knobs)


def stir(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, part in model.named_parameters():
        if part.requires_grad and ("lora_B" in name or "lora_" not in name):
            part.data += torch.randn(part.shape, generator=generator) * 0.05


def batch_of(rows: list[collate.Row], shared_length: int = 0) -> dict[str, torch.Tensor]:
    given = collate.Collate(PAD, shared_length)(rows)
    return {name: part for name, part in given.items() if name != "tokens"}


def step(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    result = model(**batch).loss
    result.backward()
    found = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
    return float(result.detach()), found


def assert_equal_steps(
    one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]]
) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys()
    size = torch.stack([part.norm() for part in other[1].values()]).norm()
    off = torch.stack([(one[1][name] - part).norm() for name, part in other[1].items()]).norm()
    assert off < 2e-4 * size


def padded(given: list[collate.Row]) -> dict[str, torch.Tensor]:
    """One row an example, as collators usually give it."""
    sizes = torch.tensor([len(row["input_ids"]) for row in given])
    return batch_of(given) | {"attention_mask": (torch.arange(int(sizes.max())) < sizes[:, None]).long()}


@pytest.mark.parametrize("kind", ["mistral", "gemma3", "gpt_oss", "gpt_neo"])
@pytest.mark.parametrize("attend", ["auto", "eager"])
def test_packed_rows_longer_than_the_window(base_of: Callable[[str], Path], kind: str, attend: str) -> None:
    """Examples below and above the window, in one row after a beginning that they share: the padded batch's step."""
    model = ours(base_of(kind), attention=attend)
    examples = rows(14, 60, 20, 45)
    base = model.get_base_model()
    length = setup._shared_length(examples, config_of(max_length=192), base)
    packed = batch_of(collate.share(examples, length))
    assert "blocks" in packed and packed["input_ids"].shape[1] > 2 * WINDOW
    assert_equal_steps(step(model, packed), step(stock(base_of(kind), model), padded(examples)))


def tree(seed: int, parts: int = 6) -> list[collate.Row]:
    """Rows that begin as one of the earlier ones does, for some while, and learn two stretches of what is their own."""
    chance = random.Random(seed)
    found: list[collate.Row] = []
    for _ in range(parts):
        other = chance.choice(found)["input_ids"] if found else []
        ids = other[: chance.randrange(2, len(other))] if other else []
        begin = len(ids)
        ids = ids + [chance.randrange(2, WORDS) for _ in range(chance.randrange(12, 50))]
        first, second = sorted(chance.sample(range(begin + 1, len(ids)), 2))
        learned = {*range(first, (first + second) // 2), *range(second, len(ids))}
        found.append({"input_ids": ids, "labels": [n if p in learned else IGNORED for p, n in enumerate(ids)]})
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["mistral", "gemma3", "gpt_oss"])
def test_the_rows_of_a_conversation_share_one_that_is_longer_than_the_window(
    base_of: Callable[[str], Path], kind: str, seed: int
) -> None:
    model = ours(base_of(kind))
    parts = tree(seed)
    joined = collate.branched(parts, 512)
    assert len(joined) < len(parts) and max(len(row["input_ids"]) for row in joined) > 2 * WINDOW
    assert_equal_steps(step(model, batch_of(joined)), step(stock(base_of(kind), model), padded(parts)))


def test_a_window_of_places_keeps_shared_rows_within_it(base_of: Callable[[str], Path]) -> None:
    """GPT-Neo's layers keep the window in a mask of their own, under another name."""
    model = bases.load_model(str(base_of("gpt_neo")), "nf4", True, CPU, torch.float32)
    assert attention.fixed_window(model) == WINDOW
    lora.prepare(model, config_of())
    assert setup._shared_length(rows(14, 18), config_of(max_length=192), model) == WINDOW
    other = bases.load_model(str(base_of("mistral")), "nf4", True, CPU, torch.float32)
    assert attention.fixed_window(other) is None


@pytest.mark.parametrize("kind", ["qwen3_5", "cohere"])
def test_norms_that_are_not_plain_train_as_they_are(base_of: Callable[[str], Path], kind: str) -> None:
    """A norm with a gate, and one whose weight is a matrix."""
    model = ours(base_of(kind))
    examples = rows(14, 30)
    assert_equal_steps(step(model, batch_of(examples)), step(stock(base_of(kind), model), padded(examples)))


def test_recurrent_layers_are_found_not_to_keep_examples_apart(base_of: Callable[[str], Path]) -> None:
    model = bases.load_model(str(base_of("qwen3_5")), "nf4", True, CPU, torch.float32)
    lora.prepare(model, config_of())
    assert not attention.packs(model)


def test_what_a_base_raises_at_packed_rows_means_that_it_does_not_take_them(base_of: Callable[[str], Path]) -> None:
    model = bases.load_model(str(base_of("mistral")), "nf4", True, CPU, torch.float32)
    lora.prepare(model, config_of())
    assert attention.packs(model)
    given = model.model.forward

    def picky(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        if position_ids is not None:
            raise ValueError("no positions here")
        return given(*args, **kwargs)

    model.model.forward = picky
    assert not attention.packs(model)


@pytest.mark.parametrize("affine", [True, False])
def test_a_layer_norm_without_a_bias_gives_back_its_dtype(affine: bool) -> None:
    norm = torch.nn.LayerNorm(32, bias=False, elementwise_affine=affine)
    if affine:
        norm.weight.data.normal_()
        norm.weight.requires_grad_(False)
    x = torch.randn(3, 32)
    expected = torch.nn.functional.layer_norm(x, (32,), norm.weight)
    norms.widen(torch.nn.ModuleDict({"norm": norm}))
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    norm(one).square().sum().backward()
    torch.nn.functional.layer_norm(other, (32,), norm.weight).square().sum().backward()
    assert one.grad is not None and other.grad is not None
    assert torch.allclose(norm(x), expected, atol=1e-6) and torch.allclose(one.grad, other.grad, atol=1e-5)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_a_gated_norm_takes_16_bits_and_gives_them_back() -> None:
    from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

    norm = MambaRMSNormGated(32, group_size=16)
    norm.weight.data.normal_()
    x, gate = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    expected = norm(x, gate)
    norms.widen(torch.nn.ModuleDict({"norm": norm}))
    assert torch.equal(norm(x, gate), expected) and torch.equal(norm(hidden_states=x, gate=gate), expected)
    assert norm(x.bfloat16(), gate.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["gptj", "gpt2", "mistral"])
def test_blocks_reach_the_decoder_when_all_logits_are_made_at_once(base_of: Callable[[str], Path], kind: str) -> None:
    """GPT-J's causal LM does not pass on what it does not know."""
    model = ours(base_of(kind))
    base = model.get_base_model()
    packed = batch_of(collate.share(rows(14, 30, 20), 64))
    expected = step(model, packed)
    base.get_output_embeddings().weight.requires_grad_(True)
    assert chunked_loss.install(base) == "its head is trained"
    base.get_output_embeddings().weight.requires_grad_(False)
    assert_equal_steps(step(model, packed), expected)


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "gpt_neo", "mistral"])
def test_prompts_padded_on_the_left_are_answered_as_alone(base_of: Callable[[str], Path], kind: str) -> None:
    """generate() reads forward's signature to know whether positions are wanted."""
    model = ours(base_of(kind)).eval()
    parameters = inspect.signature(model.get_base_model().forward).parameters
    assert "position_ids" in parameters and "self" not in parameters
    long, short = (row["input_ids"] for row in rows(20, 12))
    ids = torch.tensor([long, [PAD] * 8 + short])
    mask = torch.tensor([[1] * 20, [0] * 8 + [1] * 12])
    more = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": PAD}
    together = model.generate(input_ids=ids, attention_mask=mask, **more)[1, 20:]
    alone = model.generate(input_ids=ids[1:, 8:], attention_mask=mask[1:, 8:], **more)[0, 12:]
    assert together.tolist() == alone.tolist()


@pytest.mark.parametrize("kind", ["gemma3-vision", "qwen3_5-vision", "qwen2_vl"])
def test_a_base_that_sees_is_trained_as_a_text_model(
    base_of: Callable[[str], Path], kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """The step of the class that people load it with, no part of it elsewhere, and an adapter that PEFT takes there."""
    auto = AutoModelForImageTextToText if kind == "qwen2_vl" else AutoModelForCausalLM
    base = base_of(kind)
    model = ours(base)
    assert not any("vis" in name or "projector" in name for name, _ in model.named_modules())
    examples = rows(14, 30)
    theirs = stock(base, model, auto)
    trained = [name for name, part in theirs.named_parameters() if part.requires_grad]
    assert trained and not any("vis" in name for name in trained)
    assert_equal_steps(step(model, batch_of(examples)), step(theirs, padded(examples)))
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    recwarn.clear()
    loaded = PeftModel.from_pretrained(plain(base, auto), str(tmp_path)).eval()
    assert not [one for one in recwarn if "missing" in str(one.message).lower()]
    ids = batch_of(examples)["input_ids"]
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits, atol=1e-4)


def test_the_vision_part_that_is_dropped_is_told(base_of: Callable[[str], Path]) -> None:
    said: list[str] = []
    bases.load_model(str(base_of("gemma3-vision")), "nf4", True, CPU, torch.float32, said.append)
    assert any("vision_tower" in text and "not trained" in text for text in said)


def test_gemmas_embedding_scale_is_that_of_the_format_it_computes_in(base_of: Callable[[str], Path]) -> None:
    """The base is stored in bf16, where 64 ** 0.5 would still be exact: so another width, 96 ** 0.5."""
    config = transformers.Gemma3TextConfig(**(KINDS["gemma3"][1] | {"hidden_size": 96}))
    folder = base_of("gemma3").parent / "gemma3-bf16"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    model = bases.load_model(str(folder), "nf4", True, CPU, torch.float32)
    assert float(model.model.embed_tokens.embed_scale) == pytest.approx(96**0.5, rel=1e-7)


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [("mixtral", []), ("deepseek", ["down_proj", "gate_proj", "up_proj"]), ("mamba2", ["out_proj"])],
)
def test_all_linear_means_all_that_peft_can_put_lora_on(
    base_of: Callable[[str], Path], kind: str, left_out: list[str], tmp_path: Path
) -> None:
    """Experts stay as they are, dropout or not; what is left out has a reason, and the adapter loads in plain PEFT."""
    model = bases.load_model(str(base_of(kind)), "nf4", True, CPU, torch.float32)
    targets = lora_targets.resolve(model, "all-linear", 0.05)
    assert sorted(name for names in targets.left_out.values() for name in names) == left_out
    share = lora_targets.weights_in_16_bits(model).others_share
    assert share > 0.3 if kind != "mamba2" else share < 0.05
    assert not any("experts" in name for name, _ in ours(base_of(kind), dropout=0.05).named_modules() if "lora" in name)
    trained = ours(base_of(kind))
    assert not trained.peft_config["default"].target_parameters
    examples = rows(14, 30)
    assert_equal_steps(step(trained, batch_of(examples)), step(stock(base_of(kind), trained), padded(examples)))
    trained.save_pretrained(str(tmp_path), save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(plain(base_of(kind)), str(tmp_path))
    values = dict(loaded.named_parameters())
    for name, part in trained.named_parameters():
        if "lora_" in name:
            assert torch.equal(values[name], part)
    assert {name for name in values if "lora_" in name} == {n for n, _ in trained.named_parameters() if "lora_" in n}


@pytest.mark.parametrize(
    ("kind", "names", "told"),
    [
        ("mamba2", ["in_proj", "out_proj"], "out_proj: PEFT cannot put LoRA on it"),
        ("mistral", ["q_proj", "embed_tokens"], "on embed_tokens: this base has the linears"),
        ("mistral", ["mlp"], "on mlp: this base has the linears"),
        ("mistral", ["0"], "on 0: this base has the linears"),
        ("gemma3-vision", ["vision_tower"], "on vision_tower: this base has the linears"),
        ("mistral", ["q_proj", "v_porj"], "on v_porj: this base has the linears down_proj, gate_proj, k_proj"),
        ("mixtral", ["q_proj", "w1", "w2", "w3"], "takes no dropout"),
        ("mixtral", ["q_proj", "w1"], "without also targeting w3"),
    ],
)
def test_names_that_cannot_get_lora_are_told_by_their_reason(
    base_of: Callable[[str], Path], kind: str, names: list[str], told: str
) -> None:
    model = bases.load_model(str(base_of(kind)), "nf4", True, CPU, torch.float32)
    with pytest.raises(UserError, match=told):
        lora.attach(model, config_of(target_modules=names, dropout=0.05 if "dropout" in told else 0.0))


@pytest.mark.parametrize(
    ("names", "trained"),
    [
        (["o_proj", "lm_head"], {"lm_head", "o_proj"}),
        (["lm_head"], {"lm_head"}),
        (["language_model.layers.0.self_attn.q_proj"], {"q_proj"}),
    ],
)
def test_names_in_a_model_for_images_mean_its_text_part_and_its_head(
    base_of: Callable[[str], Path], names: list[str], trained: set[str]
) -> None:
    model = bases.load_model(str(base_of("gemma3-vision")), "nf4", True, CPU, torch.float32)
    wrapped = lora.attach(model, config_of(target_modules=names))
    found = [name.partition(".lora_A")[0] for name, _ in wrapped.named_parameters() if "lora_A" in name]
    assert {name.rpartition(".")[2] for name in found} == trained
    assert names[0].startswith("language_model") == (len(found) == 1 and "layers.0" in found[0])


def test_a_base_that_sees_later_tokens_is_refused_once_it_is_loaded(base_of: Callable[[str], Path]) -> None:
    config = transformers.BertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        vocab_size=512,
        is_decoder=False,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for part in model.parameters():
            if part.ndim > 1:
                part.normal_(0, 0.2)
    with pytest.raises(UserError, match=r"'bert' .*sees later tokens"):
        causality.check(model, "bert")
    for kind in ("mistral", "mamba2", "mixtral"):
        causality.check(bases.load_model(str(base_of(kind)), "nf4", True, CPU, torch.bfloat16), kind)


def test_rows_that_a_base_has_no_positions_for_are_refused_and_others_told(
    base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    examples = [tokenization.Encoded(1, [1] * length, [1] * length, False) for length in (9, 12, 15)]
    said = "2 rows are longer than the 10 tokens that 'base' reads, the longest has 15"
    for kind, told in (("gpt2", "set max_length to 10"), ("mistral", "It was not made for what comes after")):
        config = json.loads((base_of(kind) / "config.json").read_text())
        name = "n_positions" if kind == "gpt2" else "max_position_embeddings"
        (tmp_path / "config.json").write_text(json.dumps(config | {name: 10}))
        if kind == "gpt2":
            with pytest.raises(UserError, match=f"{said}: {told}"):
                context.check(examples, tmp_path, "base")
        else:
            assert context.check(examples, tmp_path, "base").startswith(f"{said}. {told}")
        assert context.check(examples[:1], tmp_path, "base") == ""
    (tmp_path / "config.json").write_text(json.dumps(config | {name: 10, "rope_scaling": {"type": "dynamic"}}))
    assert context.check(examples, tmp_path, "base") == ""  # made to read on


@pytest.mark.parametrize("kind", ["mamba2", "qwen3_5", "gemma3", "gpt_oss"])
def test_the_stream_between_the_layers_stays_in_16_bits(base_of: Callable[[str], Path], kind: str) -> None:
    """Mamba-2's layers take their norm's dtype for the stream's, so its weights are not widened."""
    model = bases.load_model(str(base_of(kind)), "nf4", True, CPU, torch.bfloat16)
    lora.prepare(model, config_of())
    seen: list[torch.dtype] = []
    for part in model.modules():
        if isinstance(part, GradientCheckpointingLayer):
            part.residual_in_fp32 = False  # Mamba-2's own choice, where it is on
            part.register_forward_hook(
                lambda layer, given, out: seen.append((out[0] if isinstance(out, tuple) else out).dtype)
            )
    model(input_ids=torch.tensor([rows(14)[0]["input_ids"]]))
    assert seen == [torch.bfloat16] * 2


@pytest.mark.parametrize("kind", ["phi", "gptj", "gpt_oss", "mamba2"])
def test_biases_of_all_kinds_of_modules(base_of: Callable[[str], Path], kind: str, tmp_path: Path) -> None:
    """Heads and norms train theirs in fp32 beside 16-bit weights; kernels that read theirs keep them, and it is counted."""
    config = config_of(bias="all")
    model = bases.load_model(str(base_of(kind)), "nf4", True, CPU, torch.bfloat16)
    lora.prepare(model, config)
    wrapped = lora.attach(model, config)
    chunked_loss.install(model)
    found = step(wrapped.train(), batch_of(rows(14, 30)))
    biases = {name: part for name, part in wrapped.named_parameters() if name.endswith("bias")}
    trained = {name for name, part in biases.items() if part.requires_grad}
    assert trained and all(biases[name].dtype == torch.float32 and name in found[1] for name in trained)
    frozen = sum(part.numel() for name, part in biases.items() if name not in trained)
    assert lora.counts(wrapped)["frozen_biases"] == frozen
    assert (frozen > 0) == (kind in ("gpt_oss", "mamba2"))
    if kind in ("phi", "gptj"):
        assert any("lm_head" in name for name in trained)
    if kind in ("phi", "gptj"):  # in fp32 they are what plain PEFT trains
        exact = ours(base_of(kind), bias="all")
        examples = rows(14, 30)
        assert_equal_steps(step(exact, batch_of(examples)), step(stock(base_of(kind), exact), padded(examples)))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "falcon"}, "does not quantize"),
        ({"model_type": "mamba"}, "do not allow"),
        ({"model_type": "falcon_mamba"}, "do not allow"),
        ({"model_type": "gemma3n"}, "clamps"),
        ({"model_type": "phimoe"}, "router"),
        ({"model_type": "llama4"}, "experts"),
        ({"model_type": "rwkv"}, "rewrites its weights"),
        ({"model_type": "bart"}, "a decoder alone"),
        ({"model_type": "llama", "hidden_size": 96, "num_attention_heads": 0}, "cannot be loaded"),
        ({"model_type": "llama", "layer_types": ["brand_new"], "num_hidden_layers": 1}, "cannot be loaded"),
        ({"model_type": "llama", "quantization_config": "awq"}, "cannot be loaded"),
        ({"model_type": "vit"}, "no language model that writes on"),
        ({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}, r"\(MXFP4\).*-bnb-4bit"),
        ({"model_type": "qwen3", "quantization_config": {"quant_method": "gptq", "bits": 4}}, r"\(GPTQ\).*16 bits"),
        (
            {"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            "8-bit bitsandbytes",
        ),
    ],
)
def test_what_cannot_work_is_refused_from_its_config(config: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=told):
        supported.check(tmp_path)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text", "hidden_size": 64}}, "clamps"),
        ({"model_type": "falcon", "hidden_size": 64}, "bitsandbytes does not quantize"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "reads from left to right"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "awq", "bits": 4}}, r"\(AWQ\).*16 bits"),
    ],
)
def test_the_plan_of_a_base_that_cannot_be_trained_says_so(
    config: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main.main(["--headless-fit", "--base-model", str(tmp_path), "--memory", "16GB"]) == 2
    assert re.search(told, capsys.readouterr().err)


def test_attention_that_a_base_does_not_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    supported.check(tmp_path, "eager")
    with pytest.raises(UserError, match="set attention to auto or eager"):
        supported.check(tmp_path, "sdpa")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    supported.check(tmp_path, "sdpa")  # its own, of this program


def test_a_base_in_4_bits_of_bitsandbytes_is_taken(tmp_path: Path) -> None:
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True, "_load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": stored}))
    supported.check(tmp_path)


@pytest.mark.parametrize("kind", ["gemma3-vision", "qwen3_5-vision", "qwen2_vl", "gpt2", "cohere", "mixtral", "mamba2"])
def test_the_step_is_simulated_for_every_kind(base_of: Callable[[str], Path], kind: str) -> None:
    """Without the vision part, and with what is between the steps no less than the weights themselves."""
    folder = base_of(kind)
    config = json.loads((folder / "config.json").read_text())
    found = __main__.simulate(config, config_of(max_length=64), 2, 64)
    model = bases.load_model(str(folder), "nf4", True, CPU, torch.bfloat16)
    weights = sum(part.nbytes for part in model.parameters())
    trained = lora.counts(lora.attach(model, config_of()))["trained"]
    # beside the weights: statistics of 4 bits, norms in fp32, and the adapter with its gradients and two moments
    assert weights + 12 * trained < found["resident"] < 1.3 * weights + 18 * trained
    assert found["peak"] > found["resident"]
