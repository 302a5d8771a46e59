"""Small random models of today's architectures: a name, what makes its config, and its chat template.

Hidden size 128, heads of 32, 3 to 6 layers, windows of 64 tokens, every structural option of the real models on.
"""

from typing import Any, NamedTuple

H = 128
BASE = dict(hidden_size=H, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)
POS = dict(max_position_embeddings=2048)
WINDOW = 64
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=32.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=1024,
)
ALT = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
MAMBA2 = dict(
    mamba_n_heads=8,
    mamba_d_head=32,
    mamba_n_groups=1,
    mamba_d_state=16,
    mamba_d_conv=4,
    mamba_expand=2,
    mamba_chunk_size=32,
)
LINEAR = dict(
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=32,
    linear_value_head_dim=32,
    linear_conv_kernel_dim=4,
)
HYBRID = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
MLA = dict(kv_lora_rank=64, q_lora_rank=64, qk_rope_head_dim=16, qk_nope_head_dim=32, v_head_dim=32)
MLA_MOE = dict(
    n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=64, first_k_dense_replace=1
)
VISION = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
)
QWEN_VISION = dict(depth=2, hidden_size=64, intermediate_size=128, num_heads=2, out_hidden_size=H)
GEMMA3 = BASE | POS | dict(head_dim=32, query_pre_attn_scalar=32, sliding_window=WINDOW, layer_types=ALT)
GEMMA4 = (
    dict(BASE, num_hidden_layers=6)
    | POS
    | dict(
        head_dim=32,
        sliding_window=WINDOW,
        global_head_dim=64,
        final_logit_softcapping=30.0,
        layer_types=[
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "full_attention",
        ],
    )
)
PLE = dict(
    hidden_size_per_layer_input=64, vocab_size_per_layer_input="V", num_kv_shared_layers=2, use_double_wide_mlp=True
)
TINY_TEXT = BASE | POS
NARROW = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
)  # for real vocabularies


class Spec(NamedTuple):
    """The config's class and its settings ("V": the vocabulary), a template of `TEMPLATES` or a real tokenizer as
    `@qwen3`, and the class of the model where that is not the causal one."""

    config: str
    settings: dict[str, Any]
    template: str
    auto: str = ""


