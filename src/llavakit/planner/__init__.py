"""What it takes to run LLaVA-1.5: bytes, seconds, watts, money."""
