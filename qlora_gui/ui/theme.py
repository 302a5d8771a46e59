"""How the page looks: Gradio's own default theme with one accent colour, and a little CSS."""

from pathlib import Path
from typing import Any

import gradio as gr

from qlora_gui.ui.rendering.chart import STYLE

# What every listener shares: no public endpoint, no overlay while it works, also none that is hidden: the browser would
# look all outputs up in the whole page at every message, which took a core of two while answers were streamed.
QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}
# For listeners that take a Dropdown whose choices change: Gradio holds the value that a page sends against the newest
# choices, which that page may not have drawn yet, and raises.
RAW: dict[str, Any] = QUIET | {"preprocess": False}
TICK_SECONDS = 1.5


def theme() -> gr.themes.Default:
    """Gradio's default theme in teal and slate; its fonts are served by the page itself."""
    # Weight 700, for the files of weight 600 that Gradio ships lack most letters.
    fonts = [gr.themes.LocalFont(name, weights=(400, 700)) for name in ("Source Sans Pro", "IBM Plex Mono")]
    return gr.themes.Default(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        spacing_size="sm",
        font=[fonts[0], "system-ui", "sans-serif"],
        font_mono=[fonts[1], "ui-monospace", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_600",  # the theme's own grey is too pale to read
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        block_label_text_size="*text_sm",
        block_info_text_size="*text_xs",
    )


CSS = [Path(__file__).with_name("style.css"), STYLE]
