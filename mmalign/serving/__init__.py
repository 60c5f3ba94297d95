"""Clients of servers that speak public protocols."""
