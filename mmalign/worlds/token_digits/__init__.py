"""Digits that are written as tokens: a tiny Janus of transformers, with a codebook of real 8x8 scans, and the digits world's judges."""
