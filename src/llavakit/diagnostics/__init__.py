"""Layer 7: measures a model instead of using it: ``verify`` against transformers, ``bench`` against the machine."""
