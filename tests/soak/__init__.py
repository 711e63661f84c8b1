"""Long runs against a real server process: short in continuous integration, as long as asked for by command."""
