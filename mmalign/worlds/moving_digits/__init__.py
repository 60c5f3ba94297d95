"""Real 8x8 digits that move across a frame: a text-to-video world on diffusers' own LTX pipeline, trained on a laptop's CPU.

Half A of the scans makes the videos that the base was trained on; half B is seen by the judge of identity alone, and by the
videos that are shown as real. See ``worlds.digits.data.halves``.
"""
