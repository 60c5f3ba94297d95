"""Tiny twins of real models: the real class, small random weights, nothing downloaded."""
