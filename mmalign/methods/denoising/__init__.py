"""Policy gradients over the steps of a denoising."""
