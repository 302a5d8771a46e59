"""GPT-2 and others of its time, whose positions are rows of a table."""

from qlora_gui.families.family import Family

FAMILIES = (
    Family("gpt2", tied=True, position_table=True, positions="n_positions"),
    Family("gpt_neo", position_table=True, positions="n_positions"),
    Family("opt", tied=True, position_table=True),
    *(
        Family(name, position_table=True)
        for name in ("biogpt", "codegen", "ctrl", "gpt_bigcode", "gptj", "mpt", "openai-gpt")
    ),
)
