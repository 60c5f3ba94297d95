"""The gradient of a differentiable reward, carried back through the steps that made a sample: images, videos, flow and diffusion alike."""
