"""Layer 2: pictures to pixels, messages to token ids. No torch."""
