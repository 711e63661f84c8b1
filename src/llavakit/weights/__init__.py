"""Layer 2: checkpoints on disk and the store they come from. No torch."""
