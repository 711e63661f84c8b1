"""Measurements against other programs and against the bars of the project. Each writes its results with the machine."""
