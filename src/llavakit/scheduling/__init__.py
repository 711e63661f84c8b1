"""Who computes what next, and in which blocks of the cache: plain Python without tensors."""
