"""GGUF files, as llama.cpp, Ollama and LM Studio read them: a whole model, or an adapter alone."""
