"""Layer 4: the one definition of LLaVA-1.5, in torch, with Hugging Face's module names."""
