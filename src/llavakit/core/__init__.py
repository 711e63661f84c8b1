"""Layer 0: configuration, request types, errors and cost formulas. Standard library only."""
