"""HTTP: the dialects of OpenAI and Ollama, the page, and what keeps them safe."""
