"""A pipeline's own call, with a scheduler that asks others for its steps, and what stands between the pipeline and its parts."""
