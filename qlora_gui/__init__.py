"""Fine-tune a language model on the GPU you have, and know whether it got better."""
