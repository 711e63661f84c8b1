"""From one form of a checkpoint to another: quantization, GGUF pairs, safetensors folders."""
