"""The command line. Imports nothing heavy before it knows what was asked."""
