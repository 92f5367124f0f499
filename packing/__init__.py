"""A model as one small file: forms of tensors, entropy coding, structural edits as data."""
