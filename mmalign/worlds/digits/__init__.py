"""Real 8x8 digits (scikit-learn's 1,797 scans) as a text-to-image world that trains on a laptop in seconds.

Who sees which half of the data: the base generators and the proxy classifier are trained on half A; the gold judge and the
real spread come from half B, which nothing else ever touches. See ``data.halves``.
"""
