"""The HTTP server: with official clients, with what attackers send, and with engines that fail."""