# fmt: off
SPECS: dict[str, Spec] = {
    # --- with the families' own tokenizers and templates
    "llama3-tokenizer": Spec("LlamaConfig", NARROW | POS | dict(tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE), "@llama3"),
    "llama3_1-tokenizer": Spec("LlamaConfig", NARROW | POS | dict(tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE), "@llama3_1"),
    "qwen3-tokenizer": Spec("Qwen3Config", NARROW | POS | dict(head_dim=32, tie_word_embeddings=True), "@qwen3"),
    "gemma3-tokenizer": Spec("Gemma3TextConfig", GEMMA3 | NARROW | dict(layer_types=ALT[:2]), "@gemma3"),
    # --- Llama-like
    "llama3": Spec("LlamaConfig", BASE | POS | dict(tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE), "llama3"),
    "llama-bias": Spec("LlamaConfig", BASE | POS | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=False), "llama3"),
    "mistral-v0.1": Spec("MistralConfig", BASE | POS | dict(sliding_window=WINDOW), "mistral"),
    "mistral-nemo": Spec("MistralConfig", BASE | POS | dict(sliding_window=None, head_dim=64), "mistral"),
    "ministral": Spec("MinistralConfig", BASE | POS | dict(sliding_window=WINDOW, layer_types=ALT, head_dim=32), "mistral"),
    "ministral3": Spec("Ministral3Config", BASE | dict(head_dim=32, max_position_embeddings=2048, tie_word_embeddings=True, rope_parameters=dict(
        type="yarn", rope_type="yarn", rope_theta=1e6, factor=16.0, original_max_position_embeddings=64, max_position_embeddings=2048,
        beta_fast=32.0, beta_slow=1.0, mscale_all_dim=1.0, mscale=1.0, llama_4_scaling_beta=0.1)), "mistral"),
    "smollm3": Spec("SmolLM3Config", BASE | POS | dict(no_rope_layer_interval=4, tie_word_embeddings=True), "chatml"),
    "internlm3": Spec("InternLM3Config", BASE | POS | dict(head_dim=32), "chatml"),
    "seed_oss": Spec("SeedOssConfig", BASE | POS | dict(head_dim=32, attention_bias=True, attention_out_bias=False, attention_dropout=0.0, residual_dropout=0.0), "chatml"),
    "hunyuan_dense": Spec("HunYuanDenseV1Config", BASE | POS | dict(head_dim=32, tie_word_embeddings=True), "chatml"),
    "ernie4_5": Spec("Ernie4_5Config", BASE | POS | dict(head_dim=32, use_bias=True), "chatml"),
    "exaone4": Spec("Exaone4Config", BASE | POS | dict(sliding_window=WINDOW, sliding_window_pattern=2, layer_types=ALT), "chatml"),
    "apertus": Spec("ApertusConfig", BASE | POS, "chatml"),
    "arcee": Spec("ArceeConfig", BASE | POS | dict(head_dim=32), "chatml"),
    "nemotron": Spec("NemotronConfig", BASE | POS | dict(head_dim=32), "chatml"),
    "helium": Spec("HeliumConfig", BASE | POS | dict(head_dim=32), "chatml"),
    "minicpm3": Spec("MiniCPM3Config", BASE | POS | MLA | dict(num_key_value_heads=4, tie_word_embeddings=True, dim_model_base=64), "chatml"),
    # --- Qwen
    "qwen2.5": Spec("Qwen2Config", BASE | POS | dict(tie_word_embeddings=True, use_sliding_window=False), "chatml"),
    "qwen2-window": Spec("Qwen2Config", BASE | POS | dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2), "chatml"),
    "qwen2_moe": Spec("Qwen2MoeConfig", BASE | POS | MOE | dict(shared_expert_intermediate_size=64), "chatml"),
    "qwen3": Spec("Qwen3Config", BASE | POS | dict(head_dim=64, tie_word_embeddings=True), "chatml"),
    "qwen3_moe": Spec("Qwen3MoeConfig", BASE | POS | MOE | dict(head_dim=64), "chatml"),
    "qwen3_next": Spec("Qwen3NextConfig", BASE | POS | MOE | LINEAR | dict(head_dim=32, shared_expert_intermediate_size=64, layer_types=HYBRID), "chatml"),
    "qwen3_5-text": Spec("Qwen3_5TextConfig", BASE | POS | LINEAR | dict(head_dim=32, layer_types=HYBRID, tie_word_embeddings=True), "chatml"),
    "qwen3_5": Spec("Qwen3_5Config", dict(text_config=TINY_TEXT | LINEAR | dict(head_dim=32, layer_types=HYBRID, tie_word_embeddings=True), vision_config=QWEN_VISION, _ids=["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"], tie_word_embeddings=True), "chatml", "Qwen3_5ForConditionalGeneration"),
    "qwen3_5_moe-text": Spec("Qwen3_5MoeTextConfig", BASE | POS | MOE | LINEAR | dict(head_dim=32, shared_expert_intermediate_size=64, layer_types=HYBRID), "chatml"),
    "qwen2_vl": Spec("Qwen2VLConfig", dict(text_config=TINY_TEXT | dict(rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[4, 6, 6])), vision_config=dict(depth=2, embed_dim=64, hidden_size=H, num_heads=2), _ids=["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"]), "chatml", "Qwen2VLForConditionalGeneration"),
    "qwen3_vl": Spec("Qwen3VLConfig", dict(text_config=TINY_TEXT | dict(head_dim=32, rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[4, 6, 6])), vision_config=QWEN_VISION | dict(deepstack_visual_indexes=[0]), _ids=["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"]), "chatml", "Qwen3VLForConditionalGeneration"),
    # --- Gemma
    "gemma": Spec("GemmaConfig", BASE | POS | dict(head_dim=32), "gemma2"),
    "gemma2": Spec("Gemma2Config", GEMMA3 | dict(final_logit_softcapping=30.0, attn_logit_softcapping=50.0), "gemma2"),
    "gemma3-text": Spec("Gemma3TextConfig", GEMMA3, "gemma"),
    "gemma3": Spec("Gemma3Config", dict(text_config=GEMMA3, vision_config=VISION, mm_tokens_per_image=4, _ids=["boi_token_index", "eoi_token_index", "image_token_index"]), "gemma", "Gemma3ForConditionalGeneration"),
    "gemma3n-text": Spec("Gemma3nTextConfig", dict(BASE, num_hidden_layers=6) | POS | dict(
        head_dim=32, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"] * 3, num_kv_shared_layers=2,
        hidden_size_per_layer_input=64, vocab_size_per_layer_input="V", laurel_rank=64, altup_num_inputs=2,
        activation_sparsity_pattern=[0.95, 0.95, 0.0, 0.0, 0.0, 0.0], final_logit_softcapping=30.0, intermediate_size=256), "gemma"),
    "gemma4-text": Spec("Gemma4TextConfig", GEMMA4 | PLE, "gemma"),
    "gemma4-moe-text": Spec("Gemma4TextConfig", GEMMA4 | dict(hidden_size_per_layer_input=0, enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=64, attention_k_eq_v=True, num_global_key_value_heads=1), "gemma"),
    "gemma4": Spec("Gemma4Config", dict(text_config=GEMMA4 | PLE, vision_config=dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=32, patch_size=16, use_clipped_linears=True), _ids=["boi_token_id", "eoi_token_id", "image_token_id", "video_token_id", "boa_token_id", "eoa_token_index", "audio_token_id"]), "gemma", "Gemma4ForConditionalGeneration"),
    # --- Phi
    "phi": Spec("PhiConfig", BASE | POS | dict(num_key_value_heads=4, partial_rotary_factor=0.5, embd_pdrop=0.0, resid_pdrop=0.0, qk_layernorm=False), "none"),
    "phi3": Spec("Phi3Config", BASE | POS | dict(num_key_value_heads=4, sliding_window=WINDOW), "phi3"),
    "phi4-mini": Spec("Phi3Config", BASE | dict(max_position_embeddings=2048, original_max_position_embeddings=1024, sliding_window=None, tie_word_embeddings=True, partial_rotary_factor=0.75, rope_parameters=dict(
        rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75, short_factor=[1.0] * 12, long_factor=[2.0] * 12, original_max_position_embeddings=1024)), "phi3"),
    "phimoe": Spec("PhimoeConfig", BASE | POS | dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=128, attention_bias=True, lm_head_bias=True, sliding_window=None, router_jitter_noise=0.0, input_jitter_noise=0.0), "phi3"),
    # --- OLMo, Granite, Cohere, GLM, others
    "olmo": Spec("OlmoConfig", BASE | POS | dict(num_key_value_heads=4), "zephyr"),
    "olmo2": Spec("Olmo2Config", BASE | POS, "zephyr"),
    "olmo3": Spec("Olmo3Config", BASE | POS | dict(sliding_window=WINDOW, layer_types=["sliding_attention"] * 3 + ["full_attention"]), "chatml"),
    "olmoe": Spec("OlmoeConfig", BASE | POS | dict(num_experts=4, num_experts_per_tok=2, intermediate_size=64), "zephyr"),
    "granite3": Spec("GraniteConfig", BASE | POS | dict(tie_word_embeddings=True, embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22, attention_multiplier=0.03), "granite"),
    "granitemoe": Spec("GraniteMoeConfig", BASE | POS | dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=64, embedding_multiplier=12.0, logits_scaling=6.0, residual_multiplier=0.22, attention_multiplier=0.03), "granite"),
    "granite4-micro": Spec("GraniteMoeHybridConfig", BASE | POS | dict(num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=256, layer_types=["attention"] * 4, position_embedding_type="rope", embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22, attention_multiplier=0.03, tie_word_embeddings=True, **MAMBA2), "granite"),
    "granite4-h": Spec("GraniteMoeHybridConfig", BASE | POS | dict(num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=256, layer_types=["mamba", "mamba", "mamba", "attention"], position_embedding_type=None, embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22, attention_multiplier=0.03, tie_word_embeddings=True, **MAMBA2), "granite"),
    "granite4-h-moe": Spec("GraniteMoeHybridConfig", BASE | POS | dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=64, shared_intermediate_size=64, layer_types=["mamba", "mamba", "mamba", "attention"], embedding_multiplier=12.0, logits_scaling=6.0, residual_multiplier=0.22, attention_multiplier=0.03, **MAMBA2), "granite"),
    "cohere": Spec("CohereConfig", BASE | POS | dict(use_qk_norm=True, logit_scale=0.0625), "cohere"),
    "cohere2": Spec("Cohere2Config", BASE | POS | dict(sliding_window=WINDOW, layer_types=ALT, logit_scale=0.25), "cohere"),
    "glm": Spec("GlmConfig", BASE | POS | dict(head_dim=32, attention_bias=True, partial_rotary_factor=0.5), "glm4"),
    "glm4": Spec("Glm4Config", BASE | POS | dict(head_dim=32, attention_bias=True, partial_rotary_factor=0.5), "glm4"),
    "glm4_moe": Spec("Glm4MoeConfig", BASE | POS | dict(head_dim=32, use_qk_norm=True, attention_bias=True, partial_rotary_factor=0.5, **MLA_MOE), "glm4"),
    "stablelm": Spec("StableLmConfig", BASE | POS | dict(use_qkv_bias=True, partial_rotary_factor=0.25, qk_layernorm=False), "zephyr"),
    "stablelm-qknorm": Spec("StableLmConfig", BASE | POS | dict(use_qkv_bias=False, partial_rotary_factor=0.25, qk_layernorm=True, use_parallel_residual=True), "zephyr"),
    "starcoder2": Spec("Starcoder2Config", BASE | POS | dict(use_bias=True, sliding_window=WINDOW, residual_dropout=0.0, embedding_dropout=0.0), "none"),
    # --- MoE, MLA
    "mixtral": Spec("MixtralConfig", BASE | POS | dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=128, sliding_window=None), "mistral"),
    "gpt_oss": Spec("GptOssConfig", BASE | POS | dict(head_dim=32, num_local_experts=4, num_experts_per_tok=2, intermediate_size=64, sliding_window=WINDOW, layer_types=ALT), "harmony"),
    "deepseek_v2": Spec("DeepseekV2Config", BASE | POS | MLA | MLA_MOE | dict(num_key_value_heads=4), "deepseek"),
    "deepseek_v3": Spec("DeepseekV3Config", BASE | POS | MLA | MLA_MOE | dict(num_key_value_heads=4, n_group=2, topk_group=1), "deepseek"),
    "hunyuan_moe": Spec("HunYuanMoEV1Config", BASE | POS | dict(head_dim=32, num_experts=4, moe_topk=2, intermediate_size=64), "chatml"),
    "llama4-text": Spec("Llama4TextConfig", BASE | POS | dict(head_dim=32, intermediate_size_mlp=256, intermediate_size=64, num_local_experts=4, num_experts_per_tok=1, attention_chunk_size=WINDOW, no_rope_layer_interval=4), "llama3"),
    "glm4_moe_lite": Spec("Glm4MoeLiteConfig", BASE | POS | MLA | MLA_MOE | dict(num_key_value_heads=4), "glm4"),
    # --- hybrids and recurrent
    "lfm2": Spec("Lfm2Config", BASE | POS | dict(layer_types=["conv", "full_attention", "conv", "full_attention"], block_multiple_of=64), "chatml"),
    "lfm3": Spec("Lfm3Config", BASE | POS | dict(head_dim=32, sliding_window=WINDOW), "chatml"),
    "falcon_h1": Spec("FalconH1Config", BASE | POS | dict(mamba_d_ssm=256, mamba_rms_norm=False, key_multiplier=0.3, lm_head_multiplier=0.04, embedding_multiplier=5.6, ssm_out_multiplier=0.24, attention_out_multiplier=0.94, **MAMBA2), "chatml"),
    "nemotron_h": Spec("NemotronHConfig", dict(hidden_size=H, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=32, layers_block_type=["mamba", "mlp", "attention", "mlp"], ssm_state_size=16, mamba_num_heads=8, mamba_head_dim=32, n_groups=1, conv_kernel=4, chunk_size=32) | POS, "chatml"),
    "bamba": Spec("BambaConfig", BASE | POS | dict(attn_layer_indices=[1], **MAMBA2), "chatml"),
    "jamba": Spec("JambaConfig", BASE | POS | dict(num_experts=1, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=16, mamba_d_conv=4, mamba_expand=2, mamba_dt_rank=64, use_mamba_kernels=False), "chatml"),
    "zamba2": Spec("Zamba2Config", dict(hidden_size=H, num_hidden_layers=4, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], num_attention_heads=4, num_key_value_heads=4, attention_head_dim=64, intermediate_size=256, mamba_d_state=16, mamba_d_conv=4, mamba_expand=2, mamba_ngroups=1, n_mamba_heads=8, chunk_size=32, num_mem_blocks=1, adapter_rank=64, use_mamba_kernels=False) | POS, "chatml"),
    "recurrent_gemma": Spec("RecurrentGemmaConfig", dict(hidden_size=H, num_hidden_layers=3, intermediate_size=512, num_attention_heads=4, num_key_value_heads=1, lru_width=128, attention_window_size=WINDOW, head_dim=32), "gemma2"),
    "kimi_linear": Spec("KimiLinearConfig", BASE | POS | dict(MLA, q_lora_rank=None) | dict(num_key_value_heads=4, num_local_experts=4, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=64, linear_head_dim=32, linear_num_heads=4, linear_conv_kernel_dim=4, layer_types=HYBRID), "chatml"),
    "mamba": Spec("MambaConfig", dict(hidden_size=H, num_hidden_layers=3, state_size=16, time_step_rank=64), "none"),
    "mamba2": Spec("Mamba2Config", dict(hidden_size=H, num_hidden_layers=3, state_size=16, num_heads=8, head_dim=32, n_groups=1, chunk_size=32, expand=2), "none"),
    "falcon_mamba": Spec("FalconMambaConfig", dict(hidden_size=H, num_hidden_layers=3, state_size=16, time_step_rank=64), "chatml"),
    # --- older
    "falcon": Spec("FalconConfig", dict(hidden_size=H, num_hidden_layers=3, num_attention_heads=4, num_kv_heads=2, new_decoder_architecture=True, alibi=False, bias=False, parallel_attn=True, hidden_dropout=0.0, attention_dropout=0.0), "none"),
    "gpt2": Spec("GPT2Config", dict(n_embd=H, n_layer=3, n_head=4, n_positions=2048, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), "none"),
    "gpt_neo": Spec("GPTNeoConfig", dict(hidden_size=H, num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]], window_size=WINDOW, resid_dropout=0.0, embed_dropout=0.0, attention_dropout=0.0, max_position_embeddings=2048), "none"),
    "gpt_neox": Spec("GPTNeoXConfig", dict(hidden_size=H, num_hidden_layers=3, num_attention_heads=4, intermediate_size=512, hidden_dropout=0.0, attention_dropout=0.0, use_parallel_residual=True) | POS, "none"),
    "gptj": Spec("GPTJConfig", dict(n_embd=H, n_layer=3, n_head=4, n_positions=2048, rotary_dim=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), "none"),
    "opt": Spec("OPTConfig", dict(hidden_size=H, ffn_dim=512, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=2048, dropout=0.0, attention_dropout=0.0, word_embed_proj_dim=H), "none"),
    # ReLU's slope jumps at 0, where rounding decided one of its units; that it is all there is, GELU shows.
    "opt-350m": Spec("OPTConfig", dict(hidden_size=H, ffn_dim=512, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=2048, dropout=0.0, attention_dropout=0.0, word_embed_proj_dim=64, do_layer_norm_before=False, activation_function="gelu"), "none"),
    "bloom": Spec("BloomConfig", dict(hidden_size=H, n_layer=3, n_head=4, hidden_dropout=0.0, attention_dropout=0.0), "none"),
    "mpt": Spec("MptConfig", dict(d_model=H, n_layers=3, n_heads=4, max_seq_len=2048, expansion_ratio=4, no_bias=True), "none"),
    "gpt_bigcode": Spec("GPTBigCodeConfig", dict(n_embd=H, n_layer=3, n_head=4, n_positions=2048, multi_query=True, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), "none"),
    "codegen": Spec("CodeGenConfig", dict(n_embd=H, n_layer=3, n_head=4, n_positions=2048, rotary_dim=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), "none"),
    # --- multimodal as text
    "mistral3": Spec("Mistral3Config", dict(text_config=dict(model_type="mistral", head_dim=32, **TINY_TEXT), vision_config=dict(model_type="pixtral", hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, head_dim=32, image_size=28, patch_size=14), _ids=["image_token_index"], tie_word_embeddings=False), "mistral", "Mistral3ForConditionalGeneration"),
    "llava": Spec("LlavaConfig", dict(text_config=dict(model_type="llama", **TINY_TEXT), vision_config=dict(model_type="clip_vision_model", projection_dim=64, **VISION), _ids=["image_token_index"]), "chatml", "LlavaForConditionalGeneration"),
}
# fmt: on

