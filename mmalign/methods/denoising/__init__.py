"""Policy gradients over the steps of a denoising, and preferences through the denoising error of a diffusion or flow model."""
