"""How what the project ships was made."""
