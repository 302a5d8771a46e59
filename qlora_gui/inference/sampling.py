"""How answers are decoded. Shared by the page, the command line and the worker."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_ADAPTERS = 5


class Decoding(BaseModel):
    """Decoding settings of one question; `greedy` makes all but max_new_tokens idle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    greedy: bool = Field(False, description="Always take the most likely token.")
    temperature: float = Field(0.7, ge=0.05, le=5, description="Higher is more varied.")
    top_p: float = Field(0.95, gt=0, le=1, description="Sample from the likeliest tokens of this total share.")
    max_new_tokens: int = Field(256, ge=1, le=8192, description="Longest answer, in tokens.")
    control_tokens: bool = Field(False, description="Special tokens typed in a prompt control, instead of being text.")
    thinking: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Reasoning before an answer, where the chat template has a setting for it; auto: as it was trained.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="The same seed gives the same answers.")
    same_dice: bool = Field(
        True, description="All columns draw with the same random numbers, so that differences come from the weights."
    )
