"""Layer 5: turns prepared prompts into tokens. Knows tensors and ids; knows no files, messages or templates."""
