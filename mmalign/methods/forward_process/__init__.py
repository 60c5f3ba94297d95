"""Preferences and rewards through the denoising error of a diffusion or flow model."""
