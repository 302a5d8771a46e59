"""One training step on fake tensors: its memory on a CUDA GPU, measured without one."""