# In the default tests: plain, windows in some layers, experts, ALiBi with one projection for all of attention. In the slow ones: norms on heads,
# windows in all layers, a hybrid, more experts, biases on everything and a head with a bias.
DEFAULT = ["llama3", "gemma3", "gpt_oss", "bloom"]
SLOW = ["qwen3", "mistral-v0.1", "qwen3_5", "mixtral", "phi"]

APART = "keeps packed examples apart"
NO_PACKING = {"packed": APART, "packed bias": APART, "train packed": APART}
NO_SDPA = {"sdpa": "has no attention through sdpa"}
NOT_PACKED = (
    "lfm2",
    "lfm3",
    "jamba",
    "bamba",
    "zamba2",
    "falcon_h1",
    "nemotron_h",
    "granite4-h",
    "granite4-h-moe",
    "kimi_linear",
    "recurrent_gemma",
    "qwen3_next",
    "qwen3_5",
    "qwen3_5-text",
    "qwen3_5_moe-text",
)
# Refusals that are right, by check, each with a part of its sentence: any other one fails the test, and so does one that
# no longer comes.
REFUSED: dict[str, dict[str, str]] = {
    **dict.fromkeys(NOT_PACKED, NO_PACKING),
    **dict.fromkeys(("codegen", "gemma2", "gpt_neo", "gptj", "gpt_oss"), NO_SDPA),
    **dict.fromkeys(("mamba2", "mpt"), NO_PACKING | NO_SDPA),
    **{
        name: {"train": reason, "fit": reason}
        for name, reason in {
            "falcon": "linear layers are of a class of its own",
            "falcon_mamba": "compute with their weights directly",
            "mamba": "compute with their weights directly",
            "gemma3n-text": "clamps the weights of its linears",
            "llama4-text": "lays its experts out in another way",
            "phimoe": "its router is a linear layer",
        }.items()
    },
}
