"""Trained weights as others load them."""
