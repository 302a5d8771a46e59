"""Taking a trained model along: merged, as GGUF, on the hub; each shown to be the model that was evaluated."""
