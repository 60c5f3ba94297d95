"""Servers of rewards, and clients of servers: judges by chat completions, rewards by a protocol of our own."""
