"""Sums that take a calculator: a language model that has to ask for what it cannot work out."""
