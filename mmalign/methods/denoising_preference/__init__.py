"""Preferences through denoising errors: pairs, thumbs, and one image under two prompts."""
