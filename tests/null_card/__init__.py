"""A CUDA GPU that has memory and no processor: torch's own CUDA build runs on it, on any machine with gcc."""
