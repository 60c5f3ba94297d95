"""Pure maths of sampling: one denoising step as a Gaussian (``kernels``), and which steps are random and trained (``windows``)."""
