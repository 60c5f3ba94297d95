"""Configs of earlier versions in the words of this one: ``mmalign migrate``."""
