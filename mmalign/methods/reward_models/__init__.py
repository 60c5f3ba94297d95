"""Reward models: what a model says of finished outputs is brought to what people said of them. For policies of ``scorer``."""
