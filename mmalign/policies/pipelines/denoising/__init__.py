"""How well latents are denoised, and gradients that reach recorded steps through what a denoiser says of them."""
