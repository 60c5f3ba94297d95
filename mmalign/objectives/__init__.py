"""Pure maths: one function per equation, tensors in, unreduced tensors out."""
