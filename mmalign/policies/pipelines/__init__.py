"""The seam of diffusers: what a policy of a pipeline is made of; each room knows those before it.

``loading``: before the call. ``calls``: the pipeline's own call, intercepted. ``rollouts``: calls recorded, and played again.
``denoising``: errors of given latents, and gradients to recorded steps.
"""
